"""model/features.py: which frames features come from, and the effective rank against matrices whose rank is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from model.batches import Batch, Batches
from model.data.clips import load_clips
from model.data.spread import evenly_spread
from model.features import (
    FEATURE_BATCH,
    RANK_CLIPS,
    clip_features,
    clip_tokens,
    effective_rank,
    frames_seen,
    held_out_rank,
)
from model.mae import JointTactileMAE

CONFIG = tiny_config(data={"synthetic": {"sequences": 24}})  # 100 training clips: more than one batch


@pytest.fixture(scope="module")
def load():
    return Batches(CONFIG, load_clips(CONFIG.data), torch.device("cpu")).plain


@pytest.fixture
def model():
    return JointTactileMAE(CONFIG)


# --- features ------------------------------------------------------------------------------------------------------


def test_features_are_the_mean_of_the_tokens_of_frames_1_to_3(model, load):
    numbers = np.arange(FEATURE_BATCH + 5)
    tokens = clip_tokens(model, load, numbers)
    assert tokens.shape == (len(numbers), CONFIG.num_patches, CONFIG.encoder.width)
    assert torch.equal(clip_features(model, load, numbers), tokens.mean(dim=1))
    with torch.no_grad():
        whole = model.eval().encode_tokens(load(torch.from_numpy(numbers)).patches[:, :, :3])
    assert torch.allclose(tokens, whole, atol=1e-5)


@pytest.mark.parametrize(("mode", "seen"), [("joint", [0, 1, 2]), ("dynamic", [0, 1, 2]), ("static", [2])])
def test_only_a_model_of_single_frames_is_shown_one(mode, seen):
    assert list(range(4))[frames_seen(tiny_config(mode=mode))] == seen


def test_frame_4_is_never_seen(model, load):
    def without_frame_4(numbers):
        patches, sensors = load(numbers)
        patches[:, :, 3] = math.nan
        return Batch(patches, sensors)

    numbers = np.arange(4)
    assert torch.equal(clip_features(model, without_frame_4, numbers), clip_features(model, load, numbers))


@pytest.mark.parametrize("training", [True, False])
def test_extraction_leaves_mode_and_gradients_as_they_were(model, load, training):
    model.train(training)
    assert not clip_features(model, load, np.arange(2)).requires_grad
    assert model.training is training
    assert torch.is_grad_enabled()


def test_the_rank_is_of_a_bounded_number_of_clips_evenly_spread(model, load):
    asked = []

    def counting(numbers):
        asked.extend(numbers.tolist())
        return load(numbers % 50)

    held_out_rank(model, counting, 1000)
    assert asked == evenly_spread(1000, RANK_CLIPS).tolist()


@given(st.integers(0, 500), st.integers(1, 500))
def test_evenly_spread_numbers_ascend_within_the_range_at_nearly_equal_distances(count, at_most):
    numbers = evenly_spread(count, at_most)
    assert len(numbers) == min(count, at_most)
    assert all(0 <= number < count for number in numbers)
    steps = np.diff(numbers)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


# --- effective rank ------------------------------------------------------------------------------------------------


def directions(values: list[float], width: int = 12, seed: int = 0) -> torch.Tensor:
    """Centred features [2k, width] whose singular values are sqrt(2) * values, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0][: len(values)]
    scaled = torch.tensor(values, dtype=torch.float64)[:, None] * axes
    return torch.cat((scaled, -scaled))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_equal_spread_in_k_directions_has_rank_k(count):
    assert effective_rank(directions([0.7] * count)) == pytest.approx(count)


def test_uneven_spread_has_the_exponential_of_its_entropy():
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(directions([3.0, 1.0])) == pytest.approx(math.exp(entropy))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_offset_and_rotation_do_not_matter_and_the_rank_stays_in_its_bounds(values, scale, offset):
    rank = effective_rank(directions(values))
    assert 1 - 1e-6 <= rank <= len(values) + 1e-6
    assert effective_rank(directions(values, seed=1) * scale + offset) == pytest.approx(rank, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1234.567])
def test_features_that_differ_by_rounding_only_have_rank_0(value):
    noise = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    features = torch.full((64, 32), value) * (1 + 1e-7 * noise)
    assert effective_rank(features) == 0.0


def test_small_differences_beside_a_large_offset_count():
    features = torch.full((64, 32), 10.0) + 0.01 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    assert effective_rank(features) > 20


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_rank_of_features_that_are_not_finite_is_nan(bad):
    features = torch.ones(4, 3)
    features[1, 2] = bad
    assert math.isnan(effective_rank(features))


def test_the_rank_is_at_most_one_less_than_the_clips():
    assert effective_rank(torch.randn(5, 100, generator=torch.Generator().manual_seed(0))) <= 4
