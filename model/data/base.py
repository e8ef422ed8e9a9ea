"""What all sources of frames share: the protocol, faults, decoding in order, words for where nothing is found."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError

Frame = NDArray[np.uint8]  # [H, W, 3], RGB
HeightWidth = tuple[int, int]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v"}
READ_AHEAD = 64  # frames decoded ahead of the one that is taken: keeps the pool busy and memory bounded

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Fault:
    """A file that cannot be used: its name relative to the root, and why."""

    file: str
    reason: str


class Source(Protocol):
    """Sequences of frames.

    Attributes:
        kind: `data.source` of the config.
        unit: what a Fault is counted in: "images", "videos".
        num_units: how many of them there are.
        sequences: their names, in reading order; unique.
    """

    kind: str
    unit: str
    num_units: int
    sequences: list[str]

    def identity(self) -> Any:
        """JSON data that changes whenever the frames may have changed."""

    def num_frames(self) -> int:
        """About how many frames there are: what file names and headers tell, for a progress bar."""

    def labels(self, sequence: int) -> dict[str, Any]:
        """Label name -> one value, or a list with a value per position; empty where there are none."""

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        """(position, frame) in order of position; decoding runs in `pool`, in bounded memory."""


def ordered_map(pool: Executor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` in a pool: results in order, at most READ_AHEAD of them waiting (Executor.map takes all items at once)."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > READ_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def check_folder(root: Path, kind: str) -> None:
    """Raises DataError unless `root` is a folder; `kind` says of what."""
    if not root.exists():
        raise DataError(f"data.root = {root} does not exist; give the folder that holds the {kind}.")
    if not root.is_dir():
        raise DataError(f"data.root = {root} is a file; give the folder that holds the {kind}.")


def nothing_found(root: Path, kind: str, wanted: str) -> str:
    """Says what was looked for in a source of `kind` (`data.source`), and what is there instead."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not hidden(path, root)]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    what = {"frames": "frames", "videos": "videos"}.get(kind, f"frames in the layout of {kind}")
    text = f"data.root = {root} holds no {what}. Looked for {wanted}. "
    if not files:
        return text + "The folder is empty."
    if kind != "videos" and videos and not images:
        return text + f"It holds {_counted(videos, 'video')}: did you mean source: videos?"
    if kind == "videos" and images:
        return text + f"It holds {_counted(images, 'image')}: did you mean source: frames?"
    if kind == "frames" and images and not any(re.search(r"\d$", path.stem) for path in images):
        return text + f"The names of its images, such as {relative(images[0], root)}, do not end in a number."
    if kind == "frames" and images:
        deeper = f"such as {relative(images[0], root)}; give the folder that holds the sequences' folders."
        return text + f"It holds {_counted(images, 'image')} deeper down, {deeper}"
    found = images or files
    noun = "image" if images else "other file"
    return text + f"It holds {_counted(found, noun)}, such as {relative(found[0], root)}."


def _counted(paths: list[Path], noun: str) -> str:
    return f"{len(paths)} {noun}" + ("" if len(paths) == 1 else "s")


def file_identity(root: Path, paths: Iterable[Path]) -> Any:
    """JSON data that changes with the root and with the name, size or time of any of the files."""
    return [str(root), [[relative(path, root), *_size_and_time(path)] for path in paths]]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere (git-annex leaves them): an unreadable file, found when it is read
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def relative(path: Path, root: Path) -> str:
    """The path below `root`, with slashes."""
    return path.relative_to(root).as_posix()


def hidden(path: Path, root: Path) -> bool:
    """A part of the path below `root` begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
