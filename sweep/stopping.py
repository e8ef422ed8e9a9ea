"""When a search is over before its run_cap: target, time, cost, plateau. Pure: what happened in, a reason out."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.blocks import MetricSettings, Stop
from sweep.outcome import Outcome


class StopRules:
    """Tells whether a new trial may start. Feed `ended` with every trial that ended, also of earlier sessions.

    Args:
        stop: the rules.
        metrics: what is optimised; a target holds for its own metric.
        gpus: of a trial.
    """

    def __init__(self, stop: Stop, metrics: Sequence[MetricSettings], gpus: float = 0.0) -> None:
        self._stop = stop
        self._metrics = metrics
        self._gpus = gpus
        self._best: float | None = None  # the smaller, the better
        self._since_best = 0
        self._accelerator_s = 0.0
        self._reached: str | None = None

    def ended(self, outcome: Outcome, values: Sequence[float], seconds: float) -> None:
        """Take a trial that ended; `values` are its last ones, `seconds` what it took."""
        self._accelerator_s += self._gpus * seconds
        if outcome is Outcome.COMPLETE:
            self._note_targets(values)
            first = self._metrics[0].sign * values[0]
            delta = self._stop.plateau.min_delta if self._stop.plateau is not None else 0.0
            if self._best is None or first < self._best - delta:
                self._best, self._since_best = first, 0
                return
        if outcome is not Outcome.FAILED:  # a crash tells nothing about the space
            self._since_best += 1

    def _note_targets(self, values: Sequence[float]) -> None:
        for metric, value in zip(self._metrics, values, strict=True):
            if metric.target is not None and metric.sign * value <= metric.sign * metric.target:
                self._reached = f"{metric.name} {value:.6g} reached its target {metric.target:g}"

    def reason(self, search_s: float) -> str | None:
        """Why no new trial starts, after so many seconds of search; None where one may."""
        stop = self._stop
        if self._reached is not None:
            return self._reached
        if stop.time_budget_s is not None and search_s >= stop.time_budget_s:
            return f"search.stop.time_budget_s: {stop.time_budget_s:g} s are over"
        hours = self._accelerator_s / 3600
        if stop.accelerator_hours is not None and hours >= stop.accelerator_hours:
            return f"search.stop.accelerator_hours: trials used {hours:.3g} of {stop.accelerator_hours:g}"
        plateau = stop.plateau
        if plateau is not None and self._since_best >= plateau.trials:
            return (
                f"search.stop.plateau: none of the last {self._since_best} trials was better than the best by more "
                f"than {plateau.min_delta:g}"
            )
        return None
