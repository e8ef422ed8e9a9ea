"""Mixtures of sources: the parts of a config, and how many clips of each an epoch draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.config import DataConfig, SourceConfig

Permutation = Callable[[int], NDArray[np.int64]]  # n -> the numbers 0..n-1 in a random order, another one at each call


class PartData(NamedTuple):
    """A part as a config of its own: the same as if it were used alone, so it has the same frame store."""

    prefix: str
    """Begins the names of its sequences."""
    data: DataConfig
    weight: float | None


class PartClips(NamedTuple):
    """The training clips [first, first + clips) are those of one part."""

    first: int
    clips: int
    weight: float | None


def parts_of(data: DataConfig) -> list[PartData]:
    """The parts of a mixture; anything else is its own only part, without a prefix."""
    if data.source != "mixture":
        return [PartData("", data, None)]
    own = set(SourceConfig.model_fields)
    common = {name: getattr(data, name) for name in DataConfig.model_fields if name not in own | {"parts"}}
    return [
        PartData(f"{name}/", DataConfig(**{field: getattr(part, field) for field in own}, **common), part.weight)
        for name, part in zip(data.part_names, data.parts, strict=True)
    ]


def draw(parts: Sequence[PartClips], clips: int, permutation: Permutation) -> NDArray[np.int64]:
    """Numbers of the training clips of an epoch in their order, int64 [clips].

    Without weights they are drawn from all clips alike, without replacement. With weights (all parts have one) every
    part gets its share; it is drawn without replacement until the part is exhausted, then anew.
    """
    num_clips = sum(part.clips for part in parts)
    weights = [part.weight for part in parts if part.weight is not None]
    if not weights:
        assert clips <= num_clips, (clips, num_clips)  # EpochPlan has checked it
        return permutation(num_clips)[:clips]
    counts = shares(clips, weights)
    drawn = [part.first + _rounds(part.clips, count, permutation) for part, count in zip(parts, counts, strict=True)]
    return np.concatenate(drawn)[permutation(clips)]


def _rounds(clips: int, count: int, permutation: Permutation) -> NDArray[np.int64]:
    """`count` of the numbers 0..clips-1: every one of them before any comes again."""
    rounds = [permutation(clips) for _ in range(-(-count // clips))]
    return np.concatenate([np.empty(0, np.int64), *rounds])[:count]


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to the weights; each is within 1 of its exact share.

    By largest remainders (Hamilton's method); of equal remainders the first goes first.
    """
    relative = [weight / max(weights) for weight in weights]  # their sum cannot overflow
    whole = sum(relative)
    exact = [total * (weight / whole) for weight in relative]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts
