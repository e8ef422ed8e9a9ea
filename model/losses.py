"""Pure tensor functions: frames to patches, the targets of the losses, the losses of metrics.md.

Shape legend: B clips, T frames of a clip (4), N patches of a frame, n visible ones, P = patch * patch * 3 numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NORM_PIX_FLOOR = 1e-6  # added to the variance of a patch (He et al. 2021)


class Losses(NamedTuple):
    """Mean squared errors, each a 0-dim tensor (metrics.md, Losses); None where the branch was not computed."""

    static: Tensor | None
    recon: Tensor | None
    pred: Tensor | None

    @property
    def dynamic(self) -> Tensor | None:
        """`recon + pred`, exactly."""
        return None if self.recon is None or self.pred is None else self.recon + self.pred


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


def in_order(tokens: Tensor, order: Tensor) -> Tensor:
    """tokens [B, N, D], order [B, K] -> tokens [B, K, D] taken in that order."""
    batch, count, width = tokens.shape
    # whole rows by one index each: `gather` would read an index per number
    firsts = torch.arange(0, batch * count, count, device=order.device)
    rows = (order + firsts[:, None]).flatten()
    return tokens.reshape(batch * count, width).index_select(0, rows).view(batch, -1, width)


def targets(patches: Tensor, norm_pix: bool) -> Tensor:
    """What the heads are to give for patches [..., P] of single frames: the pixels, or those normalised per patch.

    With `norm_pix` (config.norm_pix_loss) each patch of each frame has its own mean taken off and is divided by its own
    standard deviation, in float32 (He et al. 2021, section 4.1).
    """
    if not norm_pix:
        return patches
    mean, std = patch_statistics(patches)
    return (patches.float() - mean) / std


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [..., 1] of patches [..., P]; `target * std + mean` are the pixels again."""
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)  # unbiased, as in MAE
    return mean, (variance + NORM_PIX_FLOOR).sqrt()


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything, in float32 whatever autocast did before."""
    return torch.nn.functional.mse_loss(prediction.float(), target.float())
