"""Videos: every file is a sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

import av

from model.data.base import (
    VIDEO_SUFFIXES,
    Fault,
    Frame,
    HeightWidth,
    check_folder,
    file_identity,
    hidden,
    nothing_found,
    ordered_map,
    relative,
)
from model.data.images import resized
from model.data.threads import decoding_threads
from model.errors import DataError, one_line

CUT_SHORT = 0.95  # a video that gives less than this share of the frames that its header promises was cut


class VideoSource:
    """root/**/*.{avi,mp4,mkv,mov,webm,m4v}, a sequence each, named by its path without the suffix.

    A video that cannot be opened, breaks off, or gives fewer frames than its header promises is one Fault, after the
    frames that could be decoded before it: these are kept.
    """

    kind = "videos"
    unit = "videos"

    def __init__(self, root: Path) -> None:
        self._root = root
        check_folder(root, "videos")
        self._paths = [
            path
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not hidden(path, root)
        ]
        if not self._paths:
            wanted = f"{', '.join(sorted(VIDEO_SUFFIXES))} files in {root} or its folders"
            raise DataError(nothing_found(root, "videos", wanted))
        names = [relative(path.with_suffix(""), root) for path in self._paths]
        uses = Counter(names)
        # a.avi beside a.mp4: the suffix keeps the two apart
        self.sequences = [
            name if uses[name] == 1 else relative(path, root) for name, path in zip(names, self._paths, strict=True)
        ]
        self.num_units = len(self._paths)

    def identity(self) -> Any:
        return file_identity(self._root, self._paths)

    def num_frames(self) -> int:
        promised = 0
        for path in self._paths:
            with suppress(av.error.FFmpegError, OSError), av.open(str(path)) as container:
                if container.streams.video:
                    promised += _promised(container)
        return promised

    def labels(self, sequence: int) -> dict[str, Any]:
        return {}

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        path = self._paths[sequence]
        fault: list[Fault] = []

        def frames() -> Iterator[av.VideoFrame]:
            try:
                yield from _decoded(path)
            except (av.error.FFmpegError, OSError, ValueError, EOFError) as error:
                fault.append(Fault(relative(path, self._root), one_line(error)))

        position = -1
        for position, frame in enumerate(ordered_map(pool, lambda frame: resized(frame.to_image(), size), frames())):
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
        stream.codec_context.thread_count = decoding_threads()
        promised = _promised(container)
        count = 0
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise ValueError(f"frame {count} is damaged")
            count += 1
            yield frame
        if count == 0 or count < CUT_SHORT * promised:
            raise EOFError(f"breaks off after {count} of {promised} frames")


def _promised(container: av.container.InputContainer) -> int:
    """How many frames the header of a video says there are; 0 where it does not."""
    stream = container.streams.video[0]
    if not stream.frames and container.duration and stream.average_rate:  # Matroska gives the duration only
        return int(container.duration / av.time_base * stream.average_rate)
    return int(stream.frames)
