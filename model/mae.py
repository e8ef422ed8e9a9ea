"""JointTactileMAE: one timm ViT encoder and one light decoder for a static and a dynamic branch.

Both branches have the same number of tokens, since the static one is frame 1 repeated to a tube: they go through the
encoder and the decoder as one batch, static clips first, and part at the two heads. Only visible tokens are encoded
(He et al. 2021). Tokens stay in shuffled order, visible ones first, from the encoder to the losses: attention does not
mind, and nothing has to be unshuffled or multiplied by a mask.
"""

from __future__ import annotations

import torch
from timm import create_model, list_models
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import EncoderConfig, TrainConfig
from model.data.config import CLIP_FRAMES, TUBE_FRAMES
from model.errors import ConfigError, guess
from model.losses import Losses, in_order, mse


class JointTactileMAE(nn.Module):
    """The model of a TrainConfig, weights drawn from `seed`.

    Shapes: patches [B, N, 4, P] (normalised), orders [B, N]; see model/losses.py for the letters.
    """

    def __init__(self, config: TrainConfig, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # weights depend on the seed, nothing outside on them
            torch.manual_seed(seed)
            patch = config.encoder.patch
            pixels = 3 * patch * patch
            self.encoder = Encoder(config)
            width = config.decoder.width
            self.embed = TubeEmbed(pixels, self.encoder.width)
            self.to_decoder = nn.Linear(self.encoder.width, width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            self.decoder_blocks = nn.Sequential(
                *(Block(width, config.decoder.heads, qkv_bias=True) for _ in range(config.decoder.depth))
            )
            self.decoder_norm = nn.LayerNorm(width)
            self.static_head = nn.Linear(width, pixels)
            self.dynamic_head = nn.Linear(width, CLIP_FRAMES * pixels)
            self.decoder_positions: Tensor
            self.register_buffer("decoder_positions", sincos_positions(config.grid, width), persistent=False)
            # as MAE's own start; the encoder's blocks keep what timm gave them
            for part in (self.embed, self.to_decoder, self.decoder_blocks, self.static_head, self.dynamic_head):
                part.apply(_init_linear)
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, static_order: Tensor, dynamic_order: Tensor, num_visible: int) -> Losses:
        """Losses of a batch: patches [B, N, 4, P], orders [B, N] with the `num_visible` visible patches first."""
        static, recon, pred, static_patches, dynamic_patches = self.predict(
            patches, static_order, dynamic_order, num_visible
        )
        pixels = patches.shape[-1]
        tube = TUBE_FRAMES * pixels
        return Losses(
            static=mse(static, static_patches[:, num_visible:]),
            recon=mse(recon, dynamic_patches[:, num_visible:, :tube]),
            pred=mse(pred, dynamic_patches[:, :, tube:]),
        )

    def predict(
        self, patches: Tensor, static_order: Tensor, dynamic_order: Tensor, num_visible: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the heads make of a batch, and the patches in the same (shuffled) order.

        Returns:
            frame 1 at its masked patches [B, N - n, P]; frames 1-3 at their masked patches [B, N - n, 3P];
            frame 4 at all patches [B, N, P]; frame 1 in static order [B, N, P]; frames 1-4 in dynamic order [B, N, 4P].
        """
        batch = patches.shape[0]
        pixels = patches.shape[-1]
        static_patches = in_order(patches[:, :, 0], static_order)
        dynamic_patches = in_order(patches.flatten(2), dynamic_order)
        order = torch.cat((static_order, dynamic_order))

        visible = torch.cat(
            (
                self.embed.repeated(static_patches[:, :num_visible]),
                self.embed(dynamic_patches[:, :num_visible, : TUBE_FRAMES * pixels]),
            )
        )
        encoded = self.to_decoder(self.encoder(visible, order[:, :num_visible]))
        masked = self.mask_token.to(encoded.dtype).expand(2 * batch, order.shape[1] - num_visible, -1)
        tokens = torch.cat((encoded, masked), dim=1) + F.embedding(order, self.decoder_positions)
        decoded = self.decoder_norm(self.decoder_blocks(tokens))

        static_tokens, dynamic_tokens = decoded.split(batch)
        static = self.static_head(static_tokens[:, num_visible:])
        # the 4-frame head, in two parts: frames 1-3 are wanted at masked patches only
        weights, biases = (part.split((TUBE_FRAMES * pixels, pixels)) for part in self.dynamic_head.parameters())
        recon = F.linear(dynamic_tokens[:, num_visible:], weights[0], biases[0])
        pred = F.linear(dynamic_tokens, weights[1], biases[1])
        return static, recon, pred, static_patches, dynamic_patches


class TubeEmbed(nn.Module):
    """Linear map of a tube of 3 patches to a token: the Conv3d(3, D, (3, p, p)) of the ancestors, on patches."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(TUBE_FRAMES * pixels, width)

    def forward(self, tubes: Tensor) -> Tensor:
        """tubes [B, n, 3P] -> tokens [B, n, D]."""
        return self.project(tubes)

    def repeated(self, patches: Tensor) -> Tensor:
        """patches [B, n, P] -> tokens [B, n, D] of the tube that repeats them 3 times, at a third of the work."""
        weight = self.project.weight.unflatten(1, (TUBE_FRAMES, -1)).sum(dim=1)
        return F.linear(patches, weight, self.project.bias)


class Encoder(nn.Module):
    """A timm ViT without its patch embedding: tokens of visible patches in, encoded tokens out."""

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

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """tokens [B, n, D] of the patches order [B, n] -> encoded tokens [B, n, D]."""
        skip = self.num_prefix if self.embeds_prefix else 0
        tokens = tokens + F.embedding(order, self.positions[skip:])
        if self.prefix is not None:
            prefix = self.prefix + self.positions[:skip] if self.embeds_prefix else self.prefix
            tokens = torch.cat((prefix.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens), dim=1)
        tokens = self.norm(self.blocks(self.norm_pre(tokens)))
        return tokens[:, self.num_prefix :]


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
        raise ConfigError(f"encoder.name = {encoder.name!r}: timm cannot build it: {error}") from None
    if type(vit) is not VisionTransformer:
        raise ConfigError(
            f"encoder.name = {encoder.name!r} is a {type(vit).__name__}, not a plain VisionTransformer; "
            "use for example vit_tiny_patch16_224, vit_base_patch16_224 or vit_large_patch14_clip_224"
        )
    return vit


def check_encoder(config: TrainConfig) -> None:
    """Raise ConfigError as `build_vit` does, without the memory and time of its weights."""
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


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
