"""Random and block masks: how many patches, where, and how often."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.masks import BLOCK_ASPECT, block_order, draw_order, random_order


@st.composite
def grids_and_visible(draw) -> tuple[tuple[int, int], int]:
    grid = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda g: math.prod(g) > 1))
    return grid, draw(st.integers(1, math.prod(grid) - 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_permutation(order: torch.Tensor) -> bool:
    return torch.equal(order.sort(dim=1).values, torch.arange(order.shape[1]).expand(len(order), -1))


def masked_places(order: torch.Tensor, num_visible: int, columns: int) -> list[set[tuple[int, int]]]:
    """(row, column) of the masked patches of each clip."""
    return [{divmod(place, columns) for place in row} for row in order[:, num_visible:].tolist()]


# --- random --------------------------------------------------------------------------------------------------------


@given(batch=st.integers(1, 5), num_patches=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_every_clip_has_its_own_permutation_of_all_patches(batch, num_patches, seed):
    order = random_order(batch, num_patches, generator(seed))
    assert is_permutation(order)
    assert torch.equal(order, random_order(batch, num_patches, generator(seed)))


def test_orders_of_two_clips_and_of_two_calls_differ():
    draw = generator()
    first, second = random_order(2, 64, draw), random_order(2, 64, draw)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_every_patch_is_masked_about_equally_often():
    masked = random_order(4000, 16, generator())[:, 4:]
    share = torch.bincount(masked.flatten(), minlength=16) / 4000
    assert share.min() > 0.72
    assert share.max() < 0.78


# --- blocks --------------------------------------------------------------------------------------------------------


@given(case=grids_and_visible(), seed=st.integers(0, 2**31))
def test_a_block_is_a_rectangle_but_for_an_end_of_its_outer_column(case, seed):
    (rows, columns), num_visible = case
    order = block_order(6, (rows, columns), num_visible, generator(seed))
    assert is_permutation(order)
    for places in masked_places(order, num_visible, columns):
        assert len(places) == rows * columns - num_visible
        tops, lefts = zip(*places, strict=True)
        inside = {(y, x) for y in range(min(tops), max(tops) + 1) for x in range(min(lefts), max(lefts) + 1)}
        cut = sorted(inside - places)
        if cut:
            (column,) = {x for _, x in cut}
            assert column in (min(lefts), max(lefts))
            ends = [y for y, _ in cut]
            assert ends == list(range(ends[0], ends[-1] + 1))  # next to each other
            assert ends[0] == min(tops) or ends[-1] == max(tops)


def test_blocks_have_the_aspect_ratios_of_v_jepa():
    sizes = []
    for places in masked_places(block_order(400, (24, 24), 476, generator()), 476, 24):  # 100 masked
        ys, xs = zip(*places, strict=True)
        sizes.append((max(ys) - min(ys) + 1) / (max(xs) - min(xs) + 1))
    low, high = BLOCK_ASPECT
    assert min(sizes) >= low - 0.1  # heights and widths are whole patches
    assert max(sizes) <= high + 0.1
    assert len(set(sizes)) >= 4


def test_blocks_lie_anywhere_in_the_grid_and_differ_between_clips():
    places = masked_places(block_order(600, (6, 6), 27, generator()), 27, 6)  # 9 masked
    tops = torch.tensor([min(y for y, _ in block) for block in places])
    lefts = torch.tensor([min(x for _, x in block) for block in places])
    for starts in (tops, lefts):
        assert starts.min() == 0
        assert starts.max() >= 3
    share = torch.zeros(6, 6)
    for block in places:
        for place in block:
            share[place] += 1 / len(places)
    assert torch.allclose(share, share.flip(0), atol=0.08)  # no side is preferred
    assert torch.allclose(share, share.flip(1), atol=0.08)


def test_a_block_is_cut_short_at_each_of_its_corners_as_often():
    blocks = masked_places(block_order(800, (6, 6), 25, generator()), 25, 6)  # 11 masked: 12 places, one cut
    corners = Counter()
    for places in blocks:
        tops, lefts = zip(*places, strict=True)
        inside = {(y, x) for y in range(min(tops), max(tops) + 1) for x in range(min(lefts), max(lefts) + 1)}
        if len(inside) == 12:
            [(y, x)] = inside - places
            corners[y == min(tops), x == min(lefts)] += 1
    assert len(corners) == 4
    assert min(corners.values()) > 0.2 * corners.total()


def test_the_same_generator_draws_the_same_blocks():
    first, second = (block_order(8, (5, 7), 10, generator(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["random", "block"])
def test_orders_are_drawn_by_the_kind_that_a_config_names(kind):
    order = draw_order(kind, 4, (3, 5), 6, generator(1))
    wanted = random_order(4, 15, generator(1)) if kind == "random" else block_order(4, (3, 5), 6, generator(1))
    assert torch.equal(order, wanted)
