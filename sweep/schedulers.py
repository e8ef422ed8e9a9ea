"""Early stopping behind Ray's scheduler interface; the rules are those of sweep/early_stopping.py."""

from __future__ import annotations

import math
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweep.early_stopping import EarlyStopping, early_stopping
from sweep.searcher import EPOCHS
from sweep.spec import SweepSpec
from sweep.study import SweepStudy

CONTINUE, STOP = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP)


def make_scheduler(spec: SweepSpec, study: SweepStudy) -> TrialScheduler:
    """The scheduler of the spec's `early_terminate`, which knows what the study's trials have reported so far.

    Ray's own FIFO, which stops nothing, where no rule would.
    """
    stopping = early_stopping(spec)
    return FIFOScheduler() if stopping is None else StoppingScheduler(spec.metric.name, stopping, study)


class StoppingScheduler(FIFOScheduler):
    """Ray's trials in the order of their coming, some of them stopped early.

    Args:
        metric: name of the reported metric.
        stopping: what decides.
        study: it learns from what its trials reported before.
    """

    def __init__(self, metric: str, stopping: EarlyStopping, study: SweepStudy) -> None:
        super().__init__()
        self._metric = metric
        self._stopping = stopping
        for number, values in study.intermediate_values().items():
            for epoch in sorted(values):
                stopping.stops(study.trial_name(number), epoch + 1, values[epoch])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return STOP if self._stops(trial, result) else CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take the last epoch's value, which Tune tells only here."""
        self._stops(trial, result)

    def _stops(self, trial: Any, result: dict[str, Any]) -> bool:
        config = trial.config  # with our own name of the trial: Ray draws a new id in each session
        epochs, value = result.get(EPOCHS, 0), result.get(self._metric, math.nan)
        return self._stopping.stops(config["trial"], epochs, value, preset=config.get("preset") is not None)
