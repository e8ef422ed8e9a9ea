"""Intervals hold as often as they say, and verdicts say no more than the intervals do."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.statistics import LEVEL, Estimate, Verdict, mean_interval, paired_gain, smallest_shown, verdict

numbers = st.floats(-1e6, 1e6)
several = st.lists(numbers, min_size=2, max_size=12)


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, start=1))


def gain_of(values: list[float], baseline: list[float], goal: str = "minimize", comparisons: int = 1) -> Estimate:
    gain = paired_gain(by_seed(values), by_seed(baseline), goal, comparisons)
    assert gain is not None
    return gain


def test_an_interval_is_that_of_the_textbook() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert estimate.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)


@pytest.mark.parametrize(
    ("seeds", "comparisons", "spreads"), [(2, 1, 8.98), (2, 3, 27.0), (3, 1, 2.48), (3, 3, 4.42), (5, 3, 1.77)]
)
def test_what_few_seeds_can_show_is_as_the_docstring_says(seeds: int, comparisons: int, spreads: float) -> None:
    assert smallest_shown(seeds, comparisons) == pytest.approx(spreads, abs=0.01)


def test_one_value_has_a_mean_and_no_interval_and_none_has_neither() -> None:
    assert mean_interval([0.7]) == Estimate(0.7, 1, None, None)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="two or more"):
        smallest_shown(1)


@given(several, st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(values: list[float], random: Random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert mean_interval(shuffled) == mean_interval(values)


@given(numbers, st.integers(2, 9))
def test_equal_values_have_an_interval_of_no_width(value: float, count: int) -> None:
    assert mean_interval([value] * count) == Estimate(value, count, value, value)


@given(several, st.sampled_from(["minimize", "maximize"]))
def test_equal_configs_show_no_difference(values: list[float], goal: str) -> None:
    assert verdict(gain_of(values, values, goal)) is Verdict.NO_DIFFERENCE


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9), st.integers(1, 1000))
def test_the_same_difference_for_every_seed_is_shown_however_small(values: list[int], step: int) -> None:
    worse = [float(value + step) for value in values]
    better = [float(value) for value in values]
    gain = gain_of(better, worse)
    assert (gain.low, gain.mean, gain.high) == (step, step, step)
    assert verdict(gain) is Verdict.BETTER
    assert verdict(gain_of(worse, better)) is Verdict.WORSE


@given(several, st.data())
def test_swapping_the_configs_or_the_goal_turns_the_gain_round(values: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(numbers, min_size=len(values), max_size=len(values)))
    gain = gain_of(values, other)
    assert gain_of(other, values) == gain.opposite
    assert gain_of(values, other, "maximize") == gain.opposite
    turned = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    assert verdict(gain.opposite) is turned.get(verdict(gain), Verdict.NO_DIFFERENCE)


@given(several, several, st.integers(2, 6))
def test_more_comparisons_never_show_more(values: list[float], other: list[float], comparisons: int) -> None:
    paired = list(zip(values, other, strict=False))
    one = gain_of([a for a, _ in paired], [b for _, b in paired])
    many = gain_of([a for a, _ in paired], [b for _, b in paired], comparisons=comparisons)
    assert many.mean == one.mean
    assert verdict(many) in (verdict(one), Verdict.NO_DIFFERENCE)


def test_a_difference_is_of_the_seeds_that_both_have() -> None:
    gain = paired_gain({1: 1.0, 2: 1.0, 3: 9.0}, {2: 1.5, 1: 2.0, 4: 0.0}, "minimize")
    assert gain is not None
    assert (gain.n, gain.mean) == (2, 0.75)
    assert paired_gain({1: 1.0}, {2: 1.0}, "minimize") is None


def test_what_a_seed_does_to_both_configs_cancels() -> None:
    seeds = [0.0, 10.0, -20.0, 5.0]
    values = [seed + noise for seed, noise in zip(seeds, (0.01, 0.0, -0.01, 0.0), strict=True)]
    assert verdict(gain_of(values, [seed + 1.0 for seed in seeds])) is Verdict.BETTER


def test_a_config_with_a_diverged_run_is_never_better_nor_anything_worse_than_such_a_baseline() -> None:
    good, bad = Estimate(1.0, 4, 0.5, 1.5), Estimate(-1.0, 4, -1.5, -0.5)
    assert verdict(good, diverged=True) is Verdict.NO_DIFFERENCE
    assert verdict(bad, diverged=True) is Verdict.WORSE
    assert verdict(bad, baseline_diverged=True) is Verdict.NO_DIFFERENCE
    assert verdict(good, baseline_diverged=True) is Verdict.BETTER


@pytest.mark.parametrize("gain", [None, Estimate(3.0, 1, None, None), Estimate(1.0, 3, 0.0, 2.0)])
def test_without_an_interval_beside_0_no_difference_is_shown(gain: Estimate | None) -> None:
    assert verdict(gain) is Verdict.NO_DIFFERENCE


@pytest.mark.parametrize("seeds", [3, 5])
def test_all_intervals_hold_together_in_95_of_100_confirmations_with_a_pick_among_them(seeds: int) -> None:
    """Four configs against a baseline, none different from it; runs of a seed are correlated, spreads differ."""
    rng = np.random.default_rng(7)
    repeats, configs = 1500, 4
    shared = rng.normal(size=(repeats, 1, seeds))
    own = rng.normal(size=(repeats, configs + 1, seeds)) * np.array([1.0, 0.3, 1.0, 2.0, 0.5])[:, None]
    runs = shared + own
    held = wrong = 0
    for values in runs.tolist():
        gains = [gain_of(row, values[0], comparisons=configs) for row in values[1:]]
        held += all(gain.low <= 0 <= gain.high for gain in gains)  # type: ignore[operator]
        picked = max(gains, key=lambda gain: gain.mean)
        wrong += verdict(picked) is Verdict.BETTER
    three_errors = 3 * math.sqrt(LEVEL * (1 - LEVEL) / repeats)
    assert held / repeats >= LEVEL - three_errors  # Bonferroni: at least, and more where gains are correlated
    assert wrong / repeats <= (1 - LEVEL) / 2 + three_errors


def test_a_single_interval_holds_in_95_of_100() -> None:
    rng = np.random.default_rng(8)
    repeats = 3000
    held = 0
    for values in rng.normal(loc=2.0, size=(repeats, 4)).tolist():
        estimate = mean_interval(values)
        held += estimate.low <= 2.0 <= estimate.high  # type: ignore[operator]
    assert held / repeats == pytest.approx(LEVEL, abs=3 * math.sqrt(LEVEL * (1 - LEVEL) / repeats))


@pytest.mark.parametrize(
    ("estimate", "text", "interval"),
    [
        (Estimate(0.67123, 5, 0.66812, 0.67434), "0.6712", "0.6681 to 0.6743"),
        (Estimate(-0.0063666, 3, -0.035741, 0.023008), "-0.006", "-0.036 to 0.023"),
        (Estimate(1234.5, 3, 1000.0, 1469.0), "1234", "1000 to 1469"),
        (Estimate(0.123456, 1, None, None), "0.1235", None),
        (Estimate(0.5, 3, 0.5, 0.5), "0.5", "0.5 to 0.5"),
    ],
)
def test_numbers_are_written_to_the_digits_that_the_interval_leaves(
    estimate: Estimate, text: str, interval: str | None
) -> None:
    assert (estimate.text, estimate.range_text) == (text, interval)
