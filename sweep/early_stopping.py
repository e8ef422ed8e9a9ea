"""Which trials are stopped early: the rules of `early_terminate`, for Ray's scheduler and for the agents' study alike.

Pure: values in, decisions out. All rules work under the same promises, which `EarlyStopping` keeps: a preset is never
stopped, since the sweep's gain is measured against the presets and needs them trained to the end; NaN is not among the
values that decide on others; each epoch of a trial counts once. A trial is known by a name that survives the driver, so
that a resumed sweep, which learns from the study, decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable
from statistics import median

import numpy as np

from sweep.spec import SweepSpec

MEDIAN_MIN_TRIALS = 3  # as in Ray's MedianStoppingRule: fewer running means make a poor median


class Rule(ABC):
    """Is told each finite value once, in the order of arrival, and says which trials should not go on."""

    @abstractmethod
    def stops(self, trial: Hashable, epochs: int, value: float) -> bool:
        """Take a trial's value (the smaller, the better) after so many epochs; whether it should stop there."""


class AshaRule(Rule):
    """Asynchronous successive halving (Li et al. 2018), as Ray's AsyncHyperBandScheduler with one bracket.

    Args:
        first: epochs before the first decision.
        longest: epochs of the longest trial.
        eta: 1/eta of the trials go on after each decision.
    """

    def __init__(self, first: int, longest: int, eta: float) -> None:
        self._percent = (1 - 1 / eta) * 100
        count = int(np.log(longest / first) / np.log(eta) + 1)
        # highest first; each with the negated values, by trial, of those that came to it: the larger, the better, so
        # that the cutoff is Ray's to the last bit
        self._rungs: list[tuple[float, dict[Hashable, float]]] = [(first * eta**k, {}) for k in reversed(range(count))]

    def stops(self, trial: Hashable, epochs: int, value: float) -> bool:
        for rung, rewards in self._rungs:
            if epochs >= rung and trial not in rewards:
                cutoff = np.percentile(list(rewards.values()), self._percent) if rewards else -math.inf
                rewards[trial] = -value
                return bool(-value < cutoff)
        return False


class MedianRule(Rule):
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.2).

    After each epoch from `min_epochs` on, a trial is stopped if its best value is worse than the median, over the
    other trials that came as far, of each one's mean value from epoch `min_epochs` to this one.

    It decides as Ray's MedianStoppingRule. Not that class itself: it takes a time that grows with all epochs of all
    trials for each report, counts a trial's last value twice, pauses trials while there are too few for a median, and
    fails on a trial that goes on after the rule would have stopped it, as a preset does.

    Args:
        min_epochs: epochs before the first decision.
        min_trials: other trials that must have come as far before one is stopped.
    """

    def __init__(self, min_epochs: int, min_trials: int) -> None:
        self._min_epochs = min_epochs
        self._min_trials = min_trials
        self._best: dict[Hashable, float] = {}
        self._settled: dict[Hashable, tuple[float, int]] = {}  # sum and number of values from `min_epochs` on
        self._means: dict[int, dict[Hashable, float]] = defaultdict(dict)  # by epochs done, then by trial

    def stops(self, trial: Hashable, epochs: int, value: float) -> bool:
        self._best[trial] = min(value, self._best.get(trial, math.inf))
        if epochs < self._min_epochs:
            return False
        total, count = self._settled.get(trial, (0.0, 0))
        self._settled[trial] = total + value, count + 1
        others = list(self._means[epochs].values())
        self._means[epochs][trial] = (total + value) / (count + 1)
        return len(others) >= self._min_trials and self._best[trial] > median(others)


class EarlyStopping:
    """A rule under the promises of this module.

    Args:
        rule: what decides.
        sign: 1 where smaller values are better, -1 where larger ones are.
    """

    def __init__(self, rule: Rule, sign: float = 1.0) -> None:
        self._rule = rule
        self._sign = sign
        self._last: dict[Hashable, int] = {}  # epochs that were told, by trial

    def stops(self, trial: Hashable, epochs: int, value: float, *, preset: bool = False) -> bool:
        """Take a trial's value after so many epochs; whether it should stop there.

        False where the epoch is known: a trial that crashed trains some epochs again.
        """
        if not math.isfinite(value) or epochs <= self._last.get(trial, 0):
            return False
        self._last[trial] = epochs
        return self._rule.stops(trial, epochs, self._sign * value) and not preset


def early_stopping(spec: SweepSpec) -> EarlyStopping | None:
    """The rule of the spec's `early_terminate`; None where there is no such block or its first decision would come at a
    trial's end."""
    stop, longest = spec.early_terminate, max_epochs(spec)
    if stop is None or stop.first_rung >= longest:
        return None
    rule: Rule
    if stop.type == "median":
        rule = MedianRule(stop.first_rung, stop.min_trials or MEDIAN_MIN_TRIALS)
    else:
        rule = AshaRule(stop.first_rung, longest, stop.eta)
    return EarlyStopping(rule, spec.metric.sign)


def max_epochs(spec: SweepSpec) -> int:
    """Epochs of the longest trial."""
    searched = spec.space.parameters.get("epochs")
    if searched is not None and searched.count is not None:
        return int(max(searched.value_at(index) for index in range(searched.count)))
    return spec.space.to_config(spec.trainer, {}).epochs
