"""Pure tensor functions: frames to patches, random masks, the losses of metrics.md.

Shape legend: B clips, T frames of a clip (4), N patches of a frame, n visible ones, P = patch * patch * 3 numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """Mean squared errors, each a 0-dim tensor (metrics.md, Losses)."""

    static: Tensor
    recon: Tensor
    pred: Tensor

    @property
    def dynamic(self) -> Tensor:
        """`recon + pred`, exactly."""
        return self.recon + self.pred


def patchify(frames: Tensor, patch: int) -> Tensor:
    """frames [B, T, H, W, 3] -> patches [B, N, T, P]; any dtype. H and W must be multiples of `patch`."""
    b, t, h, w, c = frames.shape
    grid = frames.reshape(b, t, h // patch, patch, w // patch, patch, c)
    return grid.permute(0, 2, 4, 1, 3, 5, 6).reshape(b, (h // patch) * (w // patch), t, patch * patch * c)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """patches [B, N, T, P] -> frames [B, T, H, W, 3]; the inverse of `patchify` for a (rows, columns) grid."""
    b, _, t, _ = patches.shape
    rows, columns = grid
    cells = patches.reshape(b, rows, columns, t, patch, patch, 3)
    return cells.permute(0, 3, 1, 4, 2, 5, 6).reshape(b, t, rows * patch, columns * patch, 3)


def random_order(batch: int, num_patches: int, generator: torch.Generator) -> Tensor:
    """A random permutation of the patches for each clip, [B, N] on the generator's device.

    The first n of a row are its visible patches, the others are masked: the per-sample shuffling of He et al. 2021. One
    order serves the 3 frames of a tube, so the mask is the same in each (tube masking, Tong et al. 2022).
    """
    noise = torch.rand(batch, num_patches, generator=generator, device=generator.device)
    return noise.argsort(dim=1)


def in_order(tokens: Tensor, order: Tensor) -> Tensor:
    """tokens [B, N, D], order [B, K] -> tokens [B, K, D] taken in that order."""
    return tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything, in float32 whatever autocast did before."""
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
