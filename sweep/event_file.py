"""A trial's rows as TensorBoard's events: only what is new is appended, and each row is there once.

`rows.json` beside the event file says how far the CSV files were read and the events written. What a killed process
wrote beyond that is cut off; where a CSV file no longer begins as it did (its trial was trained again), the event file
is made anew.
"""

from __future__ import annotations

import math
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.metrics import BATCH_STEP, EPOCH_STEP
from model.sinks import read_json, write_json

TABLES = {"batch.csv": BATCH_STEP, "epoch.csv": EPOCH_STEP}  # file -> the metric that is its rows' step
FILE_VERSION = "brain.Event:2"  # what TensorBoard expects an event file to begin with


@dataclass
class _State:
    """rows.json. `read` has (bytes, checksum of them) of each CSV file; `parts` names the hparams that are written."""

    name: str = ""
    written: int = 0
    read: dict[str, tuple[int, int]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)


class EventFile:
    """The event file of one trial.

    Args:
        folder: gets the file; TensorBoard calls the run by its name.
        trial: folder with batch.csv and epoch.csv.
        note: takes a sentence on what cannot be read.
    """

    def __init__(self, folder: Path, trial: Path, note: Callable[[str], None]) -> None:
        self._folder = folder
        self._trial = trial
        self._note = note
        self._state_file = folder / "rows.json"
        self._seen: dict[str, tuple[int, int]] = {}
        self._state = self._load()

    def update(self, summaries: Mapping[str, Any]) -> int:
        """Append the rows that are new; returns how many.

        Args:
            summaries: other `Summary` messages by name, each written once.

        Raises:
            OSError: the folder cannot be written to.
        """
        contents = dict(self._changed())
        if any(not self._goes_on(name, content) for name, content in contents.items()):
            self._state = self._fresh()
            self._seen.clear()
            contents = dict(self._changed())
        rows = 0
        events: list[bytes] = []
        for name, summary in summaries.items():
            if name not in self._state.parts:
                events.append(_event(time.time(), summary=summary))
                self._state.parts.append(name)
        for name, content in contents.items():
            new, end = self._rows(name, content)
            events += new
            rows += len(new)
            self._state.read[name] = (end, zlib.crc32(content[:end]))
        if events:
            self._append(events)
        return rows

    def _load(self) -> _State:
        try:
            known = read_json(self._state_file)
            state = _State(**{**known, "read": {name: (end, crc) for name, (end, crc) in known["read"].items()}})
            if (self._folder / state.name).stat().st_size >= state.written > 0:
                return state
        except FileNotFoundError:
            pass
        except (OSError, UserError, TypeError, ValueError, LookupError, AttributeError):
            self._note(f"{self._state_file}: damaged; the events of trial {self._trial.name} are written anew")
        return self._fresh()

    def _fresh(self) -> _State:
        """Nothing is written; an earlier event file is gone, and the next one has another name: TensorBoard reads a
        file on where it stopped."""
        for old in self._folder.glob("*tfevents*"):
            old.unlink()
        return _State(name=f"events.out.tfevents.{time.time_ns()}.{self._trial.name}")

    def _changed(self) -> Iterator[tuple[str, bytes]]:
        """The CSV files that are not as the last pass saw them."""
        for name in TABLES:
            path = self._trial / name
            try:
                there = path.stat()
                if (there.st_size, there.st_mtime_ns) == self._seen.get(name):
                    continue
                content = path.read_bytes()
            except FileNotFoundError:
                if name in self._state.read:
                    yield name, b""
                continue
            except OSError as error:
                self._note(f"{path}: cannot be read ({error.strerror})")
                continue
            self._seen[name] = (there.st_size, there.st_mtime_ns)
            yield name, content

    def _goes_on(self, name: str, content: bytes) -> bool:
        end, crc = self._state.read.get(name, (0, 0))
        return len(content) >= end and zlib.crc32(content[:end]) == crc

    def _rows(self, name: str, content: bytes) -> tuple[list[bytes], int]:
        """Events of the whole rows behind those that were read, and where in the file they end."""
        begin, _ = self._state.read.get(name, (0, 0))
        head = content.find(b"\n") + 1
        columns = content[: max(head - 1, 0)].decode(errors="replace").rstrip("\r").split(",")
        end = max(begin, head)
        events = []
        try:
            wall_s = (self._trial / name).stat().st_mtime
        except OSError:
            wall_s = time.time()
        for line in content[end:].splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # half written
            try:
                events.append(_row_event(columns, line, TABLES[name], wall_s))
            except (ValueError, LookupError, OverflowError):
                self._note(f"{self._trial / name}: a row is damaged; it and the rows after it are left out")
                break
            end += len(line)
        return events, end

    def _append(self, events: list[bytes]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / self._state.name
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(self._state.written)
            file.seek(self._state.written)
            if self._state.written == 0:
                file.write(_record(_event(time.time(), file_version=FILE_VERSION)))
            file.write(b"".join(map(_record, events)))
            self._state.written = file.tell()
        write_json(self._state_file, asdict(self._state))


def _row_event(columns: list[str], line: bytes, step: str, wall_s: float) -> bytes:
    """A row as one event that holds all its values, as 32-bit floats. Raises ValueError or LookupError if damaged."""
    from tensorboardX.proto.summary_pb2 import Summary

    cells = line.decode().rstrip("\r\n").split(",")
    values = {name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell}
    if not math.isfinite(values[step]):
        raise ValueError(step)
    shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if tag != step]
    return _event(wall_s, step=int(values[step]), summary=Summary(value=shown))


def _event(wall_s: float, **content: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    serialized: bytes = Event(wall_time=wall_s, **content).SerializeToString()
    return serialized


def _record(data: bytes) -> bytes:
    """Bytes in the frame of a TFRecord: length, its checksum, the bytes, theirs."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
