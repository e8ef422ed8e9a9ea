"""The encoder: a timm ViT on tokens of visible patches, and the embedding that makes tokens of patches."""

from __future__ import annotations

import torch
from timm import create_model, list_models
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.config import EncoderConfig, TrainConfig
from model.data.config import TUBE_FRAMES
from model.errors import ConfigError, guess

PLAIN_VITS = "use for example vit_tiny_patch16_224, vit_base_patch16_224 or vit_large_patch14_clip_224"


class TubeEmbed(nn.Module):
    """Linear map of a tube of 3 patches to a token: the Conv3d(3, D, (3, p, p)) of the ancestors, on patches.

    A single frame goes through the same map as if repeated 3 times; with `own_frame`, through a map of its own.
    """

    def __init__(self, pixels: int, width: int, own_frame: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(TUBE_FRAMES * pixels, width)
        self.frame = nn.Linear(pixels, width) if own_frame else None

    def forward(self, tubes: Tensor) -> Tensor:
        """tubes [B, n, 3P] -> tokens [B, n, D]."""
        return self.project(tubes)

    def single(self, patches: Tensor) -> Tensor:
        """patches of one frame [B, n, P] -> tokens [B, n, D]."""
        return F.linear(patches, *self.single_map())

    def single_map(self) -> tuple[Tensor, Tensor]:
        """Weight [D, P] and bias [D] of the map of a single frame: a third of the work of a repeated one."""
        if self.frame is not None:
            return self.frame.weight, self.frame.bias
        return self.project.weight.unflatten(1, (TUBE_FRAMES, -1)).sum(dim=1), self.project.bias


class Encoder(nn.Module):
    """A timm ViT without its patch embedding: tokens of visible patches in, encoded tokens out.

    With `encoder.sensors`, tokens of the clip's sensor go in front (Feng et al. 2025, AnyTouch); those of the unknown
    sensor come last in `sensor_tokens` [sensors + 1, tokens, D]. They have no position, and leave before the decoder.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        vit = build_vit(config)
        self.width: int = vit.embed_dim
        self.num_prefix: int = vit.num_prefix_tokens
        self.norm_pre, self.blocks, self.norm = vit.norm_pre, vit.blocks, vit.norm
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        self.prefix = nn.Parameter(torch.cat([p.detach() for p in prefix], dim=1)) if prefix else None
        if vit.pos_embed is None:
            self.positions: Tensor
            self.register_buffer("positions", sincos_positions(config.grid, self.width), persistent=False)
            self.embeds_prefix = False
        else:
            self.positions = nn.Parameter(vit.pos_embed.detach()[0].clone())
            self.embeds_prefix = self.positions.shape[0] > config.num_patches
        self.sensor_tokens = None
        if config.encoder.sensors:
            shape = (len(config.encoder.sensors) + 1, config.encoder.sensor_tokens, self.width)
            self.sensor_tokens = nn.Parameter(0.02 * torch.randn(shape))
        self._recomputes = config.encoder.grad_checkpointing

    def forward(self, tokens: Tensor, order: Tensor, sensors: Tensor | None = None) -> Tensor:
        """Encode the visible patches of clips.

        Args:
            tokens: [B, n, D] of the patches `order` [B, n].
            sensors: [B] int64, place of each clip's sensor in encoder.sensors, or their number for the unknown one;
                unknown if absent. Not used by an encoder without sensors.

        Returns:
            Encoded tokens of the same patches [B, n, D].
        """
        skip = self.num_prefix if self.embeds_prefix else 0
        tokens = tokens + F.embedding(order, self.positions[skip:])
        num_patches = tokens.shape[1]
        in_front = []
        if self.prefix is not None:
            prefix = self.prefix + self.positions[:skip] if self.embeds_prefix else self.prefix
            in_front.append(prefix.expand(tokens.shape[0], -1, -1))
        if self.sensor_tokens is not None:
            unknown = self.sensor_tokens[-1:].expand(tokens.shape[0], -1, -1)
            in_front.append(unknown if sensors is None else self.sensor_tokens[sensors])
        if in_front:
            tokens = torch.cat((*(part.to(tokens.dtype) for part in in_front), tokens), dim=1)
        return self.norm(self._through_blocks(self.norm_pre(tokens)))[:, -num_patches:]

    def _through_blocks(self, tokens: Tensor) -> Tensor:
        if not (self._recomputes and self.training and torch.is_grad_enabled()):
            return self.blocks(tokens)
        for block in self.blocks:  # no dropout inside: the random state need not be kept
            tokens = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
        return tokens


def unknown_chance(schedule: tuple[float, float], progress: float) -> float:
    """Chance that a training clip gets the tokens of the unknown sensor, at a share `progress` (0-1) of the run.

    `schedule` is encoder.unknown_sensor, the chances at the first and the last update (Feng et al. 2025, AnyTouch).
    """
    first, last = schedule
    return first + (last - first) * progress


def build_vit(config: TrainConfig) -> VisionTransformer:
    """The timm ViT of a config. Raises ConfigError where the name is no plain Vision Transformer of timm."""
    encoder = config.encoder
    if encoder.name is None:
        return VisionTransformer(
            img_size=config.data.height_width,
            patch_size=encoder.patch,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            mlp_ratio=encoder.mlp_ratio,
            class_token=False,
            pos_embed="none",
            global_pool="",
            num_classes=0,
        )
    check_vit_name(encoder)
    try:
        vit = create_model(
            encoder.name,
            img_size=config.data.height_width,
            patch_size=encoder.patch,
            num_classes=0,
            global_pool="",
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # RuntimeError: an unknown tag after the dot
        reason = str(error) or type(error).__name__
        raise ConfigError(f"encoder.name = {encoder.name!r}: timm cannot build it: {reason}; {PLAIN_VITS}") from None
    if type(vit) is not VisionTransformer:
        raise ConfigError(
            f"encoder.name = {encoder.name!r} is a {type(vit).__name__}, not a plain VisionTransformer; {PLAIN_VITS}"
        )
    embed = vit.patch_embed
    if type(embed) is not PatchEmbed or not isinstance(embed.norm, nn.Identity):
        raise ConfigError(
            f"encoder.name = {encoder.name!r} embeds patches by more than a linear map, which the tubes cannot have; "
            f"{PLAIN_VITS}"
        )
    return vit


def check_encoder(config: TrainConfig) -> None:
    """Raise ConfigError as `build_vit` does, without the memory and time of its weights, and if a file of weights is
    missing."""
    file = config.encoder.pretrained
    if not isinstance(file, bool) and not file.is_file():
        raise ConfigError(f"encoder.pretrained = {file}: no such file")
    with torch.device("meta"):
        build_vit(config)


def check_vit_name(encoder: EncoderConfig) -> None:
    """Raise ConfigError, with a guess, where timm has no model of that name."""
    name = (encoder.name or "").partition(".")[0]
    known = list_models()
    if name not in known:
        raise ConfigError(
            f"encoder.name = {encoder.name!r} is no timm model;{guess(name, known)} "
            "timm.list_models('vit_*') prints the choices."
        )


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2D sine-cosine position embedding [N, width] for a (rows, columns) grid (He et al. 2021, appendix)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    rates = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    parts = []
    for place in (rows, columns):
        angle = place.flatten().double()[:, None] * rates[None, :]
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()
