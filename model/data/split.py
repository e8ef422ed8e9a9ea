"""The split into a training and a held-out side, by sequence or by group of sequences, never by frame.

Neighbouring tactile frames are nearly equal and would leak from one side to the other.
"""

from __future__ import annotations

import re

import numpy as np

from model.data.config import DataConfig
from model.data.store import Sequence
from model.errors import DataError


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
