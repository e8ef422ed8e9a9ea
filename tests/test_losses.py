"""Patches, targets and mean squared errors, against naive loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.losses import Losses, in_order, mse, patch_statistics, patchify, targets, unpatchify
from model.masks import random_order

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
    halves = torch.linspace(0, 3, 100).bfloat16()
    assert mse(halves, torch.ones(100).bfloat16()).item() == pytest.approx((halves.double() - 1).square().mean().item())


def test_the_dynamic_loss_is_the_sum_of_its_parts():
    losses = Losses(*torch.tensor([0.5, 0.25, 0.125]))
    assert losses.dynamic.item() == 0.375


def test_a_branch_that_was_left_out_has_no_dynamic_loss():
    assert Losses(torch.tensor(0.5), None, None).dynamic is None


# --- targets -------------------------------------------------------------------------------------------------------


def test_targets_are_the_patches_themselves_unless_normalised():
    patches = torch.rand(2, 3, 4, 12, generator=generator())
    assert targets(patches, norm_pix=False) is patches


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_each_patch_of_each_frame_is_normalised_by_its_own_mean_and_unbiased_variance(seed, scale):
    patches = scale * torch.rand(2, 3, 4, 12, generator=generator(seed))
    wanted = targets(patches, norm_pix=True)
    for index in ((0, 0, 0), (1, 2, 3)):
        numbers = patches[index].double()
        mean = numbers.sum() / 12
        variance = ((numbers - mean) ** 2).sum() / 11
        assert torch.allclose(wanted[index].double(), (numbers - mean) / (variance + 1e-6).sqrt(), atol=1e-3)
    mean, std = patch_statistics(patches)
    assert torch.allclose(wanted * std + mean, patches, rtol=1e-4, atol=1e-5 * scale)


def test_a_patch_of_one_colour_has_a_target_of_zeros():
    assert torch.equal(targets(torch.full((1, 12), 0.3), norm_pix=True), torch.zeros(1, 12))


def test_normalised_targets_of_half_floats_are_computed_in_float32():
    assert targets(torch.rand(2, 12).half(), norm_pix=True).dtype == torch.float32
