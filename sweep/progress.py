"""Progress in the terminal: a line per finished trial; below it, on a terminal, a live view of what runs.

Elsewhere (a log file, CI) there are plain lines only, findings about trials among them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweep.live_view import STYLES, LiveView, Notice, RunningTrial
from sweep.study import Outcome, Record
from sweep.words import duration, number

QUIET_AT_MOST_S = 30.0  # without a terminal: say something at least so often
MOST_WARNINGS = 10  # without a terminal: findings that are warnings get a line, so many; critical ones always do
SHOWN = {  # of ended trials
    Outcome.COMPLETE: "complete",
    Outcome.PRUNED: "stopped early",
    Outcome.DIVERGED: "diverged",
    Outcome.FAILED: "failed",
}


class Progress:
    """A `Watcher` that prints. Use as a context manager around the run.

    Args:
        console: where to.
        num_trials: of the whole sweep.
        earlier: trials that ended in an earlier session.
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
        earlier: Sequence[Record],
        epochs: int,
        find: Callable[[str], Record],
        sign: float,
        metric: str,
        on_ended: Callable[[Record], None],
        competing: bool = True,
    ) -> None:
        self._console = console
        self._num_trials = num_trials
        self._done = self._done_before = len(earlier)
        self._outcomes = Counter(record.outcome for record in earlier)
        self._epochs = epochs
        self._find = find
        self._sign = sign
        self._metric = metric
        self._on_ended = on_ended
        self._competing = competing
        self._page: str | None = None  # of W&B's project
        self._epochs_seen = 0
        self._running: dict[str, RunningTrial] = {}
        self._notices: list[Notice] = []
        self._best: tuple[float, str] | None = None
        self._started = time.monotonic()
        self._first_trial: float | None = None  # when it began: Ray's own start says nothing of what is left
        self._last_line = self._started
        for record in earlier:
            self._note_best(record)
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._view, transient=True)

    def __enter__(self) -> Self:
        try:
            self._print(f"starting Ray; then a line for each trial that ended, with its {self._metric}", style="dim")
            if self._console.is_terminal:
                self._live.start()
        except BaseException:  # Ctrl-C: the view draws in a thread, and would go on
            self._live.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._running.clear()
        if self._notices:
            self._print(self._found())

    def _note_best(self, record: Record) -> None:
        """Compare with a trial that trained to its end."""
        value = record.value
        if not self._competing or record.outcome is not Outcome.COMPLETE or value is None:
            return
        if self._best is None or self._sign * value < self._sign * self._best[0]:
            self._best = (value, record.trial)

    # --- Watcher ---

    def started(self, trial: str) -> None:
        """A trial began, or began again after a crash."""
        if self._first_trial is None:
            self._first_trial = time.monotonic()
        before = self._running.get(trial)
        values = self._find(trial).values if before is None else before.values
        epochs = 0 if before is None else before.epochs
        state = "starting" if before is None else "restarted"
        self._running[trial] = RunningTrial(trial, self._epochs, values, epochs, state=state)

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None:
        """A trial ended an epoch."""
        values = self._running[trial].values if trial in self._running else self._find(trial).values
        self._running[trial] = RunningTrial(trial, self._epochs, values, epochs, metrics, "training")
        self._epochs_seen += 1
        if not self._console.is_terminal and time.monotonic() - self._last_line > QUIET_AT_MOST_S:
            self._print("; ".join(self._standing()))

    def finding(self, trial: str, text: str, severity: str) -> None:
        """A rule of the diagnosis fires in a trial: a line; on a terminal it is part of the live view.

        Args:
            severity: info, warning or critical; infos are only counted where there is no live view.
        """
        notice = Notice(trial, text, severity)
        self._notices.append(notice)
        if self._console.is_terminal or severity == "info":
            return
        warnings = sum(other.severity == "warning" for other in self._notices)
        if severity != "warning" or warnings <= MOST_WARNINGS:
            self._print(notice.line, style=notice.style)
            if severity == "warning" and warnings == MOST_WARNINGS:
                self._print("more warnings of the diagnosis are counted, not printed; critical findings still are")

    def ended(self, trial: str) -> None:
        """A trial ended."""
        self._running.pop(trial, None)
        record = self._find(trial)
        self._on_ended(record)
        if record.outcome is Outcome.RUNNING:
            self._print(f"trial {trial}  interrupted; --resume goes on with it")
            return
        self._done += 1
        self._outcomes[record.outcome] += 1
        self._note_best(record)
        self._print(self._trial_line(record, trial))

    def online(self, url: str) -> None:
        """A trial's W&B run is online: the page of its project is shown, once."""
        if self._page is None:
            self._page = url.partition("/runs/")[0]
            if not self._console.is_terminal:
                self._print(f"W&B {self._page}")

    def warning(self, text: str) -> None:
        """A line that must not be overlooked."""
        self._print(f"note: {text}", style="yellow")

    # --- text ---

    def _trial_line(self, record: Record, trial: str) -> str:
        values = "  ".join(f"{name} {number(value)}" for name, value in record.values.items())
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

    def _standing(self) -> list[str]:
        """What is done and how long the rest takes, and the best so far."""
        lines = [f"{self._done} of {self._num_trials} trials done{self._counts()}, {self._time_left()}"]
        if self._competing:
            best = "none yet" if self._best is None else f"{self._best[0]:.4f} (trial {self._best[1]})"
            lines.append(f"best {self._metric} {best}")
        return lines

    def _counts(self) -> str:
        """How the trials ended, where they did not all train to their end."""
        if self._outcomes[Outcome.COMPLETE] == self._done:
            return ""
        shown = (f"{self._outcomes[outcome]} {word}" for outcome, word in SHOWN.items() if self._outcomes[outcome])
        return f" ({', '.join(shown)})"

    def _found(self) -> str:
        counts = Counter(notice.severity for notice in self._notices)
        trials = len({notice.trial for notice in self._notices})
        shown = ", ".join(f"{counts[severity]} {severity}" for severity in reversed(STYLES) if counts[severity])
        # the report's section is about the trials of the search
        where = "see the report's section Diagnosis" if self._competing else "python -m sweep.diagnose RESULTS has them"
        return f"findings in {trials} trial{'s' if trials > 1 else ''}: {shown}; {where}"

    def _time_left(self) -> str:
        """By the trials of this session that ended; before the first one by epochs, of which some may be saved."""
        now, to_come = time.monotonic(), self._num_trials - self._done
        so_far = f"{duration(now - self._started)} so far"
        trained = now - (self._started if self._first_trial is None else self._first_trial)
        if not to_come:
            return so_far
        if finished := self._done - self._done_before:
            return f"{so_far}, about {duration(trained / finished * to_come)} left"
        if not self._epochs_seen:
            return so_far
        epochs = max(0, to_come * self._epochs - self._epochs_seen)
        return f"{so_far}, at most about {duration(trained / self._epochs_seen * epochs)} left"

    def _view(self) -> LiveView:
        trials = sorted(self._running.values(), key=lambda trial: trial.trial)
        standing = [*self._standing(), *([f"W&B {self._page}"] if self._page else [])]
        return LiveView(trials, self._metric, list(self._notices), standing)

    def _print(self, text: str, style: str | None = None) -> None:
        self._last_line = time.monotonic()
        # a terminal breaks long lines between words; a file keeps them whole, for whoever searches it
        self._console.print(Text(text, style=style or ""), soft_wrap=not self._console.is_terminal)
