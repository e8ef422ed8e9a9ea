"""model/pictures.py: what a pixel of the picture shows, with models that predict what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont
from tiny import tiny_config

from model.batches import Batches
from model.data.clips import load_clips
from model.losses import in_order, targets
from model.mae import JointTactileMAE, Predictions
from model.pictures import (
    FACTORS,
    GAP,
    GROUP_GAP,
    INFERNO,
    LINE,
    MARGIN,
    MASK_COLOUR,
    TEXT_SIZE,
    Group,
    _coloured,
    _factor,
    _fitted,
    reconstruction_grid,
    reconstructions,
)

SIDE, SCALE = 16, 8  # of the tiny frames, magnified
COLUMN = SIDE * SCALE + GAP
TOP = MARGIN + 2 * LINE + GAP + LINE  # of the first row's frames
STATIC, TUBE, FOURTH = (
    MARGIN + columns * COLUMN + groups * (GROUP_GAP - GAP) for groups, columns in ((0, 0), (1, 3), (2, 6))
)


class Perfect(torch.nn.Module):
    """Predicts what its heads should give."""

    def __init__(self, norm_pix: bool) -> None:
        super().__init__()
        self._norm_pix = norm_pix

    def predict(self, patches, static_order, dynamic_order, num_visible, sensors=None):
        wanted = targets(patches, self._norm_pix)
        static = None if static_order is None else in_order(wanted[:, :, 0], static_order[:, num_visible:])
        recon = pred = None
        if dynamic_order is not None:
            recon = in_order(wanted[:, :, :3].flatten(2), dynamic_order[:, num_visible:])
            pred = in_order(wanted[:, :, 3], dynamic_order)
        return Predictions(static, recon, pred, None, None)


def picture_of(config, model=None):
    clips = load_clips(config.data)
    load = Batches(config, clips, torch.device("cpu")).held_out
    model = model or JointTactileMAE(config)
    return reconstructions(model, config, clips, load, clips.mean, clips.std), clips


def panel(picture, left, column, row=0):
    """One frame of the picture, at its own size [SIDE, SIDE, 3]."""
    top = TOP + row * (LINE + SIDE * SCALE + GAP)
    left += column * COLUMN
    return picture[top : top + SIDE * SCALE : SCALE, left : left + SIDE * SCALE : SCALE]


def test_frames_are_shown_as_they_are_a_row_a_clip():
    picture, clips = picture_of(tiny_config(pictures=2))
    frames = clips.held_out.gather(np.array([2, 6]))  # 2 of 8, evenly spread
    for row in range(2):
        assert np.array_equal(panel(picture, STATIC, 0, row), frames[row, 0])
        assert np.array_equal(panel(picture, TUBE, 0, row), frames[row, 1])
        assert np.array_equal(panel(picture, FOURTH, 0, row), frames[row, 3])


@pytest.mark.parametrize("left", [STATIC, TUBE])
def test_visible_patches_are_pasted_from_the_input_and_masked_ones_painted_over(left):
    picture, _ = picture_of(tiny_config(pictures=1))
    frame, masked, restored = (panel(picture, left, column) for column in range(3))
    hidden = (masked == MASK_COLOUR).all(axis=-1)
    assert hidden.mean() == 0.75
    assert hidden[::4, ::4].repeat(4, 0).repeat(4, 1).tolist() == hidden.tolist()  # whole patches
    assert np.array_equal(masked[~hidden], frame[~hidden])
    assert np.array_equal(restored[~hidden], frame[~hidden])
    assert not np.array_equal(restored[hidden], frame[hidden])


@pytest.mark.parametrize("norm_pix", [False, True])
def test_a_perfect_model_restores_the_frames_and_makes_no_error(norm_pix):
    picture, _ = picture_of(tiny_config(pictures=1, norm_pix_loss=norm_pix), Perfect(norm_pix))
    for left, truth, made in ((STATIC, 0, 2), (TUBE, 0, 2), (FOURTH, 0, 1)):
        difference = panel(picture, left, truth).astype(int) - panel(picture, left, made)
        assert abs(difference).max() <= 1
    assert panel(picture, FOURTH, 2).max() <= panel(picture, FOURTH, 3).max()


def test_the_masks_are_those_of_the_evaluation_whatever_the_run_masks():
    pictures = [
        picture_of(tiny_config(pictures=1, **changes))[0]
        for changes in ({}, {"mask_ratio": 0.5}, {"mask_kind": "block"}, {"seed": 5})
    ]
    masked = [panel(picture, STATIC, 1) for picture in pictures]
    assert all(np.array_equal(masked[0], other) for other in masked)


def test_equal_weights_give_equal_pictures_and_training_mode_stays():
    model = JointTactileMAE(tiny_config()).train()
    first, second = (picture_of(tiny_config(), model)[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert model.training


@pytest.mark.parametrize(("mode", "columns"), [("static", 3), ("dynamic", 7), ("joint", 10), ("alternating", 10)])
def test_a_branch_that_is_not_trained_is_not_shown(mode, columns):
    picture, _ = picture_of(tiny_config(mode=mode, pictures=1))
    groups = {3: 1, 7: 2, 10: 3}[columns]
    assert picture.shape[1] == 2 * MARGIN + columns * COLUMN - GAP + (groups - 1) * (GROUP_GAP - GAP)


def test_more_pictures_than_clips_give_a_row_for_each_clip():
    picture, clips = picture_of(tiny_config(pictures=50))
    rows = (len(picture) - 2 * MARGIN - 3 * LINE - GAP) / (LINE + SIDE * SCALE + GAP)
    assert rows == len(clips.held_out) == 8


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(48, 48, 3), (48, 64, 3), (224, 224, 1), (72, 96, 2), (8, 200, 16)]
)
def test_small_frames_are_magnified_by_a_whole_number(height, width, scale):
    frames = np.zeros((1, height, width, 3), np.uint8)
    picture = reconstruction_grid([Group("group", {"one": frames})], ["clip"], "")
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * MARGIN + 4 * LINE + 2 * GAP + height * scale, 2 * MARGIN + width * scale, 3)


def test_texts_stay_within_their_room():
    font = ImageFont.load_default(TEXT_SIZE)
    long = "a_very_long_name_of_a_sequence/" * 9
    assert _fitted("short", 100, font) == "short"
    assert _fitted(long, 100, font).endswith("...")
    assert font.getlength(_fitted(long, 100, font)) <= 100
    frames = np.full((1, 16, 16, 3), 255, np.uint8)
    picture = reconstruction_grid([Group(long, {long: frames})], [long], long)
    assert picture[:, -MARGIN:].min() == 255


@given(st.floats(1e-4, 1.0))
def test_errors_are_amplified_as_far_as_they_stay_on_the_scale(error):
    factor = _factor(np.full((2, 4, 4), error))
    larger = [f for f in FACTORS if f > factor]
    assert factor * error <= 1 + 1e-9
    assert not larger or larger[0] * error > 1


def test_colours_run_from_black_to_yellow_and_get_lighter_all_the_way():
    colours = _coloured(np.linspace(0, 1, 101)).astype(float)
    assert colours[0].tolist() == INFERNO[0].tolist()
    assert colours[-1].tolist() == INFERNO[-1].tolist()
    assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > 0).all()
    assert _coloured(np.array([5.0])).tolist() == [INFERNO[-1].tolist()]
