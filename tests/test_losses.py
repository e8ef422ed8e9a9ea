"""Patches, random orders and mean squared errors, against naive loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.losses import Losses, in_order, mse, patchify, random_order, unpatchify

SIDES = st.integers(1, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(batch=st.integers(1, 3), frames=st.integers(1, 4), rows=SIDES, columns=SIDES, patch=SIDES)
def test_patches_hold_the_pixels_of_their_place_and_go_back_to_the_same_frames(batch, frames, rows, columns, patch):
    clips = torch.rand(batch, frames, rows * patch, columns * patch, 3, generator=generator())
    patches = patchify(clips, patch)
    assert patches.shape == (batch, rows * columns, frames, 3 * patch * patch)
    for row in range(rows):
        for column in range(columns):
            cut = clips[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            assert torch.equal(patches[:, row * columns + column], cut.reshape(batch, frames, -1))
    assert torch.equal(unpatchify(patches, patch, (rows, columns)), clips)


def test_patches_keep_the_type_of_the_frames():
    assert patchify(torch.zeros(1, 4, 8, 8, 3, dtype=torch.uint8), 4).dtype == torch.uint8


@given(batch=st.integers(1, 5), num_patches=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_every_clip_has_its_own_permutation_of_all_patches(batch, num_patches, seed):
    order = random_order(batch, num_patches, generator(seed))
    assert torch.equal(order.sort(dim=1).values, torch.arange(num_patches).expand(batch, -1))
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


def test_tokens_are_taken_in_the_given_order():
    tokens = torch.rand(3, 5, 2, generator=generator())
    order = random_order(3, 5, generator())[:, :4]
    taken = in_order(tokens, order)
    for clip in range(3):
        for place in range(4):
            assert torch.equal(taken[clip, place], tokens[clip, order[clip, place]])


def test_the_error_is_a_mean_over_everything_in_float32_also_of_half_floats():
    prediction, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert mse(prediction, target).item() == pytest.approx((0 + 4 + 9 + 16) / 4)
    assert mse(prediction.bfloat16(), target).dtype == torch.float32


def test_the_dynamic_loss_is_the_sum_of_its_parts():
    losses = Losses(*torch.tensor([0.5, 0.25, 0.125]))
    assert losses.dynamic.item() == 0.375
