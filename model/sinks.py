"""Where the trainer's events go: the `Sink` protocol, the CSV files of a trial, the in-memory history.

An event is one row of one level. The CSV files hold every row, whatever else fails; floats are written so that reading
them back gives the same float.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import metrics
from model.errors import DataError, UserError
from model.metrics import Level

Row = Mapping[str, float]

_REMEDY = "restore the file, or remove the trial's folder to train it again or to do without that trial"


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
        # what is not kept may be damaged; rows of an older version have fewer columns
        kept = _complete_lines(path, errors="replace")[1 : keep_rows + 1] if keep_rows else []
        kept = [line.rstrip("\n") + "," * (len(columns) - 1 - line.count(",")) + "\n" for line in kept]
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
        raise DataError(f"{path}: damaged, it is no text ({error.reason} at byte {error.start}); {_REMEDY}") from None


def read_csv(
    path: Path, *, key: str = "", wanted: Collection[str] = (), most: int | None = None
) -> list[dict[str, float]]:
    """The rows of a trial's CSV file; empty cells are absent from the row, a half-written last line is left out.

    Args:
        key: a column that must hold a whole number in each row.
        wanted: the columns to parse, all if empty; a row with a number that is not finite is read in full, since it
            tells how a trial diverged.
        most: at most so many rows (2 or more), evenly spread, both ends among them: only those are parsed.

    Raises DataError, with the line, where a cell is no number, or a row has more or fewer cells than the first line.
    """
    head, *lines = _complete_lines(path) or [""]
    columns = head.rstrip("\r\n").split(",")
    rows = []
    for place in range(len(lines)) if most is None else spread(len(lines), most):
        try:
            row = parse_row(columns, lines[place], wanted)
            if key and not float(row.get(key, math.nan)).is_integer():
                raise ValueError(f"it has no whole number as {key}")
        except ValueError as error:
            where = f"{path}: line {place + 2}"
            raise DataError(f"{where} is damaged ({error}): each cell must be a number or empty; {_REMEDY}") from None
        rows.append(row)
    return rows


def sound_rows(source: Path | Sequence[str]) -> list[dict[str, float]]:
    """The rows of a trial's CSV file, or of its lines, before the first one that is damaged; none without a file."""
    lines = _complete_lines(source, errors="replace") if isinstance(source, Path) else source
    columns = lines[0].rstrip("\r\n").split(",") if lines else []
    rows: list[dict[str, float]] = []
    with suppress(ValueError):
        for line in lines[1:]:
            rows.append(parse_row(columns, line))  # those before the damage stay
    return rows


def parse_row(columns: Sequence[str], line: str, wanted: Collection[str] = ()) -> dict[str, float]:
    """The numbers of a line of a trial's CSV file; of `wanted` columns as in `read_csv`. Raises ValueError."""
    cells = line.rstrip("\r\n").split(",")
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells, not {len(columns)}")
    pairs: Iterable[tuple[str, str]] = zip(columns, cells, strict=True)
    if wanted and "n" not in line:  # of what repr gives for a float, only nan and inf have this letter
        pairs = [(name, cells[columns.index(name)]) for name in wanted if name in columns]
    return {name: int(cell) if cell.lstrip("-").isdecimal() else float(cell) for name, cell in pairs if cell}


def spread(count: int, most: int) -> list[int]:
    """At most `most` (2 or more) of the places 0 to count - 1, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


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
