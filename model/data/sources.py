"""Where frames come from: the procedural GelSight, folders of images, or videos, behind one small protocol.

A source lists its sequences and reads one as (position, frame) pairs. A frame that cannot be read is a `Fault` in its
place; wherever positions do not follow on, the sequence is split, so no clip spans a missing frame.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data import synthetic
from model.data.config import DataConfig, SyntheticConfig
from model.errors import DataError

Frame = NDArray[np.uint8]  # [H, W, 3], RGB
HeightWidth = tuple[int, int]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v"}
CUT_SHORT = 0.95  # a video that gives less than this share of the frames that its header promises was cut
READ_AHEAD = 64  # frames decoded ahead of the one that is taken: keeps the pool busy and memory bounded

# what Pillow's decoders raise on damaged files; OSError holds UnidentifiedImageError and "image file is truncated"
IMAGE_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

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

    def labels(self, sequence: int) -> dict[str, Any]:
        """Label name -> one value, or a list with a value per position; empty where there are none."""

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        """(position, frame) in order of position; decoding runs in `pool`, in bounded memory."""


def open_source(data: DataConfig) -> Source:
    """The source that a config names. Raises DataError where its files are missing."""
    if data.source == "synthetic":
        return SyntheticSource(data.synthetic)
    assert data.root is not None  # DataConfig has checked it
    return FrameSource(data.root) if data.source == "frames" else VideoSource(data.root)


# --- synthetic -----------------------------------------------------------------------------------------------------


class SyntheticSource:
    """The presses of model/data/synthetic.py, one sequence each, with labels."""

    kind = "synthetic"
    unit = "presses"

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config
        self.num_units = config.sequences
        self.sequences = [f"press_{index:04d}" for index in range(config.sequences)]

    def identity(self) -> Any:
        return self._config.model_dump()

    def labels(self, sequence: int) -> dict[str, Any]:
        press = synthetic.press_of(self._config, sequence)
        return {
            "indenter": press.indenter,
            "motion": press.motion,
            "depth_mm": [round(float(depth), 4) for depth in press.depth_mm],
            "slip": press.slip.tolist(),
        }

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        yield from enumerate(synthetic.make_press(self._config, sequence, size)[0])


# --- folders of images ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    path: Path
    position: int


class FrameSource:
    """root/<sequence>/<index>.{jpg,jpeg,png}, or images in root itself as the one sequence, where no folder has any.

    The index is the number at the end of the file's stem, sorted as an integer (2 before 10, padded or not); images
    without a number and hidden files are left alone. Positions are the indices; where all of a sequence's indices
    are a multiple of a step apart (0, 3, 6), they are divided by it. A missing index therefore splits the sequence.
    """

    kind = "frames"
    unit = "images"

    def __init__(self, root: Path) -> None:
        self._root = root
        _check_folder(root, "frames")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        listed = [(folder.name, _numbered_images(folder)) for folder in folders]
        self._images = {name: images for name, images in listed if images}
        if not self._images and (loose := _numbered_images(root)):
            self._images = {root.name: loose}
        if not self._images:
            wanted = f"{root}/<sequence>/<index>.jpg (or .jpeg, .png), or such images in {root} itself"
            raise DataError(_nothing_found(root, "frames", wanted))
        self.sequences = list(self._images)
        self.num_units = sum(map(len, self._images.values()))

    def identity(self) -> Any:
        return _file_identity(self._root, (image.path for images in self._images.values() for image in images))

    def labels(self, sequence: int) -> dict[str, Any]:
        return {}

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        images = self._images[self.sequences[sequence]]

        def decoded(image: _Image) -> tuple[int, Frame | Fault]:
            try:
                return image.position, read_image(image.path, size)
            except IMAGE_FAULTS as error:
                return image.position, Fault(_relative(image.path, self._root), _brief(error))

        yield from ordered_map(pool, decoded, images)


def _numbered_images(folder: Path) -> list[_Image]:
    """The images right in `folder` by their number. Raises DataError where two have the same one."""
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = re.search(r"(\d+)$", path.stem)
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES or number is None:
            continue
        index = int(number.group(1))
        if index in numbered:
            raise DataError(
                f"data.root: {numbered[index]} and {path.name} have the same index {index}; every image of a sequence "
                "needs its own. Put different cameras or recordings into folders of their own."
            )
        numbered[index] = path
    indices = sorted(numbered)
    step = math.gcd(*(after - before for before, after in itertools.pairwise(indices))) or 1
    return [_Image(numbered[index], index // step) for index in indices]


def read_image(path: Path, size: HeightWidth) -> Frame:
    """An image of any mode, the whole of it resized: RGB uint8 [H, W, 3]. Raises one of IMAGE_FAULTS."""
    height, width = size
    with Image.open(path) as image:
        # lets libjpeg decode at 1/2, 1/4 or 1/8 where that is still twice what the antialiased resizing needs
        image.draft(image.mode, (2 * width, 2 * height))
        image.load()
        return _resized(_eight_bit(image).convert("RGB"), size)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow would clip at 255, scaled to 8 bits; anything else as it is."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))


def _resized(image: Image.Image, size: HeightWidth) -> Frame:
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


# --- videos --------------------------------------------------------------------------------------------------------


class VideoSource:
    """root/**/*.{avi,mp4,mkv,mov,webm,m4v}, a sequence each, named by its path without the suffix.

    A video that cannot be opened, breaks off, or gives fewer frames than its header promises is one Fault, after the
    frames that could be decoded before it: these are kept.
    """

    kind = "videos"
    unit = "videos"

    def __init__(self, root: Path) -> None:
        self._root = root
        _check_folder(root, "videos")
        self._paths = [
            path
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not _hidden(path, root)
        ]
        if not self._paths:
            wanted = f"{', '.join(sorted(VIDEO_SUFFIXES))} files in {root} or its folders"
            raise DataError(_nothing_found(root, "videos", wanted))
        names = [_relative(path.with_suffix(""), root) for path in self._paths]
        uses = Counter(names)
        # a.avi beside a.mp4: the suffix keeps the two apart
        self.sequences = [
            name if uses[name] == 1 else _relative(path, root) for name, path in zip(names, self._paths, strict=True)
        ]
        self.num_units = len(self._paths)

    def identity(self) -> Any:
        return _file_identity(self._root, self._paths)

    def labels(self, sequence: int) -> dict[str, Any]:
        return {}

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        path = self._paths[sequence]
        fault: list[Fault] = []

        def frames() -> Iterator[av.VideoFrame]:
            try:
                yield from _decoded(path)
            except (av.error.FFmpegError, OSError, ValueError, EOFError) as error:
                fault.append(Fault(_relative(path, self._root), _brief(error)))

        position = -1
        for position, frame in enumerate(ordered_map(pool, lambda frame: _resized(frame.to_image(), size), frames())):
            yield position, frame
        for found in fault:
            yield position + 1, found


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a video. Raises EOFError at its end if frames are missing, FFmpegError where it cannot go on."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("holds no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        promised = stream.frames
        if not promised and container.duration and stream.average_rate:  # Matroska gives the duration only
            promised = int(container.duration / av.time_base * stream.average_rate)
        count = 0
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError(f"frame {count} is damaged")
            count += 1
            yield frame
        if count == 0 or count < CUT_SHORT * promised:
            raise EOFError(f"breaks off after {count} of {promised} frames")


# --- shared --------------------------------------------------------------------------------------------------------


def ordered_map(pool: Executor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` in a pool: results in order, at most READ_AHEAD of them waiting (Executor.map takes all items at once)."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > READ_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check_folder(root: Path, kind: str) -> None:
    if not root.exists():
        raise DataError(f"data.root = {root} does not exist; give the folder that holds the {kind}.")
    if not root.is_dir():
        raise DataError(f"data.root = {root} is a file; give the folder that holds the {kind}.")


def _nothing_found(root: Path, kind: str, wanted: str) -> str:
    """Says what was looked for and what is there instead."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not _hidden(path, root)]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    text = f"data.root = {root} holds no {kind}. Looked for {wanted}. "
    if not files:
        return text + "The folder is empty."
    if kind == "frames" and videos:
        return text + f"It holds {_counted(videos, 'video')}: did you mean source: videos?"
    if kind == "videos" and images:
        return text + f"It holds {_counted(images, 'image')}: did you mean source: frames?"
    if images and not any(re.search(r"\d$", path.stem) for path in images):
        return text + f"The names of its images, such as {_relative(images[0], root)}, do not end in a number."
    if images:
        deeper = f"such as {_relative(images[0], root)}; give the folder that holds the sequences' folders."
        return text + f"It holds {_counted(images, 'image')} deeper down, {deeper}"
    return text + f"It holds {_counted(files, 'other file')}, such as {_relative(files[0], root)}."


def _counted(paths: list[Path], noun: str) -> str:
    return f"{len(paths)} {noun}" + ("" if len(paths) == 1 else "s")


def _file_identity(root: Path, paths: Iterable[Path]) -> Any:
    return [str(root), [[_relative(path, root), *_size_and_time(path)] for path in paths]]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere (git-annex leaves them): an unreadable file, found when it is read
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
