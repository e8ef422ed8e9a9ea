"""What a probe is asked: which clips have the label, which classes there are, which clips belong together.

The sides are those of the pretraining, split by sequence or group, never by frame. Needs no torch: a run finds out that
it cannot be probed before it trains.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import ProbeConfig
from model.data.clips import Clips, ClipSet
from model.data.config import TUBE_FRAMES
from model.data.spread import evenly_spread
from model.errors import ConfigError, guess

MOST_LEVELS = 20  # a label with more distinct numbers, not all of them whole, is a measurement, not a class
UNSEEN = -1  # class of a held-out clip that no training clip has

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """Labelled clips of one side of the split.

    Attributes:
        numbers: int64 [n], of the clips.
        classes: int64 [n], places in `ProbeTask.names`, or UNSEEN.
    """

    numbers: NDArray[np.int64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class ProbeTask:
    """Tell the classes of one label apart.

    Attributes:
        names: the classes of the training side, sorted.
        train: at most `probe.clips` clips, evenly spread.
        held_out: all labelled held-out clips; those of a class that is not in `names` cannot be told right.
        groups: int64 [n], the sequences of the training clips, numbered: a split within them keeps each together.
    """

    label: str
    names: tuple[str, ...]
    train: Side
    held_out: Side
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, config: ProbeConfig, clips: Clips) -> ProbeTask | None:
        """The task of `probe.label`; None where there is none.

        Raises:
            ConfigError: no clip has the label, it is a measurement, or there is nothing to tell apart.
        """
        label = config.label
        if label is None:
            return None
        (numbers, values), (test_numbers, test_values) = (_labelled(s, label) for s in (clips.train, clips.held_out))
        if not values or not test_values:
            raise ConfigError(_no_label_message(label, clips))
        if _is_measurement([*values, *test_values]):
            raise ConfigError(
                f"probe.label = {label!r} is a measurement with {len({*values, *test_values})} different values, and a "
                f"probe tells classes apart; use {_choices(clips)}"
            )
        chosen = evenly_spread(len(values), config.clips)
        numbers, values = numbers[chosen], [values[index] for index in chosen]
        names = tuple(sorted({str(value) for value in values}))
        if len(names) < 2:
            raise ConfigError(
                f"probe.label = {label!r} is {names[0]!r} in all {len(values)} training clips: there is nothing to "
                f"tell apart; use another label ({_choices(clips)}), more probe.clips or another "
                "data.split_seed"
            )
        places = {name: place for place, name in enumerate(names)}
        test_names = [str(value) for value in test_values]
        unseen = Counter(name for name in test_names if name not in places)
        if unseen:
            _check_unseen(label, unseen, len(test_names))
        sequences = [clips.train.clip_id(int(number)).rpartition(":")[0] for number in numbers]
        return cls(
            label=label,
            names=names,
            train=Side(numbers, np.array([places[str(value)] for value in values], np.int64)),
            held_out=Side(test_numbers, np.array([places.get(name, UNSEEN) for name in test_names], np.int64)),
            groups=np.unique(sequences, return_inverse=True)[1].astype(np.int64),
        )


def _labelled(clips: ClipSet, label: str) -> tuple[NDArray[np.int64], list[Any]]:
    """Numbers and values of the clips that have the label; a per-frame label is that of the last frame of the tube."""
    numbers, values = [], []
    for number in range(len(clips)):
        value = clips.labels(number).get(label)
        if isinstance(value, list):
            value = value[TUBE_FRAMES - 1]
        if value is not None:
            numbers.append(number)
            values.append(value)
    return np.array(numbers, np.int64), values


def _is_measurement(values: list[Any]) -> bool:
    try:
        numbers = {float(value) for value in values}
    except (TypeError, ValueError):  # words
        return False
    return len(numbers) > MOST_LEVELS and not all(math.isfinite(n) and n.is_integer() for n in numbers)


def labels_of(clips: Clips) -> tuple[list[str], list[str]]:
    """(labels that a probe can tell the classes of, labels that are measurements), each sorted."""
    sides = (clips.train, clips.held_out)
    names = sorted({name for side in sides for number in range(len(side)) for name in side.labels(number)})
    values = {name: [value for side in sides for value in _labelled(side, name)[1]] for name in names}
    measured = [name for name in names if _is_measurement(values[name])]
    return [name for name in names if name not in measured], measured


def _choices(clips: Clips) -> str:
    classes, measured = labels_of(clips)
    apart = f" ({', '.join(measured)}: measurements, which have no classes)" if measured else ""
    return (", ".join(classes) or "none") + apart


def _no_label_message(label: str, clips: Clips) -> str:
    given = f"probe.label = {label!r}"
    classes, measured = labels_of(clips)
    if label in classes + measured:
        return (
            f"{given}: only one side of the split has clips with this label, and a probe is trained on one and tested "
            "on the other; label more sequences, or use another data.split_seed"
        )
    if not classes + measured:
        return f"{given}, but the clips have no labels; give them in a CSV file (data.labels), or leave probe.label out"
    return f"{given}: no clip has such a label;{guess(label, classes)} Known: {_choices(clips)}"


def _check_unseen(label: str, unseen: Counter[str], num_held_out: int) -> None:
    """Of held-out classes that no training clip has: warn, or raise ConfigError where there is no other."""
    count, shown = unseen.total(), ", ".join(sorted(unseen)[:4]) + (", ..." if len(unseen) > 4 else "")
    if count == num_held_out:
        raise ConfigError(
            f"probe.label = {label!r}: all held-out clips are of classes that no training clip has ({shown}), so a "
            "probe can tell none right. The split keeps these classes on one side: use another data.group_pattern "
            "(split by sequence or by recording, not by this label), or another label"
        )
    log.warning(
        "%d of %d held-out clips are of classes of %r that no training clip has (%s): the probe counts them as wrong",
        count,
        num_held_out,
        label,
        shown,
    )
