"""What a sweep shows on a terminal while it runs: a table of the trials under way, the last findings, where it stands.

Made anew for each frame from plain values, so that it fits whatever size the terminal has at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sweep.words import last_word, number

GAP = "  "
SPARE_LINES = 2  # of a terminal: the last stays free for the cursor, the first for what ended last
BAR_WIDTH = 10
MAX_VALUE_WIDTH = 14  # of a searched value: names of encoders are long
MOST_FINDINGS = 3
LEAST_FOR_TABLE = 4  # lines that findings leave to the trials
PARTS = ("loss", "imbalance", "instability")  # objective/...
STYLES = {"info": "dim", "warning": "yellow", "critical": "red"}  # of a finding, by its severity


@dataclass
class RunningTrial:
    """A trial under way.

    Attributes:
        of: epochs that it is to train; `epochs` are done.
        values: its searched parameters.
        metrics: its last epoch's.
        state: a word.
    """

    trial: str
    of: int
    values: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    state: str = "starting"


@dataclass(frozen=True)
class Notice:
    """A finding about a trial; `severity` is info, warning or critical."""

    trial: str
    text: str
    severity: str

    @property
    def line(self) -> str:
        """The finding in one line."""
        return f"{self.severity}: trial {self.trial}: {' '.join(self.text.split())}"

    @property
    def style(self) -> str:
        """How rich should show it."""
        return STYLES.get(self.severity, "")


@dataclass(frozen=True)
class _Column:
    """Cells below a header; `rank` says how much it is wanted, the smallest most."""

    name: str
    rank: int
    cells: Sequence[str]
    right: bool = False

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.name, *self.cells)))

    def cell(self, text: str) -> str:
        return " " * (self.width - cell_len(text)) + text if self.right else set_cell_size(text, self.width)


@dataclass(frozen=True)
class LiveView:
    """A renderable of rich, never higher or wider than the terminal.

    Attributes:
        trials: under way.
        metric: what the sweep optimises.
        notices: findings so far, the last one last.
        standing: lines about the whole sweep, the most important one first.
    """

    trials: Sequence[RunningTrial]
    metric: str
    notices: Sequence[Notice]
    standing: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        yield from self.lines(width, max(1, height - SPARE_LINES))

    def lines(self, width: int, height: int) -> list[Text]:
        """At most `height` lines of at most `width` cells. Where there is little room, the standing goes first."""
        standing = [Text(line, style="bold") for line in self.standing[:height]]
        room = height - len(standing)
        count = max(0, min(MOST_FINDINGS, len(self.notices), room - LEAST_FOR_TABLE))
        notices = [Text(notice.line, style=notice.style) for notice in self.notices[len(self.notices) - count :]]
        lines = [*self._table(width, room - count), *notices, *standing]
        for line in lines:
            line.no_wrap = True
            line.truncate(width, overflow="ellipsis")
        return lines

    def _table(self, width: int, height: int) -> list[Text]:
        """A header, a line for each trial, and how many more there are."""
        if height < 2 or not self.trials:
            return []
        fit = height - 1  # beside the header
        shown = self.trials if len(self.trials) <= fit else self.trials[: fit - 1]
        columns = _fitting(self._columns(shown), width)
        lines = [Text(GAP.join(column.cell(column.name) for column in columns).rstrip(), style="dim")]
        lines += [
            Text(GAP.join(column.cell(column.cells[row]) for column in columns).rstrip()) for row in range(len(shown))
        ]
        if more := len(self.trials) - len(shown):
            lines.append(Text(f"and {more} more", style="dim"))
        return lines

    def _columns(self, trials: Sequence[RunningTrial]) -> list[_Column]:
        def of(name: str, rank: int, text: Callable[[RunningTrial], str], right: bool = False) -> _Column:
            return _Column(name, rank, [text(trial) for trial in trials], right)

        columns = [
            of("trial", 0, lambda trial: trial.trial),
            of("state", 7, lambda trial: trial.state),
            of("", 6, lambda trial: _bar(trial.epochs, trial.of)),
            of("epoch", 1, lambda trial: f"{trial.epochs}/{trial.of}", right=True),
            of(last_word(self.metric), 2, lambda trial: _number(trial.metrics.get(self.metric)), right=True),
        ]
        for rank, part in enumerate(PARTS, start=3):
            name = f"objective/{part}"
            if name != self.metric:
                columns.append(_Column(part, rank, [_number(trial.metrics.get(name)) for trial in trials], right=True))
        searched = dict.fromkeys(name for trial in trials for name in trial.values)
        for rank, name in enumerate(searched, start=8):
            columns.append(_Column(name, rank, [_value(trial.values.get(name, "")) for trial in trials], right=True))
        return columns


def _fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The most wanted columns that fit beside each other, in their order. The first one always does."""
    kept: list[_Column] = []
    used = -len(GAP)
    for column in sorted(columns, key=lambda column: column.rank):
        used += len(GAP) + column.width
        if kept and used > width:
            break
        kept.append(column)
    return [column for column in columns if any(column is other for other in kept)]


def _bar(done: int, of: int) -> str:
    filled = min(BAR_WIDTH, BAR_WIDTH * done // max(of, 1))
    return "━" * filled + "╌" * (BAR_WIDTH - filled)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"


def _value(value: Any) -> str:
    text = number(value)
    return text if cell_len(text) <= MAX_VALUE_WIDTH else set_cell_size(text, MAX_VALUE_WIDTH - 1) + "…"
