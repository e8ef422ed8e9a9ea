"""JointTactileMAE: one timm ViT encoder and one light decoder for a static and a dynamic branch.

Both branches have the same number of tokens, since the static one is a single frame where the dynamic one is a tube:
they go through the encoder and the decoder as one batch, static clips first, and part at the two heads. Only visible
tokens are encoded (He et al. 2021). Tokens stay in shuffled order, visible ones first, from the encoder to the losses:
attention does not mind, and nothing has to be unshuffled or multiplied by a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TrainConfig
from model.data.config import CLIP_FRAMES, TUBE_FRAMES
from model.encoder import Encoder, TubeEmbed, sincos_positions
from model.losses import Losses, in_order, mse, targets


class Predictions(NamedTuple):
    """What the heads make of a batch, and the patches in the same (shuffled) order; None for a branch left out.

    With norm_pix_loss the predictions are of normalised patches (`model.losses.targets`), the patches are not.
    """

    static: Tensor | None
    """Frame 1 at its masked patches [B, N - n, P]."""
    recon: Tensor | None
    """Frames 1-3 at their masked patches [B, N - n, 3P]."""
    pred: Tensor | None
    """Frame 4 at all patches [B, N, P]."""
    static_patches: Tensor | None
    """Frame 1 in static order [B, N, P]."""
    dynamic_patches: Tensor | None
    """Frames 1-4 in dynamic order [B, N, 4P]."""


class JointTactileMAE(nn.Module):
    """The model of a TrainConfig, weights drawn from `seed` (see model/pretrained.py for others).

    Shapes: patches [B, N, 4, P] (normalised), orders [B, N]; see model/losses.py for the letters.

    Raises:
        ConfigError: encoder.name is no plain Vision Transformer of timm.
    """

    def __init__(self, config: TrainConfig, seed: int = 0) -> None:
        super().__init__()
        self._norm_pix = config.norm_pix_loss
        with torch.random.fork_rng(devices=[]):  # weights depend on the seed, nothing outside on them
            torch.manual_seed(seed)
            patch = config.encoder.patch
            pixels = 3 * patch * patch
            self.encoder = Encoder(config)
            width = config.decoder.width
            self.embed = TubeEmbed(pixels, self.encoder.width, config.encoder.static_embed == "frame")
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

    def forward(
        self,
        patches: Tensor,
        static_order: Tensor | None,
        dynamic_order: Tensor | None,
        num_visible: int,
        sensors: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch; arguments as for `predict`. A branch without an order has none, and costs nothing."""
        made = self.predict(patches, static_order, dynamic_order, num_visible, sensors)
        static = recon = pred = None
        if made.static is not None and made.static_patches is not None:
            static = mse(made.static, targets(made.static_patches[:, num_visible:], self._norm_pix))
        if made.recon is not None and made.pred is not None and made.dynamic_patches is not None:
            frames = made.dynamic_patches.unflatten(2, (CLIP_FRAMES, -1))
            tubes = targets(frames[:, num_visible:, :TUBE_FRAMES], self._norm_pix)
            recon = mse(made.recon, tubes.flatten(2))
            pred = mse(made.pred, targets(frames[:, :, TUBE_FRAMES], self._norm_pix))
        return Losses(static, recon, pred)

    def predict(
        self,
        patches: Tensor,
        static_order: Tensor | None,
        dynamic_order: Tensor | None,
        num_visible: int,
        sensors: Tensor | None = None,
    ) -> Predictions:
        """What the heads make of a batch.

        Args:
            patches: [B, N, 4, P].
            static_order, dynamic_order: [B, N], the `num_visible` visible patches first; None leaves the branch out.
            sensors: [B], as in `Encoder.forward`.
        """
        pixels = patches.shape[-1]
        orders: list[Tensor] = []
        visible: list[Tensor] = []
        static_patches = dynamic_patches = None
        if static_order is not None:
            static_patches = in_order(patches[:, :, 0], static_order)
            visible.append(self.embed.single(static_patches[:, :num_visible]))
            orders.append(static_order)
        if dynamic_order is not None:
            dynamic_patches = in_order(patches.flatten(2), dynamic_order)
            visible.append(self.embed(dynamic_patches[:, :num_visible, : TUBE_FRAMES * pixels]))
            orders.append(dynamic_order)
        assert len(orders) > 0, "one of the branches must be wanted"
        of_clips = None if sensors is None else sensors.repeat(len(orders))
        decoded = self._decode(torch.cat(visible), torch.cat(orders), num_visible, of_clips)

        static = recon = pred = None
        if static_order is not None:
            static = self.static_head(decoded[: len(patches), num_visible:])
        if dynamic_order is not None:
            tokens = decoded[-len(patches) :]
            # the 4-frame head, in two parts: frames 1-3 are wanted at masked patches only
            weights = self.dynamic_head.weight.split((TUBE_FRAMES * pixels, pixels))
            biases = self.dynamic_head.bias.split((TUBE_FRAMES * pixels, pixels))
            recon = F.linear(tokens[:, num_visible:], weights[0], biases[0])
            pred = F.linear(tokens, weights[1], biases[1])
        return Predictions(static, recon, pred, static_patches, dynamic_patches)

    def _decode(self, visible: Tensor, order: Tensor, num_visible: int, sensors: Tensor | None) -> Tensor:
        """Tokens of visible patches [B, n, D], orders [B, N] -> decoded tokens of all patches in that order."""
        encoded = self.to_decoder(self.encoder(visible, order[:, :num_visible], sensors))
        masked = self.mask_token.to(encoded.dtype).expand(len(order), order.shape[1] - num_visible, -1)
        tokens = torch.cat((encoded, masked), dim=1) + F.embedding(order, self.decoder_positions)
        return self.decoder_norm(self.decoder_blocks(tokens))

    def encode_tokens(self, patches: Tensor, sensors: Tensor | None = None) -> Tensor:
        """Encoded tokens of whole frames, nothing masked: patches [B, N, T, P] -> [B, N, D].

        One frame (T = 1) is embedded as the static branch embeds it; of 3 or more, frames 1-3 are embedded as a tube.

        Raises:
            ValueError: T is 2 or 0.
        """
        if patches.shape[2] == 1:
            tokens = self.embed.single(patches[:, :, 0])
        elif patches.shape[2] >= TUBE_FRAMES:
            tokens = self.embed(patches[:, :, :TUBE_FRAMES].flatten(2))
        else:
            raise ValueError(f"{patches.shape[2]} frames a clip; give 1, or {TUBE_FRAMES} or more")
        order = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
        return self.encoder(tokens, order, sensors)

    def encode(self, patches: Tensor, sensors: Tensor | None = None) -> Tensor:
        """Features of whole frames, [B, D]: the mean of `encode_tokens`."""
        return self.encode_tokens(patches, sensors).mean(dim=1)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
