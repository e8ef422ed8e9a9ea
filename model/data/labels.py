"""Labels and sensors of sequences: what is known of frames without looking at them.

Neither is part of a frame store, so that a corrected label costs no decoding: they are joined to the store's sequences
whenever clips are opened. Only labels that a source makes together with its frames (the procedural GelSight) or that
are part of its folders' names are found in the store.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.data.config import SourceConfig
from model.data.layouts import own_sensor, touch_and_go_materials
from model.data.sources import open_source
from model.data.store import FrameStore, Sequence
from model.data.tables import check_inside, listed, read_rows, whole_number
from model.errors import DataError, guess

SEQUENCE_COLUMNS = ("sequence", "clip")  # the first of them that is there names the sequences
FRAME_COLUMN = "frame"
DEFAULT_SENSOR = "default"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelTable:
    """Labels from a file.

    Attributes:
        whole: sequence -> label -> value for all of its frames.
        frames: sequence -> label -> position of a frame -> its value.
    """

    whole: dict[str, dict[str, Any]] = field(default_factory=dict)
    frames: dict[str, dict[str, dict[int, Any]]] = field(default_factory=dict)

    def of(self, run: Sequence) -> dict[str, Any]:
        """Label -> value, or a list with a value per frame of the run, None for a frame without one."""
        labels = dict(self.whole.get(run.name, {}))
        for label, values in self.frames.get(run.name, {}).items():
            of_run = [values.get(position) for position in range(run.start, run.start + run.length)]
            if any(value is not None for value in of_run):
                labels[label] = of_run
        return labels


def read_labels(data: SourceConfig) -> list[LabelTable]:
    """The label files of a source, in the order in which a later one goes before an earlier one: the layout's own, then
    `data.labels`.

    Raises:
        DataError: a file is malformed, contradicts itself, or names sequences that the source does not have.
    """
    tables = []
    if data.source == "touch_and_go":
        assert data.root is not None  # the config has checked it
        materials = touch_and_go_materials(data.root)
        tables.append(LabelTable(frames={name: {"material": frames} for name, frames in materials.items()}))
    if data.labels is not None:
        tables.append(read_label_csv(data.labels, open_source(data).sequences))
    return tables


def labelled(store: FrameStore, tables: list[LabelTable]) -> list[Sequence]:
    """The store's runs with the labels of the tables over those that the store holds.

    Raises:
        DataError: a table has labels for frames beyond a sequence's last.
    """
    for table in tables:
        _check_frames(table, store)
    runs = []
    for run in store.sequences:
        labels = dict(run.labels)
        for table in tables:
            labels |= table.of(run)
        runs.append(replace(run, labels=labels))
    return runs


def sensor_of(sequence: str, data: SourceConfig) -> str:
    """The sensor of a sequence: `data.sensor`, else the layout's own, else "default"."""
    return data.sensor or own_sensor(data.source, sequence) or DEFAULT_SENSOR


def read_label_csv(path: Path, sequences: list[str]) -> LabelTable:
    """A CSV file: a header, a column `sequence` (or `clip`), perhaps a column `frame`, and a column per label.

    Without `frame` a row holds the labels of a sequence, with it those of one frame: the number in the clip's id, which
    is the number in the name of an image, or counts the frames of a video from 0. An empty cell is no label. A row that
    repeats another one is merged with it.

    Args:
        sequences: the names that there are.

    Raises:
        DataError: see above, with the line and the value.
    """
    (where, header), *rows = read_rows(path, "data.labels")
    key = _key_column(header, where)
    frame_column = header.index(FRAME_COLUMN) if FRAME_COLUMN in header else None
    labels = [(column, name) for column, name in enumerate(header) if column not in (key, frame_column)]
    if not labels or not rows:
        raise DataError(f"{where}: there are no {'labels: add a column per label' if not labels else 'rows below it'}.")
    known = set(sequences)
    table = LabelTable()
    seen: dict[tuple[str, int | None], tuple[str, dict[str, str]]] = {}
    for where, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{where}: has {len(cells)} columns, but the header has {len(header)}: {','.join(header)}.")
        name = cells[key]
        _check_name(name, known, where)
        frame = None if frame_column is None else whole_number(cells[frame_column], FRAME_COLUMN, where)
        values = {label: cells[column] for column, label in labels if cells[column]}
        first_where, first = seen.setdefault((name, frame), (where, values))
        if first != values:
            raise DataError(
                f"{where}: {name!r} has other labels in an earlier row ({first_where}); keep one of the two."
            )
        if frame is None:
            table.whole[name] = values
        else:
            of_sequence = table.frames.setdefault(name, {})
            for label, value in values.items():
                of_sequence.setdefault(label, {})[frame] = value
    return table


def _key_column(header: list[str], where: str) -> int:
    """The column of the sequences' names. Raises DataError where there is none, or a name is missing or given twice."""
    if "" in header or len(set(header)) < len(header):
        raise DataError(f"{where}: the header is {','.join(header)!r}; every column needs a name of its own.")
    for name in SEQUENCE_COLUMNS:
        if name in header:
            return header.index(name)
    raise DataError(
        f"{where}: the header is {','.join(header)!r}; it needs a column 'sequence' with the sequences' names."
    )


def _check_name(name: str, known: set[str], where: str) -> None:
    if name in known:
        return
    check_inside(name, where)
    raise DataError(
        f"{where}: there is no sequence {name!r};{guess(name, known)} "
        f"The source has {len(known)}: {listed(sorted(known))}."
    )


def _check_frames(table: LabelTable, store: FrameStore) -> None:
    ends: dict[str, int] = {}
    for run in store.sequences:
        ends[run.name] = max(ends.get(run.name, 0), run.start + run.length)
    for name, labels in table.frames.items():
        last = max((frame for frames in labels.values() for frame in frames), default=-1)
        if name not in ends or last < ends[name]:
            continue
        text = f"the labels have frame {last} of {name!r}, but its last frame is {ends[name] - 1}"
        if not store.skipped:
            raise DataError(
                f"{text}. Frames are numbered as in the names of the images, divided by their step where they are "
                "numbered in steps (0, 3, 6); those of a video from 0."
            )
        log.warning("%s; it may be one of the %d files that could not be read", text, len(store.skipped))
