"""One uint8 store of decoded frames per (source, image size), shared by all trials and processes of a machine.

Frames are decoded and resized once, into `frames.npy`, which every process maps read-only: the page cache holds one
copy, however many trials run, and drops what does not fit into memory. A store is built in a scratch folder under a
file lock and renamed into place when it is on the disk, so a store that opens is whole. What a killed build leaves in
the scratch folder is checked and kept by the next one; a damaged store becomes such a scratch folder again.

Opening checks sizes, structure and the text of every record; `verify` also reads every frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from model.data.base import Fault, HeightWidth, Source
from model.data.building import FRAMES, RECORDS, Progress, build
from model.data.config import DataConfig
from model.data.framefile import damaged, open_frames
from model.data.records import Record, Sequence, read_records
from model.data.sources import open_source
from model.errors import DataError

STORE_VERSION = 2  # raise it whenever equal files would give other frames or another format
STORE_VARIABLE = "TACTILE_SWEEP_STORE"  # environment variable: where stores go unless data.store_dir says so
BUILDING = ".building"  # ends the name of the scratch folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames: `frames` uint8 [F, H, W, 3], mapped read-only; `skipped` are the files that could not be read."""

    folder: Path
    frames: NDArray[np.uint8]
    sequences: list[Sequence]
    skipped: list[Fault]


class StoreDamage(Exception):
    """A store's folder does not hold a whole store: why."""


def open_store(data: DataConfig, progress: Progress | None = None) -> FrameStore:
    """The store of a config's frames; built first if it is not there, mended if it is damaged.

    Args:
        data: source, root, image size and synthetic parameters name the store.
        progress: called with (frames done, frames in all as far as is known) while the store is built.

    Raises:
        DataError: no frames, more than 5 % of the files unreadable, or the store cannot be written.
    """
    source, size = open_source(data), data.height_width
    folder = store_root(data) / f"{source.kind}-{_key(source, size)}"
    with suppress(StoreDamage):
        return _opened(folder, source, size)
    with _writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            try:
                return _opened(folder, source, size)  # another process may have built it meanwhile
            except StoreDamage as damage:
                if folder.exists():
                    log.warning("the frame store %s is damaged (%s); what is damaged is decoded again", folder, damage)
                    _unfinish(folder)
            log.info("decoding %d sequences into %s", len(source.sequences), folder)
            build(source, size, _scratch(folder), progress)
            _scratch(folder).rename(folder)
            return _opened(folder, source, size)


def store_root(data: DataConfig) -> Path:
    """Where stores are kept: data.store_dir, else $TACTILE_SWEEP_STORE, else the user's cache folder."""
    if data.store_dir is not None:
        return data.store_dir
    given = os.environ.get(STORE_VARIABLE)
    return Path(given).expanduser().absolute() if given else platformdirs.user_cache_path("tactile-sweep") / "frames"


def verify(folder: Path) -> list[str]:
    """Names of the sequences of a finished store whose frames are not as they were decoded; reads all of it.

    Raises:
        StoreDamage: the store does not even open.
    """
    records, _ = read_store(folder)
    name_of = {record.rows: record.name for record in records}
    try:
        return [name_of[rows] for rows in damaged(folder / FRAMES, list(name_of))]
    except OSError as error:  # a bad sector
        raise StoreDamage(f"{FRAMES} cannot be read: {error}") from error


def repair(folder: Path) -> None:
    """Hand a store back to be built: who opens it next decodes again what is damaged, and keeps the rest.

    Raises:
        DataError: the folder cannot be renamed.
    """
    with _writable(folder), _locked(folder):
        _unfinish(folder)


def read_store(folder: Path) -> tuple[list[Record], NDArray[np.uint8]]:
    """Records and frames of a finished store. Raises StoreDamage where they are not there or do not fit together."""
    try:
        lines = read_records(folder / RECORDS)
        frames = open_frames(folder / FRAMES)
    except (OSError, ValueError) as error:
        raise StoreDamage(str(error)) from error
    if None in lines:
        raise StoreDamage(f"line {lines.index(None) + 1} of {RECORDS} is not as it was written")
    # of two lines with one number the later holds: the rows of a sequence had moved
    numbered = {record.number: record for record in lines if record is not None}
    records = [numbered[number] for number in sorted(numbered)]
    firsts, ends = [record.rows.first for record in records], [record.rows.end for record in records]
    if [*firsts, len(frames)] != [0, *ends]:
        raise StoreDamage(f"the frames that {RECORDS} lists are not the {len(frames)} of {FRAMES}")
    return records, frames


def _opened(folder: Path, source: Source, size: HeightWidth) -> FrameStore:
    """The store in `folder`. Raises StoreDamage where there is none that can be used."""
    records, frames = read_store(folder)
    if [record.name for record in records] != source.sequences or frames.shape[1:] != (*size, 3):
        raise StoreDamage("it holds other sequences or another image size than its name says")
    runs = [run for record in records for run in record.runs]
    return FrameStore(folder, frames, runs, [fault for record in records for fault in record.skipped])


def _unfinish(folder: Path) -> None:
    """Make a store a scratch folder, from which `build` goes on."""
    scratch = _scratch(folder)
    if scratch.exists():  # a copy that someone made: the store itself is the better one to go on from
        shutil.rmtree(scratch)
    folder.rename(scratch)


def _scratch(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{BUILDING}")


def _key(source: Source, size: HeightWidth) -> str:
    content = json.dumps([STORE_VERSION, source.kind, size, source.identity()], sort_keys=True)
    return f"{size[0]}x{size[1]}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time builds a store; the operating system frees the lock of one that is killed."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process builds the frame store; waiting for it (%s)", lock.lock_file)
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
            f"set data.store_dir (or the environment variable {STORE_VARIABLE}) to one, or make room; what was decoded "
            "so far is kept for the next try."
        ) from error
