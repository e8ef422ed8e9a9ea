"""The rows of a trial's CSV file, read from whatever a crash or a power loss left of it. Pure: bytes in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from model.metrics import BATCH_NAMES, BATCH_STEP, EPOCH_COLUMNS, EPOCH_STEP
from model.sinks import parse_row
from sweep.words import few

FILES = {"batch.csv": (BATCH_NAMES, BATCH_STEP), "epoch.csv": (EPOCH_COLUMNS, EPOCH_STEP)}  # columns, and what counts
WHOLE_NUMBERS = ("batch/epoch", "batch/iteration", "batch/mode", "epoch")
MOST_MISSING = 1_000_000  # rows in one gap; a larger one is a damaged number


@dataclass(frozen=True)
class Rows:
    """What a file holds.

    Attributes:
        name: of the file.
        there: the file exists.
        columns: of its header, or those that it should have.
        lines: the sound rows by their place (of a gradient update, or an epoch), as text.
        faults: what is wrong with the file, in words; rows that are missing at its end are none.
    """

    name: str
    there: bool
    columns: tuple[str, ...]
    lines: Mapping[int, str]
    faults: tuple[str, ...] = ()

    @property
    def whole(self) -> int:
        """Rows from the first on without a gap."""
        count = 0
        while count in self.lines:
            count += 1
        return count

    def missing(self, least: int = 0) -> list[int]:
        """Places without a row, of at least so many rows."""
        count = max(max(self.lines, default=-1) + 1, least)
        return [place for place in range(count) if place not in self.lines]

    def row(self, place: int) -> dict[str, float]:
        """The numbers of a row; empty cells are absent."""
        return parse_row(self.columns, self.lines[place])

    def filled(self, found: Mapping[int, Mapping[str, Any]]) -> Rows:
        """With rows of another book in the places that have none."""
        more = {place: self._line(row) for place, row in found.items() if place not in self.lines}
        return replace(self, lines={**self.lines, **more})

    def text(self, count: int | None = None) -> str:
        """A sound file of the rows in order, of the first `count` only if given."""
        places = sorted(place for place in self.lines if count is None or place < count)
        return "\n".join([",".join(self.columns), *(self.lines[place] for place in places)]) + "\n"

    def _line(self, row: Mapping[str, Any]) -> str:
        def cell(name: str) -> str:
            return "" if name not in row else repr(int(row[name]) if name in WHOLE_NUMBERS else float(row[name]))

        return ",".join(map(cell, self.columns))


def read_rows(name: str, data: bytes | None, thorough: bool = True) -> Rows:
    """The rows of a file with these bytes, None where there is no file.

    Args:
        name: batch.csv or epoch.csv.
        thorough: read every number. Else only what a cut leaves is looked for, and rows count as in order: a tenth of
            the time.
    """
    known, key = FILES[name]
    if data is None:
        return Rows(name, False, known, {})
    if not data.strip(b"\0"):
        return Rows(name, True, known, {}, ("it is empty" if not data else "it holds zeros only",))
    head, _, rest = data.partition(b"\n")
    *lines, last = rest.split(b"\n")
    if not thorough and not last and b"\0" not in data and head == ",".join(known).encode():
        return Rows(name, True, known, dict(enumerate(line.decode(errors="replace") for line in lines)))
    faults = []
    columns = _columns(head, key)
    if columns is None:
        columns = known
        faults.append("its first line, the names of the columns, is damaged")
    if last.strip(b"\0"):
        faults.append("its last row is half written")
    elif last:
        faults.append("zeros follow its last row")
    sound: dict[int, str] = {}
    order: list[int] = []
    bad: list[int] = []
    places = _believable([_place(line, columns, key) for line in lines])
    for number, (place, line) in enumerate(zip(places, lines, strict=True), start=2):
        if place is None:
            bad.append(number)
        else:
            order.append(place)
            sound.setdefault(place, line.decode())
    if bad:
        faults.append(f"{_rows(len(bad))} damaged (line {few(bad)})")
    if len(sound) < len(order):
        faults.append(f"{_rows(len(order) - len(sound))} there twice")
    if any(one > other for one, other in pairwise(order)):
        faults.append("its rows are in a wrong order")
    return Rows(name, True, columns, sound, tuple(faults))


def ranges(places: Iterable[int]) -> str:
    """Places in words: `3, 5 to 9`."""
    found: list[list[int]] = []
    for place in sorted(places):
        if found and found[-1][1] == place - 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return few([f"{first}" if first == last else f"{first} to {last}" for first, last in found])


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count} rows are"


def _columns(head: bytes, key: str) -> tuple[str, ...] | None:
    """The names of a header; None of a damaged one. An earlier version's file may have others than ours."""
    try:
        names = tuple(head.decode("ascii").split(","))
    except UnicodeDecodeError:
        return None
    sound = key in names and len(set(names)) == len(names) and all(name.isprintable() and name for name in names)
    return names if sound else None


def _believable(places: Sequence[int | None]) -> list[int | None]:
    """Without places that a damaged digit made: beyond the file's rows, and before a row of an earlier place."""
    found: list[int | None] = []
    least = len(places) + MOST_MISSING  # of the places behind
    for place in reversed(places):
        if place is not None and place >= len(places) and place >= least:
            place = None
        elif place is not None:
            least = min(least, place)
        found.append(place)
    return found[::-1]


def _place(line: bytes, columns: Sequence[str], key: str) -> int | None:
    """The place of a row; None of a damaged one."""
    try:
        place = parse_row(columns, line.decode()).get(key)
    except ValueError:
        return None
    return place if isinstance(place, int) and place >= 0 else None
