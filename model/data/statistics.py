"""Mean, standard deviation and mean frame of the training frames, computed once and kept beside the frames."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.store import FrameStore, Sequence

STD_FLOOR = 1 / 255  # one grey level: a constant channel is not blown up, and nothing is divided by zero
CHUNK_FRAMES = 256  # frames that are summed at a time; their squares fit into 32 bits

log = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """On the 0-1 scale, float32: mean [3] and std [3] per channel, mean_frame [H, W, 3]."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    mean_frame: NDArray[np.float32]


def statistics_of(parts: Iterable[tuple[FrameStore, list[Sequence]]]) -> Statistics:
    """Over all frames of the given runs of each store; every frame counts alike, whichever store it is in."""
    counted = [(_kept_moments(store, runs), sum(run.length for run in runs)) for store, runs in parts]
    total = sum(count for _, count in counted)
    moments = sum(moments * (count / total) for moments, count in counted)  # of one store: exactly its own
    assert isinstance(moments, np.ndarray), "there are no frames"
    mean_frame, square_frame = moments[..., 0], moments[..., 1]
    mean = mean_frame.mean(axis=(0, 1))
    std = np.sqrt(np.maximum(square_frame.mean(axis=(0, 1)) - mean**2, 0))
    return Statistics(
        mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32), mean_frame.astype(np.float32)
    )


def _kept_moments(store: FrameStore, runs: list[Sequence]) -> NDArray[np.float64]:
    """`_moments` of the runs, from the file beside the frames where it is there."""
    spans = [(run.first, run.length) for run in runs]
    key = hashlib.sha256(json.dumps(spans).encode()).hexdigest()[:16]
    path = store.folder / f"statistics-{key}.npy"
    moments = _read_moments(path, (*store.frames.shape[1:], 2))
    if moments is None:
        moments = _moments(store.frames, spans)
        _write_moments(path, moments)
    return moments


def _moments(frames: NDArray[np.uint8], spans: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Mean and mean square over frames, [H, W, 3, 2] on the 0-1 scale; integer sums, so exact in any order."""
    total = np.zeros(frames.shape[1:], np.uint64)
    squares = np.zeros(frames.shape[1:], np.uint64)
    for first, length in spans:
        for begin in range(first, first + length, CHUNK_FRAMES):
            chunk = frames[begin : min(begin + CHUNK_FRAMES, first + length)]
            wide = chunk.astype(np.uint16)  # narrow types are read 8 times as fast as 64 bits: 255^2 fits into 16
            total += chunk.sum(axis=0, dtype=np.uint32)
            squares += np.square(wide, out=wide).sum(axis=0, dtype=np.uint32)
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
