"""Our study behind Ray Tune's Searcher interface.

Ray's own OptunaSearch tells a trial that ASHA stopped as complete, loses a NaN, and pickles the study; here every trial
is told as what it is, and the study's journal is all the state there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.tune.search import Searcher

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.blocks import MetricSettings
from sweep.faults import storage_trouble
from sweep.stopping import StopRules
from sweep.study import Outcome, Suggestion, SweepStudy

# what a trial reports to Tune beside the metrics
EPOCHS = "epochs_done"
FINISHED, DIVERGED, INTERRUPTED = "trial_finished", "trial_diverged", "trial_interrupted"
SECONDS = "time_total_s"  # Tune's own: what the trial took so far in this session
PAUSED = "trial_paused"  # a part of the trial is done, and it goes on in another (sweep/population.py)
REFUSED = "trial_refused"  # bad input that only the worker could find: why; it is not tried again
TROUBLE = "trial_trouble"  # of an interrupted trial: why its machine cannot go on, such as a full disk


class StudySearcher(Searcher):
    """Hands Ray the trials of a SweepStudy.

    Args:
        study: where suggestions come from and results go.
        num_trials: how many trials to hand out in all, unfinished ones of an earlier driver included.
        metrics: what is optimised; the first one is what Ray knows of.
        make_config: a suggestion's values -> the trial's config; ConfigError makes it a failed trial.
        crash_reason: number of a crashed trial -> why.
        rules: when no new trial starts although some are left; they are fed with what the study holds.

    Attributes:
        stopping: set it to hand out no more trials. One that crashes from then on is left for a later driver.
        on_trouble: is called where the study or a worker cannot write: with what is wrong. Nothing is kept from then
            on of what the study could not take.
        machine_failed: whether a trial that crashed did so because Ray itself has died; it is left for a later driver.
        ended_by: the stop rule that ended the search; None where all trials were handed out.
    """

    def __init__(
        self,
        study: SweepStudy,
        num_trials: int,
        metrics: Sequence[MetricSettings],
        make_config: Callable[[dict[str, Any]], TrainConfig],
        crash_reason: Callable[[int], str],
        rules: StopRules | None = None,
    ) -> None:
        super().__init__(metric=metrics[0].name, mode="min" if metrics[0].goal == "minimize" else "max")
        self._metrics = tuple(metric.name for metric in metrics)
        self._study = study
        self._left = num_trials
        self._make_config = make_config
        self._crash_reason = crash_reason
        self._rules = rules
        self._numbers: dict[str, int] = {}
        self._seconds: dict[str, float] = {}  # of running trials, as last reported
        self.stopping = False
        self.on_trouble: Callable[[str], None] = lambda trouble: None
        self.machine_failed: Callable[[], bool] = lambda: False
        self._broken = False  # the study could not be written
        self.ended_by: str | None = None
        if rules is not None:
            for record in study.ended():
                rules.ended(record.outcome, record.objectives, record.seconds)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Ray's call for a new trial."""
        if not self._broken:
            with self._kept():
                return self._suggested(trial_id)
        return str(Searcher.FINISHED)

    def _suggested(self, trial_id: str) -> dict[str, Any] | str:
        while self._left > 0 and not self.stopping:
            if self._rules is not None and not self._study.unfinished:  # what was begun is ended
                self.ended_by = self._rules.reason(self._study.search_s)
                if self.ended_by is not None:
                    break
            self._left -= 1
            suggestion: Suggestion = self._study.next()
            try:
                config = self._make_config(suggestion.values)
            except ConfigError as error:  # each value is good, this combination is not
                self._finish(suggestion.number, Outcome.FAILED, 0.0, str(error))
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
        self._seconds[trial_id] = result.get(SECONDS, 0.0)
        if self._broken:
            return
        with self._kept():
            self._study.report(self._numbers[trial_id], result[EPOCHS] - 1, *self._values(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray's word that the trial ended: finished, stopped by the scheduler, diverged, interrupted or crashed."""
        if result is not None and result.get(TROUBLE):
            self.on_trouble(str(result[TROUBLE]))
        if self._broken:
            return
        with self._kept():
            self._ended(trial_id, result, error)

    def _ended(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        number = self._numbers.pop(trial_id)
        known = self._seconds.pop(trial_id, 0.0)
        seconds = (result or {}).get(SECONDS, known)  # Ray tells no result of a crash
        if error and (self.stopping or self.machine_failed()):  # what ends the sweep may have killed it
            self._study.release(number, seconds)
        elif error:
            self._finish(number, Outcome.FAILED, seconds, self._crash_reason(number))
        elif result is None or result.get(INTERRUPTED):
            self._study.release(number, seconds)
        elif result.get(REFUSED):
            self._finish(number, Outcome.FAILED, seconds, str(result[REFUSED]))
        elif result.get(DIVERGED):
            self._finish(number, Outcome.DIVERGED, seconds, str(result[DIVERGED]))
        else:
            values = self._values(result)
            self._study.report(number, result[EPOCHS] - 1, *values)
            lacking = [name for name, value in zip(self._metrics, values, strict=True) if not math.isfinite(value)]
            if lacking:  # a skill without a baseline, for example
                self._finish(number, Outcome.FAILED, seconds, f"{', '.join(lacking)} has no value")
            elif result.get(FINISHED):
                self._finish(number, Outcome.COMPLETE, seconds)
            else:
                self._finish(number, Outcome.PRUNED, seconds, f"stopped early after {result[EPOCHS]} epochs")

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Within, what the file system refuses is told instead of raised: to Ray it would be a crash of the trial."""
        try:
            yield
        except Exception as error:  # Optuna's lock makes a RuntimeError of what the file system refused
            if (trouble := storage_trouble(error, self._study.folder)) is None:
                raise
            self._broken = True
            self.on_trouble(trouble)

    def _finish(self, number: int, outcome: Outcome, seconds: float, reason: str | None = None) -> None:
        record = self._study.finish(number, outcome, reason, seconds)
        if self._rules is not None:
            self._rules.ended(outcome, record.objectives, record.seconds)

    def _values(self, result: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(result.get(name, math.nan) for name in self._metrics)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's journal holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study's journal holds the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study's journal holds the state."""
