"""Where the trainer's events go: the `Sink` protocol, the CSV files of a trial, the in-memory history.

An event is one row of one level. The CSV files hold every row, whatever else fails; floats are written so that reading
them back gives the same float.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import metrics
from model.errors import UserError
from model.metrics import Level

Row = Mapping[str, float]

_REMEDY = "restore the file, or remove the trial's folder to train the trial again"


@dataclass(frozen=True)
class Event:
    """One row: `values` maps metric names to numbers; a metric that was not computed is absent."""

    level: Level
    values: Row


class Sink(Protocol):
    """Receives the events of one trial, in order."""

    def log(self, event: Event) -> None:
        """Take one event."""

    def picture(self, name: str, image: NDArray[np.uint8]) -> None:
        """Take a picture [H, W, 3] of the model after the last epoch logged; a later one of that name replaces it."""

    def close(self, exit_code: int) -> None:
        """End the trial's record; 0 is success. Called once; nothing follows."""


@dataclass
class History:
    """The rows of a trial in memory, by level: what objective and diagnosis are computed from."""

    batch: list[Row] = field(default_factory=list)
    epoch: list[Row] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)

    def log(self, event: Event) -> None:
        if event.level is Level.BATCH:
            self.batch.append(event.values)
        elif event.level is Level.EPOCH:
            self.epoch.append(event.values)
        else:
            self.summary = dict(event.values)

    def picture(self, name: str, image: NDArray[np.uint8]) -> None:
        """A history is numbers; pictures are not kept."""

    def close(self, exit_code: int) -> None:
        """Nothing to close."""

    def events(self) -> Iterator[Event]:
        """The batch and epoch rows in the order in which a trainer gives them out: an epoch's row after its batches."""
        batches = iter(self.batch)
        waiting = next(batches, None)
        for epoch in self.epoch:
            while waiting is not None and waiting["batch/epoch"] <= epoch["epoch"]:
                yield Event(Level.BATCH, waiting)
                waiting = next(batches, None)
            yield Event(Level.EPOCH, epoch)
        while waiting is not None:
            yield Event(Level.BATCH, waiting)
            waiting = next(batches, None)


class CsvSink:
    """`batch.csv`, `epoch.csv`, `summary.json` and `pictures/` in a folder; columns are the metric names in full.

    Args:
        folder: made if absent.
        keep_batches, keep_epochs: rows of an earlier part of this trial to keep; later rows, which a resumed trial
            computes again, are cut off. 0 starts afresh.

    Raises:
        UserError: a file holds fewer rows than are to be kept.
    """

    def __init__(self, folder: Path, keep_batches: int = 0, keep_epochs: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._tables = {
            Level.BATCH: _Table(folder / "batch.csv", metrics.BATCH_NAMES, keep_batches),
            Level.EPOCH: _Table(folder / "epoch.csv", metrics.EPOCH_COLUMNS, keep_epochs),
        }

    def log(self, event: Event) -> None:
        if event.level is Level.SUMMARY:
            write_json(self.folder / "summary.json", dict(event.values))
        else:
            self._tables[event.level].append(event.values)

    def picture(self, name: str, image: NDArray[np.uint8]) -> None:
        write_picture(self.folder / "pictures" / f"{name}.png", image)

    def close(self, exit_code: int) -> None:
        for table in self._tables.values():
            table.close()


class _Table:
    def __init__(self, path: Path, columns: tuple[str, ...], keep_rows: int) -> None:
        self._columns = columns
        # what is not kept may be damaged
        kept = _complete_lines(path, errors="replace")[1 : keep_rows + 1] if keep_rows else []
        if len(kept) < keep_rows:
            raise UserError(
                f"{path}: holds {len(kept)} rows, but the checkpoint was made after {keep_rows}; "
                "the file was cut short. Remove the trial's folder to train it again from the start."
            )
        # a new file takes the old one's place in one step: a kill in between loses nothing
        scratch = path.with_suffix(".csv.tmp")
        with scratch.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)
            file.writelines(kept)
        scratch.replace(path)
        # line buffered: a killed trial leaves whole rows
        self._file: IO[str] = path.open("a", buffering=1, newline="", encoding="utf-8")

    def append(self, row: Row) -> None:
        unknown = row.keys() - set(self._columns)
        assert not unknown, f"metrics without a column: {sorted(unknown)}"
        self._file.write(",".join(repr(row[c]) if c in row else "" for c in self._columns) + "\n")

    def close(self) -> None:
        with suppress(OSError):  # every row was flushed when it was written; what is left is one that failed then
            self._file.close()


def _complete_lines(path: Path, errors: str = "strict") -> list[str]:
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors=errors) as file:
            return [line for line in file if line.endswith("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, it is no text ({error.reason} at byte {error.start}); {_REMEDY}") from None


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a trial's CSV file; empty cells are absent from the row, a half-written last line is left out.

    Raises UserError, with the line, where a cell is no number or has no column.
    """
    reader = csv.DictReader(_complete_lines(path))
    rows = []
    try:
        for cells in reader:
            rows.append({name: _number(cell) for name, cell in cells.items() if cell not in ("", None)})
    except (csv.Error, TypeError, ValueError) as error:  # TypeError: of cells without a column
        where = f"{path}: line {reader.line_num}"
        raise UserError(f"{where} is damaged ({error}): each cell must be a number or empty; {_REMEDY}") from None
    return rows


def sound_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a trial's CSV file before the first one that is damaged; none where there is no file."""
    columns, *lines = [line.rstrip("\n").split(",") for line in _complete_lines(path, errors="replace")] or [[]]
    rows: list[dict[str, float]] = []
    for cells in lines:
        try:
            rows.append({name: _number(cell) for name, cell in zip(columns, cells, strict=True) if cell})
        except ValueError:
            break
    return rows


def _number(cell: str) -> float:
    value = float(cell)
    return int(value) if value.is_integer() and "." not in cell and "e" not in cell else value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where it holds something else, OSError where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, it is not JSON ({error}); {_REMEDY}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, it holds a {type(content).__name__} instead of an object; {_REMEDY}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that `path` holds either the old or the new text, never a part."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either the old or the new text, never a part."""
    _write_bytes(path, text.encode())


def write_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image [H, W, 3] as PNG so that `path` holds either the old or the new one, never a part."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    _write_bytes(path, png.getvalue())


def _write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    except OSError:  # a full disk, mostly
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def remove_scratch(*folders: Path) -> None:
    """Remove what processes that were killed left of files that they had not yet put in place."""
    for folder in folders:
        for pattern in (".*.tmp", "*.csv.tmp"):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
