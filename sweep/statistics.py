"""Means over seeds, differences to a baseline, and what may be said of them. Pure: numbers in, verdicts out.

A search picks the best of many trials, so the best trial's own value is too good: it was picked for luck too. What is
compared here comes from fresh runs, several seeds for each config, and none of it is a value of the search.

- An interval is Student's t over seeds. A difference is taken seed by seed (same seed = a pair), so that what a seed
  does to both configs cancels.
- Several configs are looked at and the best one is named, so the intervals hold all at once: with k of them each has
  the level 1 - 0.05 / k (Bonferroni; Dunn 1961, "Multiple comparisons among means", JASA 56). Whichever is named after
  a look at the numbers, its interval still holds. Bonferroni and not Holm, because Holm's verdicts have no intervals
  that agree with them; and not Dunnett, who needs equal variances.
- "better" and "worse" mean that the interval of the difference leaves out 0, "no difference shown" that it does not:
  this is not proof of equality.

What few seeds can show: the mean difference must exceed this many standard deviations of the paired differences
(`smallest_shown`), whatever the metric.

| configs compared | 2 seeds | 3 seeds | 5 seeds | 10 seeds |
|---|---|---|---|---|
| 1 | 8.98 | 2.48 | 1.24 | 0.72 |
| 3 | 27.0 | 4.42 | 1.77 | 0.93 |

So 3 seeds show large differences only. They also rest on t's assumption that differences are about normal: without it
(signs alone), n seeds never come below p = 2^(1 - n), which is 0.25 for 3, 0.06 for 5 and below 0.05 from 6 seeds on.

The intervals are for a number of seeds fixed beforehand: adding seeds until the verdict pleases makes them too narrow.
For variance between runs see Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks", MLSys.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from scipy import stats

from sweep.blocks import Goal, sign_of

LEVEL = 0.95  # of all intervals of one kind together
DIGITS = 2  # of half an interval, when a number is written: further ones are noise


class Verdict(StrEnum):
    """What may be said of a config."""

    BETTER = "better"
    NO_DIFFERENCE = "no difference shown"
    WORSE = "worse"
    BASELINE = "baseline"  # the one that the others are compared with
    NO_BASELINE = "no baseline"  # there is nothing to compare with


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and its interval; `low` and `high` are None where one value gives none."""

    mean: float
    n: int
    low: float | None
    high: float | None

    @property
    def opposite(self) -> Estimate:
        """Of the values with the other sign."""
        turned = [None if end is None else -end for end in (self.high, self.low)]
        return Estimate(-self.mean, self.n, *turned)

    @property
    def text(self) -> str:
        """The mean, to the digits that the interval leaves."""
        return self._written(self.mean)

    @property
    def range_text(self) -> str | None:
        """The interval, such as `0.668 to 0.674`; None where there is none."""
        if self.low is None or self.high is None:
            return None
        return f"{self._written(self.low)} to {self._written(self.high)}"

    def _written(self, number: float) -> str:
        half = 0.0 if self.low is None else self.mean - self.low
        if half < 1e-12 * abs(self.mean) or half == 0:
            return f"{number:.4g}"
        return f"{number:.{max(DIGITS - 1 - math.floor(math.log10(half)), 0)}f}"


def mean_interval(values: Sequence[float], num_intervals: int = 1) -> Estimate:
    """Mean of finite values with a t-interval, one of `num_intervals` that hold together at LEVEL.

    Equal values give an interval of width 0, so an equal gain on every seed is shown however small it is: the seed does
    not change it, and training again would give it again. Raises ValueError without a value.
    """
    if not values:
        raise ValueError("no values: there is no mean of nothing")
    mean = statistics.mean(values)  # exact, as is stdev: equal values have no spread from rounding
    if len(values) < 2:
        return Estimate(mean, 1, None, None)
    half = smallest_shown(len(values), num_intervals) * statistics.stdev(values)
    return Estimate(mean, len(values), mean - half, mean + half)


def paired_gain(
    values: Mapping[int, float],
    baseline: Mapping[int, float],
    goal: Goal,
    num_comparisons: int = 1,
) -> Estimate | None:
    """How much better than the baseline, over the seeds that both have; positive is better, whatever the goal.

    Args:
        values, baseline: seed -> value of the metric after the last epoch.
        goal: of the metric.
        num_comparisons: configs that are compared with this baseline.

    Returns:
        None where no seed is common to both.
    """
    gains = [sign_of(goal) * (baseline[seed] - values[seed]) for seed in sorted(values.keys() & baseline.keys())]
    return mean_interval(gains, num_comparisons) if gains else None


def verdict(gain: Estimate | None, *, diverged: bool = False, baseline_diverged: bool = False) -> Verdict:
    """What the interval of a gain says; no interval says nothing.

    A diverged run has no value, so the mean of the others flatters its config. One with a diverged run is therefore
    never "better", and nothing is called "worse" than a baseline that has one.
    """
    if gain is None or gain.low is None or gain.high is None:
        return Verdict.NO_DIFFERENCE
    if gain.low > 0 and not diverged:
        return Verdict.BETTER
    if gain.high < 0 and not baseline_diverged:
        return Verdict.WORSE
    return Verdict.NO_DIFFERENCE


@lru_cache(maxsize=256)
def smallest_shown(num_seeds: int, num_intervals: int = 1) -> float:
    """Half the width of an interval in standard deviations: a mean difference must exceed it to be shown.

    Raises ValueError for fewer than two seeds: one value has no spread.
    """
    if num_seeds < 2:
        raise ValueError(f"{num_seeds} seeds; an interval needs two or more")
    quantile = stats.t.ppf(1 - (1 - LEVEL) / (2 * num_intervals), num_seeds - 1)
    return float(quantile) / math.sqrt(num_seeds)
