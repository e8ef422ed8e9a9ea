"""One uint8 store of decoded frames per (source, image size), shared by all trials and processes of a machine.

Frames are decoded and resized once, into `frames.npy`, which every process maps read-only: the page cache holds one
copy, however many trials run. A store is built in a scratch folder under a file lock and renamed into place, so a store
that opens is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from model.data.config import DataConfig
from model.data.sources import Fault, Frame, HeightWidth, Source, open_source
from model.errors import DataError
from model.sinks import write_json

STORE_VERSION = 1  # raise it whenever equal files would give other frames or another meta.json
MAX_FAULTY = 0.05  # share of unreadable images or videos above which a data set is refused
NAMED_FAULTS = 5  # how many of them a message names
STORE_VARIABLE = "TACTILE_SWEEP_STORE"  # environment variable: where stores go unless data.store_dir says so

Progress = Callable[[int, int], None]  # (sequences done, sequences in all)

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames: `frames` uint8 [F, H, W, 3], mapped read-only; `skipped` are the files that could not be read."""

    folder: Path
    frames: NDArray[np.uint8]
    sequences: list[Sequence]
    skipped: list[Fault]


def open_store(data: DataConfig, progress: Progress | None = None) -> FrameStore:
    """The store of a config's frames; built first if it is not there, or is damaged.

    Args:
        data: source, root, image size and synthetic parameters name the store.
        progress: called with (sequences done, sequences in all) while the store is built.

    Raises:
        DataError: no frames, more than 5 % of the files unreadable, or the store cannot be written.
    """
    source = open_source(data)
    folder = store_root(data) / f"{source.kind}-{_key(source, data.height_width)}"
    found = _opened(folder, data.height_width)
    if found is not None:
        return found
    with _writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            found = _opened(folder, data.height_width)  # another process may have built it meanwhile
            if found is None:
                _build(source, data.height_width, folder, progress)
                found = _opened(folder, data.height_width)
    assert found is not None, f"{folder} does not open right after it was built"
    return found


def store_root(data: DataConfig) -> Path:
    """Where stores are kept: data.store_dir, else $TACTILE_SWEEP_STORE, else the user's cache folder."""
    if data.store_dir is not None:
        return data.store_dir
    given = os.environ.get(STORE_VARIABLE)
    return Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("tactile-sweep") / "frames"


def _key(source: Source, size: HeightWidth) -> str:
    content = json.dumps([STORE_VERSION, source.kind, size, source.identity()], sort_keys=True)
    return f"{size[0]}x{size[1]}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


# --- opening -------------------------------------------------------------------------------------------------------


def _opened(folder: Path, size: HeightWidth) -> FrameStore | None:
    """The store in `folder`, or None where there is none that can be used."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        frames = np.load(folder / "frames.npy", mmap_mode="r")
        store = FrameStore(
            folder,
            frames.view(np.ndarray),  # indexing the memmap class itself is several times slower
            [Sequence(**sequence) for sequence in meta["sequences"]],
            [Fault(**fault) for fault in meta["skipped"]],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    firsts = [sequence.first for sequence in store.sequences]
    ends = [sequence.first + sequence.length for sequence in store.sequences]
    whole = [*firsts, len(frames)] == [0, *ends]
    return store if whole and frames.dtype == np.uint8 and frames.shape[1:] == (*size, 3) else None


# --- building ------------------------------------------------------------------------------------------------------


def _build(source: Source, size: HeightWidth, folder: Path, progress: Progress | None) -> None:
    """Decode all frames into a scratch folder beside `folder`, then rename it. The caller holds the lock."""
    scratch = folder.with_name(f".{folder.name}.building")
    _remove(scratch)  # left by a build that was killed
    scratch.mkdir()
    try:
        if folder.exists():
            log.warning("the frame store %s is damaged; it is built again", folder)
        log.info("decoding %d sequences into %s", len(source.sequences), folder)
        with FrameWriter(scratch / "frames.npy", size) as writer, ThreadPoolExecutor(_num_threads()) as pool:
            sequences, skipped = _decode(source, size, pool, writer, progress)
        _check_faults(source, skipped)
        meta = {
            "version": STORE_VERSION,
            "source": source.kind,
            "sequences": [asdict(sequence) for sequence in sequences],
            "skipped": [asdict(fault) for fault in skipped],
        }
        write_json(scratch / "meta.json", meta)
        _remove(folder)  # one that did not open
        scratch.rename(folder)
    finally:
        _remove(scratch)
    if skipped:
        log.warning("%s", _faults_text(source, skipped))


def _decode(
    source: Source, size: HeightWidth, pool: ThreadPoolExecutor, writer: FrameWriter, progress: Progress | None
) -> tuple[list[Sequence], list[Fault]]:
    sequences: list[Sequence] = []
    skipped: list[Fault] = []
    for number, name in enumerate(source.sequences):
        labels = source.labels(number)
        start = expected = 0  # the run that is being written: positions [start, expected)
        for position, frame in source.read(number, size, pool):
            if isinstance(frame, Fault):
                skipped.append(frame)
                continue
            if position != expected:
                sequences += _run(name, start, expected, writer, labels)
                start = position
            writer.append(frame)
            expected = position + 1
        sequences += _run(name, start, expected, writer, labels)
        if progress is not None:
            progress(number + 1, len(source.sequences))
    return sequences, skipped


def _run(name: str, start: int, end: int, writer: FrameWriter, labels: dict[str, Any]) -> Iterable[Sequence]:
    """The run of positions [start, end), whose frames were written last; nothing if it is empty."""
    if start == end:
        return []
    cut = {key: value[start:end] if isinstance(value, list) else value for key, value in labels.items()}
    return [Sequence(name, start, writer.count - (end - start), end - start, cut)]


class FrameWriter:
    """Writes frames one after another into a .npy file whose length is known only at the end.

    Plain writes rather than a writable memory map: on a full disk they raise OSError, where the map would kill the
    process with SIGBUS.
    """

    def __init__(self, path: Path, size: HeightWidth) -> None:
        self.count = 0
        self._size = size
        self._file: IO[bytes] = path.open("wb")
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, frame: Frame) -> None:
        """Write one frame, uint8 [H, W, 3]."""
        assert frame.shape == (*self._size, 3), frame.shape
        assert frame.dtype == np.uint8, frame.dtype
        self._file.write(np.ascontiguousarray(frame).data)
        self.count += 1

    def _write_header(self) -> None:
        shape = (self.count, *self._size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._file.seek(0)
                self._write_header()
                # numpy leaves room in the header for a first axis of 21 digits, for exactly this use
                assert self._file.tell() == self._data_start, "the .npy header has changed its length"
        finally:
            self._file.close()


def _check_faults(source: Source, skipped: list[Fault]) -> None:
    if len(skipped) > MAX_FAULTY * source.num_units:
        raise DataError(
            f"{_faults_text(source, skipped)} At most {MAX_FAULTY:.0%} may be unreadable; copy them again from where "
            "they were recorded, or remove them."
        )


def _faults_text(source: Source, skipped: list[Fault]) -> str:
    named = "; ".join(f"{fault.file}: {fault.reason}" for fault in skipped[:NAMED_FAULTS])
    more = f"; and {len(skipped) - NAMED_FAULTS} more" if len(skipped) > NAMED_FAULTS else ""
    return f"{len(skipped)} of {source.num_units} {source.unit} cannot be read ({named}{more})."


def _num_threads() -> int:
    return min(8, os.cpu_count() or 1)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process builds the frame store; waiting for it (%s)", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turns what the file system refuses into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the frame store {folder} cannot be written: {error}. It needs room and a folder that you may write to: "
            f"set data.store_dir (or the environment variable {STORE_VARIABLE}) to one."
        ) from error
