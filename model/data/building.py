"""Building a frame store: decode what it does not hold yet, sequence by sequence, so that a kill loses one at most.

Frames are decoded by threads: Pillow, libjpeg and FFmpeg work without the GIL. On 2 idle cores, 2 threads decode 1.45
(224 px) to 1.65 times (48 px) the JPEG frames a second of one thread, and 1.4 times the video frames (FFmpeg's own
threads included); 8 threads decode a fifth less. Reading two sequences at a time gained less than 5 % more, so they are
read one after another (scripts/bench_store.py).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model.data.base import Fault, HeightWidth, Source
from model.data.framefile import FrameWriter
from model.data.records import Record, Sequence, read_records, to_line, write_records
from model.data.threads import decoding_threads
from model.errors import DataError

FRAMES = "frames.npy"
RECORDS = "sequences.jsonl"
MAX_FAULTY = 0.05  # share of unreadable images or videos above which a data set is refused
NAMED_FAULTS = 5  # how many of them a message names
PROGRESS_FRAMES = 16  # frames between two calls of the progress function: under 1 % of the time of a terminal's bar

Progress = Callable[[int, int], None]  # (frames done, frames in all as far as is known)

log = logging.getLogger(__name__)


def build(
    source: Source,
    size: HeightWidth,
    folder: Path,
    progress: Progress | None = None,
    num_threads: int | None = None,
) -> None:
    """Make `folder` a whole store of the source's frames.

    Sequences that an earlier build left there are kept where their frames match their checksum. After an error, what
    was decoded stays for the next call.

    Args:
        num_threads: that decode; `decoding_threads` if absent.

    Raises:
        DataError: more than 5 % of the files unreadable.
        OSError: the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in (FRAMES, RECORDS):
            path.unlink()  # statistics, which may be of damaged frames
    left = _left_behind(source, folder / RECORDS)
    write_records(folder / RECORDS, list(left.values()))  # a line that a kill cut short would spoil the one after it
    counter = _Counter(progress, source)
    skipped: list[Fault] = []
    num_kept = 0
    with (
        FrameWriter(folder / FRAMES, size) as writer,
        ThreadPoolExecutor(num_threads or decoding_threads()) as pool,
        (folder / RECORDS).open("a", encoding="utf-8") as journal,
    ):
        for number in range(len(source.sequences)):
            record = left.get(number)
            if record is not None and record.rows.first == writer.row and writer.holds(record.rows):
                writer.keep(record.rows)
                counter.add(record.rows.length + len(record.skipped))
                num_kept += 1
            else:
                record = _decode(source, number, size, pool, writer, counter)
                journal.write(to_line(record))  # stands for an earlier line of this number
                journal.flush()
            skipped += record.skipped
        os.fsync(journal.fileno())
    counter.finish()
    if left:
        log.info("%d sequences of an earlier build were whole and are kept", num_kept)
    if len(skipped) > MAX_FAULTY * source.num_units:
        shutil.rmtree(folder)  # once the files are mended, it is another store
        raise DataError(
            f"{_faults_text(source, skipped)} At most {MAX_FAULTY:.0%} may be unreadable; copy them again from where "
            "they were recorded, or remove them."
        )
    if skipped:
        log.warning("%s", _faults_text(source, skipped))


def _left_behind(source: Source, path: Path) -> dict[int, Record]:
    """Records of an earlier build by number; whether their frames are as they were written is still to be seen."""
    if not path.exists():
        return {}
    names = dict(enumerate(source.sequences))
    records = [record for record in read_records(path) if record is not None]
    return {record.number: record for record in records if names.get(record.number) == record.name}


def _decode(
    source: Source, number: int, size: HeightWidth, pool: ThreadPoolExecutor, writer: FrameWriter, counter: _Counter
) -> Record:
    """Decode one sequence into the next rows; it is split into runs wherever a position is missing."""
    name, labels = source.sequences[number], source.labels(number)
    runs: list[Sequence] = []
    skipped: list[Fault] = []
    start = expected = 0  # the run that is being written: positions [start, expected)

    def end_run() -> None:
        if start < expected:
            length = expected - start
            runs.append(Sequence(name, start, writer.row - length, length, _cut(labels, start, expected)))

    for position, frame in source.read(number, size, pool):
        counter.add(1)
        if isinstance(frame, Fault):
            skipped.append(frame)
            continue
        if position != expected:
            end_run()
            start = position
        writer.append(frame)
        expected = position + 1
    end_run()
    return Record(number, name, writer.take(), runs, skipped)


def _cut(labels: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """The labels of positions [start, end)."""
    return {key: value[start:end] if isinstance(value, list) else value for key, value in labels.items()}


class _Counter:
    """Tells the progress function how many frames are done, now and then."""

    def __init__(self, progress: Progress | None, source: Source) -> None:
        self._progress = progress
        self._all = 0 if progress is None else source.num_frames()
        self._done = self._told = 0

    def add(self, frames: int) -> None:
        self._done += frames
        if self._done >= self._told + PROGRESS_FRAMES:
            self._tell(max(self._all, self._done))

    def finish(self) -> None:
        self._tell(self._done)

    def _tell(self, frames_in_all: int) -> None:
        self._told = self._done
        if self._progress is not None:
            self._progress(self._done, frames_in_all)


def _faults_text(source: Source, skipped: list[Fault]) -> str:
    named = "; ".join(f"{fault.file}: {fault.reason}" for fault in skipped[:NAMED_FAULTS])
    more = f"; and {len(skipped) - NAMED_FAULTS} more" if len(skipped) > NAMED_FAULTS else ""
    return f"{len(skipped)} of {source.num_units} {source.unit} cannot be read ({named}{more})."
