"""The rules of `early_terminate` as a pruner of Optuna, for studies that are driven without Ray.

They decide as the schedulers of sweep/schedulers.py, which a test holds, and under the same rules: a preset is never
stopped, and each epoch counts once. Several epochs, of several trials, may have arrived since the last look.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from statistics import median

import numpy as np
from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from sweep.spec import SweepSpec

# attributes of a trial
PRESET = "preset"  # name of the preset that it came from, if any
EPOCHS = "epochs"  # how many its config has
MEDIAN_MIN_TRIALS = 3  # as in Ray's MedianStoppingRule: fewer running means make a poor median


class Rule(ABC):
    """Is told every value in the order of arrival, and says which trials should not go on."""

    @abstractmethod
    def stops(self, trial: int, epochs: int, value: float) -> bool:
        """Take a trial's value (the smaller, the better) after so many epochs; whether it should stop there."""


class Halving(Rule):
    """ASHA (Li et al. 2018), as Ray's AsyncHyperBandScheduler with one bracket.

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
        self._rungs: list[tuple[float, dict[int, float]]] = [(first * eta**k, {}) for k in reversed(range(count))]

    def stops(self, trial: int, epochs: int, value: float) -> bool:
        for rung, rewards in self._rungs:
            if epochs >= rung and trial not in rewards:
                cutoff = np.percentile(list(rewards.values()), self._percent) if rewards else -math.inf
                rewards[trial] = -value
                return bool(-value < cutoff)
        return False


class MedianRule(Rule):
    """The median stopping rule (Golovin et al. 2017): see `MedianStopping` in sweep/schedulers.py.

    Args:
        min_epochs: epochs before the first decision.
        min_trials: other trials that must have come as far before one is stopped.
    """

    def __init__(self, min_epochs: int, min_trials: int) -> None:
        self._min_epochs = min_epochs
        self._min_trials = min_trials
        self._best: dict[int, float] = {}
        self._settled: dict[int, tuple[float, int]] = {}  # by trial: sum and number of values from `min_epochs` on
        self._means: dict[int, dict[int, float]] = defaultdict(dict)  # by epochs done, then by trial

    def stops(self, trial: int, epochs: int, value: float) -> bool:
        self._best[trial] = min(value, self._best.get(trial, math.inf))
        if epochs < self._min_epochs:
            return False
        total, count = self._settled.get(trial, (0.0, 0))
        self._settled[trial] = total + value, count + 1
        others = list(self._means[epochs].values())
        self._means[epochs][trial] = (total + value) / (count + 1)
        return len(others) >= self._min_trials and self._best[trial] > median(others)


class EpochPruner(BasePruner):
    """A rule behind Optuna's interface. A trial's step is its epoch, from 0; PRESET and EPOCHS are its attributes.

    Args:
        rule: what decides.
        sign: 1 where smaller values are better, -1 where larger ones are.
    """

    def __init__(self, rule: Rule, sign: float = 1.0) -> None:
        self._rule = rule
        self._sign = sign
        self._seen: Counter[int] = Counter()  # values that the rule was told, by trial
        self._stopped: set[int] = set()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell the rule what is new in the whole study; whether it has said that this trial should stop."""
        for other in study.get_trials(deepcopy=False):
            self._catch_up(other)
        return trial.number in self._stopped

    def _catch_up(self, trial: FrozenTrial) -> None:
        number, values = trial.number, trial.intermediate_values
        if number in self._stopped or self._seen[number] == len(values):
            return
        last = trial.user_attrs.get(EPOCHS, math.inf)
        for epoch in sorted(values)[self._seen[number] :]:
            self._seen[number] += 1
            stop = self._rule.stops(number, epoch + 1, self._sign * values[epoch])
            if stop and epoch + 1 < last and trial.user_attrs.get(PRESET) is None:
                self._stopped.add(number)  # what it did later, until it was really stopped, would not be there in Ray
                return


def make_pruner(spec: SweepSpec) -> BasePruner:
    """The pruner of the spec's `early_terminate`.

    One that stops nothing where there is no such block or its first decision would come at a trial's end.
    """
    stop, longest = spec.early_terminate, max_epochs(spec)
    if stop is None or stop.first_rung >= longest:
        return NopPruner()
    rule: Rule
    if stop.type == "median":
        rule = MedianRule(stop.first_rung, stop.min_trials or MEDIAN_MIN_TRIALS)
    else:
        rule = Halving(stop.first_rung, longest, stop.eta)
    return EpochPruner(rule, 1.0 if spec.metric.goal == "minimize" else -1.0)


def max_epochs(spec: SweepSpec) -> int:
    """Epochs of the longest trial."""
    searched = spec.space.parameters.get("epochs")
    if searched is not None and searched.count is not None:
        return int(max(searched.value_at(index) for index in range(searched.count)))
    return spec.space.to_config(spec.trainer, {}).epochs
