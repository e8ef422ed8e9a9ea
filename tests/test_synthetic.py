"""The procedural GelSight: seeds, labels, physics, and likeness to real frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.config import SyntheticConfig
from model.data.synthetic import GEL_MM, INDENTERS, MOTIONS, Press, generate, make_press, plan_press, press_of, render

SIZE = (32, 48)


def resting(press: Press) -> Press:
    """The press with the indenter lifted and the gel let go."""
    zeros = {name: np.zeros_like(getattr(press, name)) for name in ("depth_mm", "shear_mm", "twist")}
    return dataclasses.replace(press, **zeros)


def test_equal_seeds_give_equal_frames_and_other_seeds_others():
    frames, labels = generate(SyntheticConfig(sequences=3, frames=6), SIZE)
    again, _ = generate(SyntheticConfig(sequences=3, frames=6), SIZE)
    other, _ = generate(SyntheticConfig(sequences=3, frames=6, seed=1), SIZE)
    assert frames.shape == (3, 6, *SIZE, 3)
    assert frames.dtype == np.uint8
    assert labels.depth_mm.shape == labels.slip.shape == (3, 6)
    np.testing.assert_array_equal(frames, again)
    assert (frames != other).any()


def test_a_sequence_does_not_depend_on_how_many_are_asked_for():
    few, _ = generate(SyntheticConfig(sequences=2, frames=5), SIZE)
    many, _ = generate(SyntheticConfig(sequences=5, frames=5), SIZE)
    np.testing.assert_array_equal(few, many[:2])


def test_the_global_random_state_is_neither_used_nor_changed():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state that must stay untouched
    frames, _ = generate(SyntheticConfig(sequences=1, frames=4), SIZE)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(99)  # noqa: NPY002
    np.testing.assert_array_equal(frames, generate(SyntheticConfig(sequences=1, frames=4), SIZE)[0])


def test_every_indenter_and_motion_occurs():
    plans = [press_of(SyntheticConfig(), index) for index in range(96)]
    assert {plan.indenter for plan in plans} == set(INDENTERS)
    assert {plan.motion for plan in plans} == set(MOTIONS)
    assert len(INDENTERS) >= 5


@given(seed=st.integers(0, 2**32), frames=st.integers(4, 40))
@settings(deadline=None, max_examples=60)
def test_labels_are_true_of_the_press(seed, frames):
    press = plan_press(np.random.default_rng(seed), frames)
    slid = np.hypot(*(press.centre_mm - press.centre_mm[0]).T)
    dragged = np.hypot(*press.shear_mm.T)
    if press.motion != "slide":
        assert not press.slip.any()
        assert not dragged.any()
        assert not slid.any()
    # slip is where the indenter has gone further than the gel followed, in contact; elsewhere in contact it sticks
    in_contact = press.depth_mm > 0
    assert not (press.slip & ~in_contact).any()
    np.testing.assert_array_equal(press.slip, (slid - dragged > 1e-5) & in_contact)
    assert (press.depth_mm >= 0).all()
    assert press.depth_mm.max() <= 1.0
    if press.motion != "twist":
        assert not press.twist.any()
        assert (press.angle == press.angle[0]).all()


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_the_gel_is_dragged_no_further_than_friction_allows(seed):
    press = plan_press(np.random.default_rng(seed), 16)
    assert (np.hypot(*press.shear_mm.T) <= 1.1 * press.depth_mm + 1e-5).all()
    assert (np.abs(press.centre_mm) < np.array(GEL_MM[::-1])).all()


def test_slides_stick_before_they_slip():
    slides = [plan for plan in (press_of(SyntheticConfig(), i) for i in range(96)) if plan.motion == "slide"]
    moved = [np.hypot(*(plan.centre_mm - plan.centre_mm[0]).T) > 0 for plan in slides]
    sticking = [(moving & ~plan.slip & (plan.depth_mm > 0)).any() for moving, plan in zip(moved, slides, strict=True)]
    assert np.mean(sticking) > 0.5
    assert np.mean([plan.slip.any() for plan in slides]) > 0.7


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=10)
def test_a_flat_gel_equals_the_background(seed):
    press = resting(plan_press(np.random.default_rng(seed), 4))
    flat = render(press, SIZE)
    np.testing.assert_allclose(flat, np.broadcast_to(flat[0], flat.shape), atol=1e-3)
    without_dots = render(dataclasses.replace(press, marker_radius_mm=-1.0), SIZE)[0]
    y, x = np.meshgrid(np.linspace(-1, 1, 2 * SIZE[0]), np.linspace(-1, 1, 2 * SIZE[1]), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, y**3], -1)
    fine = np.exp(terms @ press.background.T)
    background = fine.reshape(SIZE[0], 2, SIZE[1], 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(without_dots, np.minimum(background, 255), rtol=1e-3)


@pytest.mark.parametrize("indenter", list(INDENTERS))
def test_every_indenter_leaves_a_clear_imprint_where_it_touches_and_none_far_away(indenter):
    press = plan_press(np.random.default_rng(3), 4)
    pressed = dataclasses.replace(
        resting(press),
        indenter=indenter,
        size=1.0,
        depth_mm=np.full(4, 0.6, np.float32),
        centre_mm=np.full((4, 2), -2.0, np.float32),
        marker_radius_mm=-1.0,
    )
    flat = dataclasses.replace(pressed, depth_mm=np.zeros(4, np.float32))
    change = np.abs(render(pressed, SIZE) - render(flat, SIZE))[0].max(axis=-1)
    assert change.max() > 25
    assert change[-3:, -3:].max() < 0.5


def test_larger_images_are_the_same_press():
    press = plan_press(np.random.default_rng(5), 4)
    small, large = render(press, (40, 40)), render(press, (160, 160))
    shrunk = large.reshape(4, 40, 4, 40, 4, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small).mean() < 3


def test_neighbouring_frames_differ_as_much_as_real_ones():
    frames, _ = generate(SyntheticConfig(sequences=24), (48, 48))
    change = np.abs(np.diff(frames.astype(float), axis=1)).mean()
    assert 0.4 < change < 2.0  # of 255; scripts/compare_synthetic.py measures real ones
    mean, std = frames.mean(axis=(0, 1, 2, 3)), frames.std(axis=(0, 1, 2, 3))
    np.testing.assert_allclose(mean, [68.2, 97.5, 114.7], rtol=0.1)
    np.testing.assert_allclose(std, [30.2, 20.1, 32.0], rtol=0.25)


def test_sensor_noise_is_small_and_the_only_difference_from_the_clean_frames():
    config = SyntheticConfig(frames=4)
    noisy, press = make_press(config, 2, SIZE)
    difference = noisy - render(press, SIZE)
    assert 0.3 < difference.std() < 0.6  # noise, and rounding to whole grey levels
    assert abs(difference.mean()) < 0.05
