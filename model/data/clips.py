"""Clips: 4 frames cut out of the frame store, split into a training and a held-out set.

A clip is an index into the store, not a copy. The split goes by sequence or by group of sequences, never by frame:
neighbouring tactile frames are nearly equal and would leak from one side to the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.config import CLIP_FRAMES, DataConfig
from model.data.store import FrameStore, Progress, Sequence, open_store
from model.errors import DataError

STD_FLOOR = 1 / 255  # one grey level: a constant channel is not blown up, and nothing is divided by zero
STATISTICS_FRAMES = 256  # frames that are summed at a time

log = logging.getLogger(__name__)


class ClipSet:
    """The clips of one side of the split, numbered from 0.

    Args:
        store: where the frames are.
        sequences: the runs that clips are cut from.
        run: [N] which of them each clip is cut from.
        start: [N] its first frame, relative to the run.
        frame_stride: distance between the frames of a clip.
    """

    def __init__(
        self,
        store: FrameStore,
        sequences: list[Sequence],
        run: NDArray[np.int64],
        start: NDArray[np.int64],
        frame_stride: int,
    ) -> None:
        self._frames = store.frames
        self._sequences = sequences
        self._run = run
        self._start = start
        self._offsets = np.arange(CLIP_FRAMES) * frame_stride
        self._first = (
            np.array([sequence.first for sequence in sequences], np.int64)[run] + start
        )  # [N] row in the store

    def __len__(self) -> int:
        return len(self._run)

    def gather(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Clips by number, [B] -> uint8 [B, 4, H, W, 3], in one read. Raises IndexError beyond the last clip."""
        return self._frames[self._first[ids][:, None] + self._offsets]

    def clip_id(self, number: int) -> str:
        """`sequence:position`, the position of the clip's first frame in its sequence."""
        sequence = self._sequences[self._run[number]]
        return f"{sequence.name}:{sequence.start + self._start[number]}"

    def labels(self, number: int) -> dict[str, Any]:
        """Label name -> the sequence's value, or a list with those of the clip's 4 frames. Empty without labels."""
        sequence, frames = self._sequences[self._run[number]], self._start[number] + self._offsets
        return {
            name: [value[frame] for frame in frames] if isinstance(value, list) else value
            for name, value in sequence.labels.items()
        }


@dataclass(frozen=True)
class Clips:
    """Both sides of the split, and the statistics of the training frames on the 0-1 scale.

    Attributes:
        train: all training clips.
        held_out: at most `data.eval_clips` clips of sequences (or groups) that are not in `train`.
        mean, std: float32 [3], per channel.
        mean_frame: float32 [H, W, 3].
    """

    train: ClipSet
    held_out: ClipSet
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    mean_frame: NDArray[np.float32]


def load_clips(data: DataConfig, progress: Progress | None = None) -> Clips:
    """The clips of a config; its frames are decoded first where no store holds them yet.

    Raises:
        DataError: no usable frames (see `open_store`), every sequence too short for a clip, or nothing to hold out.
    """
    store = open_store(data, progress)
    runs = _long_enough(store, data)
    train, held_out = split(runs, data)
    mean, std, mean_frame = _statistics(store, train)
    return Clips(
        train=_cut(store, train, data),
        held_out=_cut(store, held_out, data, data.eval_clips),
        mean=mean,
        std=std,
        mean_frame=mean_frame,
    )


def frame_span(data: DataConfig) -> int:
    """Frames of a sequence from the first to the last of a clip, both included."""
    return (CLIP_FRAMES - 1) * data.frame_stride + 1


def clip_starts(length: int, data: DataConfig) -> NDArray[np.int64]:
    """First frames of the clips of a run of `length` frames; none where it is shorter than a clip."""
    return np.arange(0, length - frame_span(data) + 1, data.clip_step, dtype=np.int64)


def split(sequences: list[Sequence], data: DataConfig) -> tuple[list[Sequence], list[Sequence]]:
    """(training, held-out) runs; whole groups go to one side. Depends on names and seed, not on the order of files.

    Raises:
        DataError: there is only one group, or `data.group_pattern` does not match a name.
    """
    groups = sorted({_group(sequence.name, data.group_pattern) for sequence in sequences})
    if len(groups) < 2:
        if data.group_pattern is None:
            fault, remedy = f"there is only one sequence, {groups[0]!r}", "record more sequences"
        else:
            fault = f"data.group_pattern = {data.group_pattern!r} puts all sequences into one group, {groups[0]!r}"
            remedy = "use another data.group_pattern, or record more"
        raise DataError(f"{fault}; at least two are needed, one to train on and one to hold out: {remedy}.")
    order = np.random.default_rng(data.split_seed).permutation(len(groups))
    num_held_out = min(max(round(data.eval_fraction * len(groups)), 1), len(groups) - 1)
    held_out_groups = {groups[index] for index in order[:num_held_out]}
    sides: tuple[list[Sequence], list[Sequence]] = ([], [])
    for sequence in sequences:
        sides[_group(sequence.name, data.group_pattern) in held_out_groups].append(sequence)
    return sides


def _group(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None:
        raise DataError(
            f"data.group_pattern = {pattern!r} does not match the sequence {name!r}, so its group is unknown; "
            "the pattern must match every sequence's name."
        )
    return (match.group(1) if match.re.groups else None) or match.group()


def _long_enough(store: FrameStore, data: DataConfig) -> list[Sequence]:
    span = frame_span(data)
    usable = [sequence for sequence in store.sequences if sequence.length >= span]
    if not usable:
        longest = max(store.sequences, key=lambda sequence: sequence.length)
        raise DataError(
            f"a clip spans {span} frames (3 * data.frame_stride + 1), but the longest sequence, {longest.name!r}, has "
            f"{longest.length} without a gap; use a smaller data.frame_stride (now {data.frame_stride}) or longer "
            "sequences."
        )
    if len(usable) < len(store.sequences):
        log.warning(
            "%d of %d sequences are shorter than the %d frames of a clip and are left out",
            len(store.sequences) - len(usable),
            len(store.sequences),
            span,
        )
    return usable


def _cut(store: FrameStore, sequences: list[Sequence], data: DataConfig, at_most: int | None = None) -> ClipSet:
    """All clips of the sequences, or `at_most` of them that lie evenly among all."""
    starts = [clip_starts(sequence.length, data) for sequence in sequences]
    run, start = np.repeat(np.arange(len(sequences)), [len(s) for s in starts]), np.concatenate(starts)
    if at_most is not None and at_most < len(start):
        kept = ((np.arange(at_most) + 0.5) * (len(start) / at_most)).astype(np.int64)
        run, start = run[kept], start[kept]
    return ClipSet(store, sequences, run, start, data.frame_stride)


Statistics = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def _statistics(store: FrameStore, sequences: list[Sequence]) -> Statistics:
    """(mean [3], std [3], mean frame [H, W, 3]) of the sequences' frames on the 0-1 scale, kept beside the frames."""
    spans = [(sequence.first, sequence.length) for sequence in sequences]
    key = hashlib.sha256(json.dumps(spans).encode()).hexdigest()[:16]
    path = store.folder / f"statistics-{key}.npy"
    shape = (*store.frames.shape[1:], 2)  # mean and mean square of every pixel and channel
    moments = _read_moments(path, shape)
    if moments is None:
        moments = _moments(store.frames, spans)
        _write_moments(path, moments)
    mean_frame, square_frame = moments[..., 0], moments[..., 1]
    mean = mean_frame.mean(axis=(0, 1))
    std = np.sqrt(np.maximum(square_frame.mean(axis=(0, 1)) - mean**2, 0))
    return mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32), mean_frame.astype(np.float32)


def _moments(frames: NDArray[np.uint8], spans: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Mean and mean square over frames, [H, W, 3, 2] on the 0-1 scale; integer sums, so exact in any order."""
    total = np.zeros(frames.shape[1:], np.uint64)
    squares = np.zeros(frames.shape[1:], np.uint64)
    for first, length in spans:
        for begin in range(first, first + length, STATISTICS_FRAMES):
            chunk = frames[begin : min(begin + STATISTICS_FRAMES, first + length)].astype(np.uint32)
            total += chunk.sum(axis=0, dtype=np.uint64)
            squares += (chunk * chunk).sum(axis=0, dtype=np.uint64)
    count = sum(length for _, length in spans)
    return np.stack([total / (255.0 * count), squares / (255.0**2 * count)], axis=-1)


def _read_moments(path: Path, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    try:
        moments: NDArray[np.float64] = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return moments if moments.shape == shape and moments.dtype == np.float64 else None


def _write_moments(path: Path, moments: NDArray[np.float64]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            np.save(file, moments)
        scratch.replace(path)
    except OSError as error:  # a read-only store still serves; it is only slower
        log.warning("%s cannot be kept, so every trial computes it again: %s", path, error)
