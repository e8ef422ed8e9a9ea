"""Which trials are stopped early: Ray's schedulers, made from a spec, under rules that all of them keep.

A preset is never stopped: the sweep's gain is measured against the presets, and needs them trained to the end. A
diverged trial leaves no NaN among the values that decide on others. A trial is known by our own name for it, which
survives the driver, so that a resumed sweep, which learns from the study, decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from sweep.pruning import MEDIAN_MIN_TRIALS, max_epochs
from sweep.searcher import EPOCHS
from sweep.spec import SweepSpec
from sweep.study import SweepStudy

CONTINUE, STOP = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP)


def make_scheduler(spec: SweepSpec, study: SweepStudy) -> TrialScheduler:
    """The scheduler of the spec's `early_terminate`, which knows what the study's trials have reported so far.

    FIFO, which stops nothing, where there is no such block or its first decision would come at a trial's end.
    """
    stop, epochs = spec.early_terminate, max_epochs(spec)
    if stop is None or stop.first_rung >= epochs:
        return FIFOScheduler()
    metric, mode = spec.metric.name, "min" if spec.metric.goal == "minimize" else "max"
    scheduler: AshaKeepingPresets | MedianStopping
    if stop.type == "median":
        scheduler = MedianStopping(metric, mode, stop.first_rung, stop.min_trials or MEDIAN_MIN_TRIALS)
    else:
        scheduler = AshaKeepingPresets(
            time_attr=EPOCHS,
            metric=metric,
            mode=mode,
            max_t=epochs,
            grace_period=stop.first_rung,
            reduction_factor=stop.eta,
        )
    scheduler.replay(study)
    return scheduler


@dataclass(frozen=True)
class _Named:
    """A trial under our own name; Ray draws a new id in each session."""

    trial_id: str


class AshaKeepingPresets(AsyncHyperBandScheduler):
    """Ray's ASHA (Li et al. 2018), under this module's rules."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not math.isfinite(result.get(self._metric, math.nan)):
            return CONTINUE
        action = super().on_trial_result(tune_controller, _named(trial), result)
        return CONTINUE if _is_preset(trial) and result[self._time_attr] < self._max_t else str(action)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if math.isfinite(result.get(self._metric, math.nan)):
            super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _named(trial))

    def replay(self, study: SweepStudy) -> None:
        """Learn what the study's trials reported."""
        for number, values in study.intermediate_values().items():
            trial = _Named(study.trial_name(number))
            super().on_trial_add(None, trial)
            for epoch in sorted(values):
                super().on_trial_result(None, trial, {self._time_attr: epoch + 1, self._metric: values[epoch]})


class MedianStopping(FIFOScheduler):
    """The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.2).

    After each epoch from `min_epochs` on, a trial is stopped if its best value is worse than the median, over the
    other trials that came as far, of each one's mean value from epoch `min_epochs` to this one.

    It decides as Ray's MedianStoppingRule, which a test holds. Not that class itself: it takes a time that grows with
    all epochs of all trials for each report, counts a trial's last value twice, pauses trials while there are too few
    for a median, and fails on a trial that goes on after the rule would have stopped it, as a preset does.

    Args:
        metric: name of the reported metric.
        mode: "min" or "max".
        min_epochs: epochs before the first decision.
        min_trials: other trials that must have come as far before one is stopped.
    """

    def __init__(self, metric: str, mode: str, min_epochs: int, min_trials: int) -> None:
        super().__init__()
        self._metric = metric
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_epochs = min_epochs
        self._min_trials = min_trials
        self._best: dict[str, float] = {}  # by trial; as all here the smaller, the better
        self._settled: dict[str, tuple[float, int]] = {}  # by trial: sum and number of values from `min_epochs` on
        self._means: dict[int, dict[str, float]] = defaultdict(dict)  # by epochs done, then by trial

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = _named(trial).trial_id
        epochs, value = result.get(EPOCHS, 0), result.get(self._metric, math.nan)
        if not self._note(name, epochs, value) or epochs < self._min_epochs or _is_preset(trial):
            return CONTINUE
        others = [mean for other, mean in self._means[epochs].items() if other != name]
        return STOP if len(others) >= self._min_trials and self._best[name] > median(others) else CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take the last epoch's value, which Tune tells only here."""
        self._note(_named(trial).trial_id, result.get(EPOCHS, 0), result.get(self._metric, math.nan))

    def replay(self, study: SweepStudy) -> None:
        """Learn what the study's trials reported."""
        for number, values in study.intermediate_values().items():
            for epoch in sorted(values):
                self._note(study.trial_name(number), epoch + 1, values[epoch])

    def _note(self, name: str, epochs: int, value: float) -> bool:
        """Keep a value; False where there is none, or it is known: a trial that crashed trains some epochs again."""
        if not math.isfinite(value) or name in self._means[epochs]:
            return False
        value *= self._sign
        self._best[name] = min(value, self._best.get(name, math.inf))
        if epochs >= self._min_epochs:
            total, count = self._settled.get(name, (0.0, 0))
            self._settled[name] = total + value, count + 1
            self._means[epochs][name] = (total + value) / (count + 1)
        return True


def _named(trial: Any) -> _Named:
    return _Named(trial.config["trial"])


def _is_preset(trial: Any) -> bool:
    return trial.config.get("preset") is not None
