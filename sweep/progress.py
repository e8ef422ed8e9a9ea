"""Live progress in the terminal: a line per finished trial, and what is running, best so far and time left below.

On a terminal the last lines are redrawn; elsewhere (a log file, CI) there are plain lines only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sweep.study import Outcome, Record

QUIET_AT_MOST_S = 30.0  # without a terminal: say something at least so often


class Progress:
    """A `Watcher` that prints. Use as a context manager around the run.

    Args:
        console: where to.
        num_trials: of the whole sweep.
        done: trials that ended in an earlier session.
        epochs: of a full trial.
        find: trial id -> its record in the study.
        sign: 1 where the metric is minimised, -1 where it is maximised.
        metric: name of the metric.
        on_ended: called with a trial that ended, before its line is printed.
        competing: the trials are in search of the best one; False for runs that only count together.
    """

    def __init__(
        self,
        console: Console,
        num_trials: int,
        done: int,
        epochs: int,
        find: Callable[[str], Record],
        sign: float,
        metric: str,
        on_ended: Callable[[Record], None],
        competing: bool = True,
    ) -> None:
        self._console = console
        self._num_trials = num_trials
        self._done = self._done_before = done
        self._epochs = epochs
        self._find = find
        self._sign = sign
        self._metric = metric
        self._on_ended = on_ended
        self._competing = competing
        self._running: dict[str, tuple[int, float | None]] = {}  # trial -> (epochs, value)
        self._best: tuple[float, str] | None = None
        self._started = time.monotonic()
        self._last_line = self._started
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._renderable, transient=True)

    def __enter__(self) -> Self:
        self._print(f"starting Ray; then a line for each trial that ended, with its {self._metric}", style="dim")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def note_best(self, record: Record) -> None:
        """Compare with a trial that trained to its end, also one of an earlier session."""
        value = record.value
        if not self._competing or record.outcome is not Outcome.COMPLETE or value is None:
            return
        if self._best is None or self._sign * value < self._sign * self._best[0]:
            self._best = (value, record.trial)

    # --- Watcher ---

    def started(self, trial: str) -> None:
        """A trial began."""
        self._running[trial] = (0, None)

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None:
        """A trial ended an epoch."""
        self._running[trial] = (epochs, metrics.get(self._metric))
        if not self._console.is_terminal and time.monotonic() - self._last_line > QUIET_AT_MOST_S:
            self._print(self._status())

    def ended(self, trial: str) -> None:
        """A trial ended."""
        self._running.pop(trial, None)
        record = self._find(trial)
        self._on_ended(record)
        if record.outcome is Outcome.RUNNING:
            self._print(f"trial {trial}  interrupted; --resume goes on with it")
            return
        self._done += 1
        self.note_best(record)
        self._print(self._trial_line(record, trial))

    def warning(self, text: str) -> None:
        """A line that must not be overlooked."""
        self._print(f"note: {text}", style="yellow")

    # --- text ---

    def _trial_line(self, record: Record, trial: str) -> str:
        values = "  ".join(f"{name} {_short(value)}" for name, value in record.values.items())
        ended = {
            Outcome.COMPLETE: f"{record.epochs} epochs",
            Outcome.PRUNED: f"stopped early, {record.epochs} epoch{'s' if record.epochs > 1 else ''}",
            Outcome.DIVERGED: f"diverged: {record.reason}",
            Outcome.FAILED: f"failed: {record.reason}",
        }[record.outcome]
        has_value = record.value is not None and record.outcome is not Outcome.DIVERGED
        value = f"{record.value:.4f}" if has_value else "none"
        preset = f"  [{record.preset}]" if record.preset else ""
        best = "  best so far" if self._best is not None and self._best[1] == trial else ""
        width = len(str(self._num_trials))
        count = f"{self._done:>{width}}/{self._num_trials}"
        return f"{count}  trial {trial}  {value:>6}  {values}  ({ended}){preset}{best}"

    def _status(self) -> str:
        best = "none yet" if self._best is None else f"{self._best[0]:.4f} (trial {self._best[1]})"
        standing = f"best {self._metric} {best}, " if self._competing else ""
        return f"{self._done} of {self._num_trials} trials done, {standing}{self._time_left()}"

    def _time_left(self) -> str:
        finished = self._done - self._done_before
        elapsed = time.monotonic() - self._started
        if finished == 0:
            return f"{_duration(elapsed)} so far"
        left = elapsed / finished * (self._num_trials - self._done)
        return f"{_duration(elapsed)} so far, about {_duration(left)} left"

    def _renderable(self) -> Group:
        lines = []
        for trial, (epochs, value) in sorted(self._running.items()):
            shown = "" if value is None else f"  {self._metric} {value:.4f}"
            filled = round(20 * epochs / self._epochs)
            bar = "━" * filled + "╌" * (20 - filled)
            lines.append(Text(f"  trial {trial}  {bar}  epoch {epochs}/{self._epochs}{shown}", style="dim"))
        return Group(*lines, Text(self._status(), style="bold"))

    def _print(self, text: str, style: str | None = None) -> None:
        self._last_line = time.monotonic()
        self._console.print(Text(text, style=style or ""), soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
