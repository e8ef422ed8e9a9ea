"""Which patches a clip hides: at random, or a block. Drawn on the generator's device, without waiting for it.

A mask is an order [B, N] of the patches, visible ones first: the first n of a row are visible, the others are masked.
One order serves the 3 frames of a tube, so the mask is the same in each (tube masking, Tong et al. 2022).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

BLOCK_ASPECT = (0.75, 1.5)  # rows : columns of a block, as V-JEPA draws it (Bardes et al. 2024)


def draw_order(
    kind: Literal["random", "block"], batch: int, grid: tuple[int, int], num_visible: int, generator: torch.Generator
) -> Tensor:
    """Masks of `config.mask_kind` for the patches of a (rows, columns) grid, [B, N] on the generator's device."""
    if kind == "block":
        return block_order(batch, grid, num_visible, generator)
    return random_order(batch, math.prod(grid), generator)


def random_order(batch: int, num_patches: int, generator: torch.Generator) -> Tensor:
    """A random permutation of the patches for each clip, [B, N]: the per-sample shuffling of He et al. 2021."""
    noise = torch.rand(batch, num_patches, generator=generator, device=generator.device)
    return noise.argsort(dim=1)


def block_order(batch: int, grid: tuple[int, int], num_visible: int, generator: torch.Generator) -> Tensor:
    """Masked patches form one rectangle of random shape and place, [B, N]; after BEiT's blocks (Bao et al. 2022).

    Exactly N - num_visible patches are masked. Where they fill no whole rectangle, its first or last column is cut
    short, at the top or at the bottom. Rows : columns is drawn log-uniformly from BLOCK_ASPECT, as far as the grid
    leaves room for it; the place is uniform among those where the rectangle fits.
    """
    rows, columns = grid
    masked = rows * columns - num_visible
    draws = torch.rand(5, batch, 1, generator=generator, device=generator.device)
    low, high = map(math.log, BLOCK_ASPECT)
    aspect = torch.exp(low + (high - low) * draws[0])
    height = torch.sqrt(masked * aspect).round().long().clamp(-(-masked // columns), rows)
    width = (masked + height - 1) // height  # rounded up; the clamp above makes it fit
    top = (draws[1] * (rows - height + 1)).long()
    left = (draws[2] * (columns - width + 1)).long()

    place = torch.arange(rows * columns, device=generator.device)
    row, column = place // columns - top, place % columns - left  # in the rectangle, [B, N]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row = torch.where(draws[3] < 0.5, row, height - 1 - row)
    column = torch.where(draws[4] < 0.5, column, width - 1 - column)
    surplus = height * width - masked
    cut = (column == width - 1) & (row >= height - surplus)
    return (inside & ~cut).to(torch.uint8).argsort(dim=1, stable=True)
