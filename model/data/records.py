"""What a frame store knows of its sequences: a line of `sequences.jsonl` each, written as soon as its frames are.

A line is the CRC-32 of a text, then the text, JSON. A line that a kill cut short, or that rotted on the disk, does not
match its checksum and counts as absent. The text holds the CRC-32 of the sequence's frames, so that what a killed build
left behind, or a finished store years later, can be told from what was decoded.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from model.data.base import Fault
from model.sinks import write_text


@dataclass(frozen=True)
class Sequence:
    """A run of frames without a gap. A sequence with missing frames is several runs of one name.

    Attributes:
        name: of the sequence that the run is part of.
        start: position of the run's first frame in that sequence (0 for a whole one).
        first: row of that frame in the store.
        length: frames.
        labels: label name -> one value, or a list with a value per frame of the run.
    """

    name: str
    start: int
    first: int
    length: int
    labels: dict[str, Any] = field(default_factory=dict)


class Rows(NamedTuple):
    """Rows [first, first + length) of the frame file and their checksum."""

    first: int
    length: int
    crc32: int  # against rot and half writes, not against malice: 2 GB/s, twice as fast as blake2b

    @property
    def end(self) -> int:
        return self.first + self.length


@dataclass(frozen=True)
class Record:
    """A sequence of the source, `number` in its reading order: where its frames are, and which could not be read."""

    number: int
    name: str
    rows: Rows
    runs: list[Sequence]
    skipped: list[Fault]


def to_line(record: Record) -> str:
    """The record as a line, newline included."""
    text = json.dumps(asdict(record), separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def read_records(path: Path) -> list[Record | None]:
    """The record of each line, None for a line that is not as it was written. Raises OSError."""
    return [_from_line(line) for line in path.read_bytes().splitlines()]


def write_records(path: Path, records: list[Record]) -> None:
    """Replace the file by one with these records, in one step."""
    write_text(path, "".join(map(to_line, records)))


def _from_line(line: bytes) -> Record | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    content = json.loads(text)  # as it was written, so it has the fields that it was written with
    return Record(
        number=content["number"],
        name=content["name"],
        rows=Rows(*content["rows"]),
        runs=[Sequence(**run) for run in content["runs"]],
        skipped=[Fault(**fault) for fault in content["skipped"]],
    )
