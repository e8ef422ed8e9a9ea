"""The learning rate: warm-up, cosine, ends."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import TrainConfig
from model.schedule import lr_at
from tests.tiny import tiny_config

ROUNDING = 1 + 1e-12


@st.composite
def schedules(draw: st.DrawFn) -> tuple[TrainConfig, list[float]]:
    """A config and its learning rates, update by update."""
    epochs = draw(st.integers(1, 12))
    updates_per_epoch = draw(st.integers(1, 9))
    config = tiny_config(
        epochs=epochs,
        warmup_epochs=draw(st.floats(0, epochs)),
        base_lr=draw(st.floats(1e-6, 10)),
        accum_iter=draw(st.integers(1, 4)),
    )
    config = config.model_copy(update={"min_lr": draw(st.floats(0, config.peak_lr))})
    return config, [lr_at(update, config, updates_per_epoch) for update in range(epochs * updates_per_epoch)]


@given(schedules())
def test_rates_are_above_zero_until_the_end_and_never_above_the_peak(schedule):
    config, rates = schedule
    assert all(0 < rate <= config.peak_lr * ROUNDING for rate in rates)


@given(schedules())
def test_rates_rise_to_one_summit_and_fall_after_it(schedule):
    _, rates = schedule
    summit = rates.index(max(rates))
    assert all(before <= after * ROUNDING for before, after in pairwise(rates[: summit + 1]))
    assert all(before * ROUNDING >= after for before, after in pairwise(rates[summit:]))


@given(schedules())
def test_after_the_warm_up_no_rate_is_below_min_lr(schedule):
    config, rates = schedule
    warmup = config.warmup_epochs * len(rates) / config.epochs
    assert all(rate * ROUNDING >= config.min_lr for update, rate in enumerate(rates) if update >= warmup)


def test_warm_up_is_a_straight_line_to_the_peak_and_wastes_no_update():
    config = tiny_config(epochs=4, warmup_epochs=2)
    rates = [lr_at(update, config, 5) for update in range(11)]
    assert rates == pytest.approx([config.peak_lr * (update + 1) / 10 for update in range(10)] + [config.peak_lr])


def test_the_cosine_is_halfway_at_half_time_and_ends_at_min_lr():
    config = tiny_config(epochs=4, warmup_epochs=0, min_lr=1e-4)
    assert lr_at(0, config, 5) == pytest.approx(config.peak_lr)
    assert lr_at(10, config, 5) == pytest.approx((config.peak_lr + 1e-4) / 2)
    assert lr_at(15, config, 5) == pytest.approx(1e-4 + (config.peak_lr - 1e-4) * (1 + math.cos(0.75 * math.pi)) / 2)
    assert lr_at(20, config, 5) == pytest.approx(1e-4)


def test_the_peak_follows_the_effective_batch():
    config = tiny_config(base_lr=1e-3, batch_size=8, accum_iter=2, warmup_epochs=0)
    assert lr_at(0, config, 3) == pytest.approx(6.25e-5)  # the joint recipe's rate


def test_a_warm_up_as_long_as_the_training_only_rises():
    config = tiny_config(epochs=3, warmup_epochs=3)
    rates = [lr_at(update, config, 4) for update in range(12)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(config.peak_lr)
