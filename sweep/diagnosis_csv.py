"""CSV files that W&B's page exports -> the rows of a run, or of several.

Two forms are read. A table of a run's history: a column per metric, updates and epochs mixed, empty cells where a row
has no such metric. And a chart's: `Step, RUN - batch/loss_total, RUN - batch/loss_total__MIN, ...__MAX, ...`, with one
or several runs; the x axis (the first column) may be W&B's step, `batch/iteration` or `epoch`.

What a file does not say of its rows' epochs is concluded, and a note says so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError
from model.metrics import BATCH_NAMES, BATCH_STEP, EPOCH_COLUMNS, EPOCH_STEP
from model.rows import Means, epoch_row
from model.sinks import History
from sweep.diagnosis import RECENT_EPOCHS
from sweep.imported import history_of

OF_CHART = ("__MIN", "__MAX")  # columns beside each of a chart's lines
BATCH_EPOCH = "batch/epoch"
METRICS = frozenset({*BATCH_NAMES, *EPOCH_COLUMNS})
UNNAMED = ""  # the run of a history table

Cells = dict[str, float]


@dataclass(frozen=True)
class ExportedRun:
    """A run of a CSV file. `name` is empty in a history table; `notes` say what was concluded of its rows."""

    name: str
    history: History
    notes: list[str]


def read_exported(path: Path) -> list[ExportedRun]:
    """The runs of a CSV file, in the order of their columns. Raises DataError, with file and line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheet programs begin with a mark
            runs = _read(csv.reader(file, strict=True), path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no text ({error.reason} at byte {error.start}); give the export as it is"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return [_exported(name, rows) for name, rows in runs.items()]


def _read(reader: Iterator[list[str]], path: Path) -> dict[str, list[Cells]]:
    """Run -> its rows with numbers of known metrics, in the file's order."""
    lines = _lines(reader, path)
    header = next(lines, (1, []))[1]
    columns = _columns(header)
    if not columns:
        shown = ", ".join(header[:5]) + (", ..." if len(header) > 5 else "")
        raise DataError(
            f"{path}: line 1 names no metric of ours, such as epoch/train_loss or batch/loss_ratio (it has: {shown}); "
            "give a CSV file that W&B's page exported of a run's history or of a chart"
        )
    if twice := [header[index] for index, place in columns.items() if list(columns.values()).count(place) > 1]:
        raise DataError(f"{path}: line 1 has {twice[0]!r} twice; give the runs different names and export it again")
    runs: dict[str, list[Cells]] = {run: [] for run, _ in columns.values()}
    axis = header[0] if header[0] in (BATCH_STEP, EPOCH_STEP) else None
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}: line {number} has {len(cells)} cells, line 1 has {len(header)}; export it again")
        rows: dict[str, Cells] = {}
        for index, (run, metric) in columns.items():
            if cells[index].strip():
                rows.setdefault(run, {})[metric] = _number(cells[index], f"{path}: line {number}, {header[index]!r}")
        for run, row in rows.items():
            if axis is not None and cells[0].strip():
                row.setdefault(axis, _number(cells[0], f"{path}: line {number}, {axis!r}"))
            runs[run].append(row)
    if not any(runs.values()):
        raise DataError(f"{path}: holds no row with metrics of ours; nothing was logged yet, or the export is empty")
    return {run: rows for run, rows in runs.items() if rows}


def _lines(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        for cells in reader:
            number = reader.line_num  # type: ignore[attr-defined]
            if cells:
                yield number, cells
    except csv.Error as error:
        raise DataError(f"{path}: line {number + 1} is no CSV ({error}); export it again") from None


def _columns(header: Sequence[str]) -> dict[int, tuple[str, str]]:
    """Index of a column -> (run, metric), of those that are read."""
    found = {}
    for index, title in enumerate(header):
        if title in METRICS:
            found[index] = UNNAMED, title
            continue
        run, dash, metric = title.rpartition(" - ")
        if dash and metric in METRICS and not title.endswith(OF_CHART):
            found[index] = run, metric
    in_chart = any(run for run, _ in found.values())
    return {index: place for index, place in found.items() if place[0] or not in_chart}  # else: its x axis


def _number(cell: str, where: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise DataError(
            f"{where}: {cell!r} is no number; must be one, or empty where the row has no such metric"
        ) from None
    if where.endswith(tuple(f"'{name}'" for name in (BATCH_STEP, EPOCH_STEP, BATCH_EPOCH))) and not number.is_integer():
        raise DataError(f"{where}: {cell!r} must be a whole number")
    return number


def _exported(name: str, rows: Sequence[Cells]) -> ExportedRun:
    batches = [row for row in map(_of_batch, rows) if row]
    epochs = [row for row in map(_of_epoch, rows) if row]
    notes = []
    for number, row in enumerate(epochs):
        row.setdefault(EPOCH_STEP, number)
    if any(BATCH_EPOCH not in row for row in batches):
        notes.append(_tell_epochs(rows, batches, len(epochs)))
    for number, row in enumerate(batches):
        row.setdefault(BATCH_STEP, number)
    history = history_of([*batches, *epochs])
    if not history.epoch:
        history.epoch = [*_epochs_of(history)]
        notes.append(f"there are no rows of epochs; the means of {len(history.epoch)} epochs' updates stand for them")
    return ExportedRun(name, history, notes)


def _of_batch(row: Cells) -> Cells:
    own = {metric: x for metric, x in row.items() if metric in BATCH_NAMES}
    return own if own.keys() - {BATCH_STEP, BATCH_EPOCH} else {}


def _of_epoch(row: Cells) -> Cells:
    own = {metric: x for metric, x in row.items() if metric in EPOCH_COLUMNS}
    return own if own.keys() - {EPOCH_STEP} else {}


def _tell_epochs(rows: Sequence[Cells], batches: Sequence[Cells], num_epochs: int) -> str:
    """Give every batch row an epoch; returns what was concluded."""
    if num_epochs:
        epoch, mine = 0, iter(batches)
        for row in rows:
            if _of_batch(row):
                next(mine)[BATCH_EPOCH] = epoch
            epoch += bool(_of_epoch(row))
        return f"there is no {BATCH_EPOCH}; an update counts to the epoch whose row comes next"
    parts = min(RECENT_EPOCHS, len(batches))
    for number, batch in enumerate(batches):
        batch[BATCH_EPOCH] = number * parts // len(batches)
    return f"there is no {BATCH_EPOCH}; the rows count as {parts} epochs of equal length"


def _epochs_of(history: History) -> Iterator[Mapping[str, float]]:
    means: dict[int, Means] = {}
    for row in history.batch:
        means.setdefault(int(row[BATCH_EPOCH]), Means()).add(dict(row))
    for epoch, mean in means.items():
        row = epoch_row(epoch, mean, lr=0.0, best=0.0)
        weighted = row.get("epoch/weighted_static"), row.get("epoch/weighted_dynamic")
        share = mean.mean("batch/static_contribution")
        if None in weighted and share is not None:  # of a chart that has only the shares
            row["epoch/actual_static_contribution"] = share
        yield {metric: x for metric, x in row.items() if metric not in ("epoch/lr", "epoch/best_loss_so_far")}
