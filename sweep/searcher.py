"""Our study behind Ray Tune's Searcher interface.

Ray's own OptunaSearch tells a trial that ASHA stopped as complete, loses a NaN, and pickles the study; here every trial
is told as what it is, and the study's journal is all the state there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.study import Outcome, Suggestion, SweepStudy

# what a trial reports to Tune beside the metrics
EPOCHS = "epochs_done"
FINISHED, DIVERGED, INTERRUPTED = "trial_finished", "trial_diverged", "trial_interrupted"
REFUSED = "trial_refused"  # bad input that only the worker could find: why; it is not tried again


class StudySearcher(Searcher):
    """Hands Ray the trials of a SweepStudy.

    Args:
        study: where suggestions come from and results go.
        num_trials: how many trials to hand out in all, unfinished ones of an earlier driver included.
        metric: name of the reported metric.
        mode: "min" or "max".
        make_config: a suggestion's values -> the trial's config; ConfigError makes it a failed trial.
        crash_reason: number of a crashed trial -> why.
        target: no new trial is started once a finished one has reached this value (W&B's `metric.target`).
    """

    def __init__(
        self,
        study: SweepStudy,
        num_trials: int,
        metric: str,
        mode: str,
        make_config: Callable[[dict[str, Any]], TrainConfig],
        crash_reason: Callable[[int], str],
        target: float | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._study = study
        self._left = num_trials
        self._make_config = make_config
        self._crash_reason = crash_reason
        self._target = target
        self._numbers: dict[str, int] = {}
        self.stopping = False
        self._target_reached = any(
            record.outcome is Outcome.COMPLETE and record.value is not None and self._reaches_target(record.value)
            for record in study.records()
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Ray's call for a new trial."""
        while self._left > 0 and not self.stopping and not (self._target_reached and not self._study.unfinished):
            self._left -= 1
            suggestion: Suggestion = self._study.next()
            try:
                config = self._make_config(suggestion.values)
            except ConfigError as error:  # each value is good, this combination is not
                self._study.finish(suggestion.number, Outcome.FAILED, str(error))
                continue
            self._numbers[trial_id] = suggestion.number
            return {
                "trial": suggestion.trial,
                "values": suggestion.values,
                "preset": suggestion.preset,
                "config": config.model_dump(mode="json"),
            }
        return str(Searcher.FINISHED)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher; there is nothing in it that a restored one could use."""
        return {}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray's word of an epoch after which the trial goes on."""
        self._study.report(self._numbers[trial_id], result[EPOCHS] - 1, result.get(self.metric, math.nan))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray's word that the trial ended: finished, stopped by the scheduler, diverged, interrupted or crashed."""
        number = self._numbers.pop(trial_id)
        if error:
            self._study.finish(number, Outcome.FAILED, self._crash_reason(number))
        elif result is None or result.get(INTERRUPTED):
            self._study.release(number)
        elif result.get(REFUSED):
            self._study.finish(number, Outcome.FAILED, str(result[REFUSED]))
        elif result.get(DIVERGED):
            self._study.finish(number, Outcome.DIVERGED, str(result[DIVERGED]))
        else:
            value = result.get(self.metric, math.nan)
            self._study.report(number, result[EPOCHS] - 1, value)
            if not math.isfinite(value):  # a skill without a baseline, for example
                self._study.finish(number, Outcome.FAILED, f"{self.metric} has no value")
            elif result.get(FINISHED):
                self._study.finish(number, Outcome.COMPLETE)
                self._target_reached |= self._reaches_target(value)
            else:
                self._study.finish(number, Outcome.PRUNED, f"stopped early after {result[EPOCHS]} epochs")

    def _reaches_target(self, value: float) -> bool:
        if self._target is None:
            return False
        return value <= self._target if self.mode == "min" else value >= self._target

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study's journal holds the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study's journal holds the state."""
