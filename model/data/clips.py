"""Clips: 4 frames cut out of a frame store, or out of the stores of a mixture.

A clip is an index into a store, not a copy. Names, labels and sensors are joined to it when clips are opened, and cost
no decoding when they change.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.base import Fault
from model.data.config import CLIP_FRAMES, DataConfig
from model.data.labels import labelled, read_labels, sensor_of
from model.data.mixture import PartClips, PartData, Permutation, draw, parts_of
from model.data.split import split
from model.data.spread import evenly_spread
from model.data.statistics import statistics_of
from model.data.store import FrameStore, Progress, Sequence, open_store
from model.errors import DataError

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """Frames without a gap that clips are cut from: `sequence` with its name in the mixture and all of its labels."""

    sequence: Sequence
    frames: NDArray[np.uint8]  # of the store that it is in
    sensor: str
    data: DataConfig  # how clips are cut from it


class ClipSet:
    """The clips of one side of the split, numbered from 0.

    Args:
        runs: what clips are cut from.
        run: [N] which of them each clip is cut from.
        start: [N] its first frame, relative to the run.
        sensors: the names that `sensor_of` gives places in.
    """

    def __init__(
        self, runs: list[Run], run: NDArray[np.int64], start: NDArray[np.int64], sensors: tuple[str, ...]
    ) -> None:
        self._runs = runs
        self._run = run
        self._start = start
        self._row = np.array([each.sequence.first for each in runs], np.int64)[run] + start  # [N] in the store
        self._sensor = np.array([sensors.index(each.sensor) for each in runs], np.int64)
        self._windows = [(each.frames, frame_span(each.data), each.data.frame_stride) for each in runs]

    def __len__(self) -> int:
        return len(self._run)

    def gather(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Clips by number, [B] -> uint8 [B, 4, H, W, 3]. Raises IndexError beyond the last clip."""
        clips = np.empty((len(ids), CLIP_FRAMES, *self._windows[0][0].shape[1:]), np.uint8)
        # a slice a clip goes over any number of stores, and is as fast as one fancy index into a single one
        for clip, run, row in zip(clips, self._run[ids].tolist(), self._row[ids].tolist(), strict=True):
            frames, span, stride = self._windows[run]
            clip[...] = frames[row : row + span : stride]
        return clips

    def clip_id(self, number: int) -> str:
        """`sequence:position`, the position of the clip's first frame in its sequence."""
        sequence = self._runs[self._run[number]].sequence
        return f"{sequence.name}:{sequence.start + self._start[number]}"

    def labels(self, number: int) -> dict[str, Any]:
        """Label name -> the sequence's value, or a list with those of the clip's 4 frames, None for a frame without
        one. A label that neither the sequence nor any of the frames has is absent."""
        run, start = self._runs[self._run[number]], self._start[number]
        labels: dict[str, Any] = {}
        for name, value in run.sequence.labels.items():
            if isinstance(value, list):
                value = value[start : start + frame_span(run.data) : run.data.frame_stride]
                if all(of_frame is None for of_frame in value):
                    continue
            labels[name] = value
        return labels

    def sensor_of(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Places of the clips' sensors in `Clips.sensors`, [B] -> int64 [B]. Raises IndexError beyond the last clip."""
        return self._sensor[self._run[numbers]]


@dataclass(frozen=True)
class Clips:
    """Both sides of the split, and the statistics of the training frames on the 0-1 scale.

    Attributes:
        train: all training clips; those of one part of a mixture follow on those of another.
        held_out: at most `data.eval_clips` clips of sequences (or groups) that are not in `train`.
        mean, std: float32 [3], per channel.
        mean_frame: float32 [H, W, 3].
        sensors: names of the sensors of both sides, sorted.
        parts: which training clips are of which part; one part where there is no mixture.
        num_sequences: runs without a gap in all stores.
        skipped: files that could not be read.
    """

    train: ClipSet
    held_out: ClipSet
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    mean_frame: NDArray[np.float32]
    sensors: tuple[str, ...]
    parts: tuple[PartClips, ...]
    num_sequences: int
    skipped: tuple[Fault, ...]

    def draw(self, clips: int, permutation: Permutation) -> NDArray[np.int64]:
        """Numbers of the training clips of an epoch of `clips` clips, in order: int64 [clips] (model/data/mixture.py).

        Args:
            clips: at most `len(train)` where no part has a weight.
            permutation: n -> a random order of 0..n-1; it is called several times where parts have weights.
        """
        return draw(self.parts, clips, permutation)


def load_clips(data: DataConfig, progress: Progress | None = None) -> Clips:
    """The clips of a config; frames are decoded first where no store holds them yet.

    Raises:
        DataError: no usable frames (see `open_store`), labels that do not fit them, every sequence too short for a
            clip, or nothing to hold out.
    """
    opened = [_open(part, progress) for part in parts_of(data)]
    train = [part.runs(part.train) for part in opened]
    held_out = [part.runs(part.held_out) for part in opened]
    sensors = tuple(sorted({run.sensor for side in (train, held_out) for runs in side for run in runs}))
    counts = [sum(len(clip_starts(run.sequence.length, run.data)) for run in runs) for runs in train]
    firsts = np.cumsum([0, *counts]).tolist()
    statistics = statistics_of((part.store, part.train) for part in opened)
    return Clips(
        train=_cut(train, sensors),
        held_out=_cut(held_out, sensors, data.eval_clips),
        mean=statistics.mean,
        std=statistics.std,
        mean_frame=statistics.mean_frame,
        sensors=sensors,
        parts=tuple(
            PartClips(first, count, part.weight) for first, count, part in zip(firsts, counts, opened, strict=False)
        ),
        num_sequences=sum(len(part.store.sequences) for part in opened),
        skipped=tuple(Fault(part.prefix + fault.file, fault.reason) for part in opened for fault in part.store.skipped),
    )


class _Opened(NamedTuple):
    """A part with its frames, its sequences labelled and split."""

    prefix: str
    data: DataConfig
    weight: float | None
    store: FrameStore
    train: list[Sequence]
    held_out: list[Sequence]

    def runs(self, side: list[Sequence]) -> list[Run]:
        return [
            Run(
                replace(sequence, name=self.prefix + sequence.name),
                self.store.frames,
                sensor_of(sequence.name, self.data),
                self.data,
            )
            for sequence in side
        ]


def _open(part: PartData, progress: Progress | None) -> _Opened:
    try:
        tables = read_labels(part.data)  # first: what is wrong with them is told before hours of decoding
        store = open_store(part.data, progress)
        train, held_out = split(_long_enough(labelled(store, tables), part.data), part.data)
    except DataError as error:
        raise DataError(f"{part.prefix.rstrip('/')}: {error}" if part.prefix else str(error)) from error
    return _Opened(*part, store, train, held_out)


def frame_span(data: DataConfig) -> int:
    """Frames of a sequence from the first to the last of a clip, both included."""
    return (CLIP_FRAMES - 1) * data.frame_stride + 1


def clip_starts(length: int, data: DataConfig) -> NDArray[np.int64]:
    """First frames of the clips of a run of `length` frames; none where it is shorter than a clip."""
    return np.arange(0, length - frame_span(data) + 1, data.clip_step, dtype=np.int64)


def _long_enough(sequences: list[Sequence], data: DataConfig) -> list[Sequence]:
    span = frame_span(data)
    usable = [sequence for sequence in sequences if sequence.length >= span]
    if not usable:
        longest = max(sequences, key=lambda sequence: sequence.length)
        raise DataError(
            f"a clip spans {span} frames (3 * data.frame_stride + 1), but the longest sequence, {longest.name!r}, has "
            f"{longest.length} without a gap; use a smaller data.frame_stride (now {data.frame_stride}) or longer "
            "sequences."
        )
    if len(usable) < len(sequences):
        log.warning(
            "%d of %d sequences are shorter than the %d frames of a clip and are left out",
            len(sequences) - len(usable),
            len(sequences),
            span,
        )
    return usable


def _cut(parts: list[list[Run]], sensors: tuple[str, ...], at_most: int | None = None) -> ClipSet:
    """All clips of the runs of all parts, or `at_most` of them that lie evenly among all."""
    runs = [run for part in parts for run in part]
    starts = [clip_starts(run.sequence.length, run.data) for run in runs]
    run, start = np.repeat(np.arange(len(runs)), [len(s) for s in starts]), np.concatenate(starts)
    if at_most is not None:
        kept = evenly_spread(len(start), at_most)
        run, start = run[kept], start[kept]
    return ClipSet(runs, run, start, sensors)
