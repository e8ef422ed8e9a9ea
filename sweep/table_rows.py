"""trials.csv and confirm.csv as text: a strict reader, and one that takes what can be read."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError
from sweep.outcome import Outcome


@dataclass(frozen=True)
class TableRow:
    """A row of a table that may be damaged.

    Attributes:
        line: of the file, from 1.
        cells: by column, empty ones included; what the row lacks is absent.
        whole: it has a cell for each column, of sound text.
    """

    line: int
    cells: dict[str, str]
    whole: bool


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows by trial, in the file's order; none without a file. Raises DataError where anything is damaged."""
    rows, fault = sound_table(path)
    for row in rows:
        if not row.whole:
            fault = fault or f"line {row.line} has other cells than line 1 has columns"
        elif not re.fullmatch(r"c?\d+", row.cells.get("trial", "")):
            fault = fault or f"line {row.line} names no trial"
        elif row.cells.get("state") not in set(Outcome):
            fault = fault or f"line {row.line} has the state {row.cells.get('state')!r}"
    if fault is not None:
        raise DataError(
            f"{path}: damaged ({fault}); restore or remove it. Of a sweep, python -m sweep.run SPEC --resume writes it "
            "anew"
        )
    return {row.cells["trial"]: row.cells for row in rows}


def sound_table(path: Path) -> tuple[list[TableRow], str | None]:
    """The rows as far as they can be read, and what is wrong with the file; no rows and None without a file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [], f"it cannot be read: {error.strerror or error}"
    text = data.decode(errors="replace")
    no_text = text.encode() != data
    fault = None
    if not text.endswith("\n"):
        fault = "it breaks off" if text else "it is empty"
    if no_text:
        fault = "it is no text"
    if "\0" in text:
        fault = "zeros are in it"
    reader = csv.reader(io.StringIO(text.replace("\0", ""), newline=""))
    rows: list[TableRow] = []
    try:
        columns = next(reader, [])
        for cells in reader:
            if cells:
                sound = len(cells) == len(columns) and not (no_text and "\ufffd" in "".join(cells))
                rows.append(TableRow(reader.line_num, dict(zip(columns, cells, strict=False)), sound))
    except csv.Error as error:
        fault = fault or f"line {reader.line_num}: {error}"
    return rows, fault
