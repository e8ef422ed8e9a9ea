"""spec.yaml and trials.csv of another version, or damaged: what of them can be used, and notes on what cannot.

A report is read, not run: where `load_spec` refuses a spec, the keys that it refuses are left out until the rest is
one, and where no range of a parameter is left, the values that were tried stand for it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import TrainConfig
from model.configfile import field_paths, load_yaml
from model.errors import ConfigError
from sweep.blocks import MetricSettings
from sweep.spec import SweepSpec, load_spec
from sweep.study import Outcome
from sweep.table_rows import sound_table
from sweep.words import few

TRIES = 100  # faults of a spec that are cut out before the rest of it is given up
DROPPED_FIRST = ("early_terminate", "search", "confirm", "resources", "retries", "wandb", "trainer", "objective")
MAX_CHOICES = 20  # different values of a parameter that are listed; more numbers than that are a range
TEXT_COLUMNS = ("trial", "state", "reason", "preset")

Table = dict[str, dict[str, Any]]


def read_spec(path: Path, rows: Table, notes: list[str]) -> SweepSpec:
    """The spec of a results folder, or what is left of it.

    Args:
        path: spec.yaml; it may be missing.
        rows: of trials.csv, whose columns tell what was searched where the spec does not.
        notes: a line is added where the spec could not be used as it is.
    """
    try:
        return load_spec(path)
    except ConfigError as error:
        why = str(error).splitlines()
        more = f" (and {len(why) - 1} more faults)" if len(why) > 1 else ""
    try:
        content = load_yaml(path)
    except ConfigError:
        content = {}
    spec, dropped = _what_validates(content, path.parent.name, rows)
    left_out = f"Left out: {', '.join(dropped)}." if dropped else "What was searched is told by trials.csv alone."
    notes.append(
        f"{why[0]}{more}. This page is made with what could be read: another version of this program may have "
        f"written it. {left_out}"
    )
    return spec


def _what_validates(content: Mapping[str, Any], folder: str, rows: Table) -> tuple[SweepSpec, list[str]]:
    """The largest part of a spec's content that is found to validate, and the dotted keys that it lacks."""
    left = copy.deepcopy(dict(content))
    dropped: list[str] = []
    for _ in range(TRIES):
        if not isinstance(left.get("name"), str):
            dropped += ["name"] if "name" in left else []
            left["name"] = folder
        if not left.get("parameters"):
            left["parameters"] = tried(rows)
        try:
            return SweepSpec.model_validate(left), dropped
        except ValidationError as error:
            key = next((key for fault in error.errors() if (key := _cut(left, fault["loc"]))), None)
            if key is None:  # a fault of the spec as a whole: one block too many, or several
                blocks = [block for block in DROPPED_FIRST if left.get(block) is not None]
                alone = (block for block in blocks if _validates({k: v for k, v in left.items() if k != block}))
                key = next(alone, blocks[0] if blocks else None)
                if key is None:
                    break
                del left[key]
            dropped.append(key)
    plain = {"name": "sweep", "parameters": tried(rows), "metric": _known_metric(left.get("metric"))}
    return SweepSpec.model_validate(plain), [*content]


def _known_metric(content: Any) -> Any:
    try:
        return MetricSettings.model_validate(content)
    except ValidationError:
        return MetricSettings()


def _validates(content: Mapping[str, Any]) -> bool:
    try:
        SweepSpec.model_validate(content)
    except ValidationError:
        return False
    return True


def _cut(content: Any, location: Sequence[Any]) -> str | None:
    """Remove what a fault's location names, as deep as the content has it; returns its dotted key."""
    keys: list[Any] = []
    place, parent = content, None
    for part in location:
        if not isinstance(place, Mapping) or part not in place:
            continue  # a list is cut as a whole; pydantic also puts names of types into the location
        parent, place = place, place[part]
        keys.append(part)
    if parent is None or not isinstance(parent, dict):
        return None
    del parent[keys[-1]]
    return ".".join(map(str, keys))


def tried(rows: Table) -> dict[str, Any]:
    """The parameters that trials.csv tells of, as entries of a spec: numbers as a range, anything else as choices."""
    known = set(field_paths(TrainConfig, in_lists=False))
    names = dict.fromkeys(name for row in rows.values() for name in row if name in known)
    entries: dict[str, Any] = {}
    for name in names:
        values = list(dict.fromkeys(row[name] for row in rows.values() if name in row))
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        if numbers and len(values) > 1 and any(isinstance(value, float) for value in values):
            entries[name] = {"min": float(min(values)), "max": float(max(values))}
        else:
            entries[name] = {"values": values[:MAX_CHOICES]}
        if not _validates({"name": "sweep", "parameters": {name: entries[name]}}):
            del entries[name]
    return entries or {"alpha": {"value": TrainConfig().alpha}}  # a spec must have one; a constant is not searched


def read_trials(path: Path, notes: list[str]) -> Table:
    """Rows of trials.csv by trial, in the file's order: numbers as numbers, empty cells absent.

    Each row has `trial` (digits) and `state` (an Outcome). Rows that lack a trial are left out, a state that is unknown
    counts as not ended; both are noted.
    """
    rows: Table = {}
    lost: list[str] = []
    stateless: list[str] = []
    there, fault = sound_table(path)
    if fault is not None:
        notes.append(f"{path}: damaged ({fault}); run the sweep with --resume, which writes it anew")
    for line in there:
        row = {key: parse_cell(key, cell) for key, cell in line.cells.items() if cell}
        trial = row.get("trial", "")
        if not trial.isdecimal():
            lost.append(str(line.line))
            continue
        if row.get("state") not in set(Outcome):
            stateless.append(trial)
            row["state"] = Outcome.RUNNING.value
        rows[trial] = row
    if lost:
        notes.append(f"{path}: row {few(lost)} names no trial and is left out; --resume writes the file anew")
    if stateless:
        notes.append(f"{path}: trial {few(stateless)} has no state that is known here; shown as not ended")
    return rows


def parse_cell(column: str, cell: str) -> Any:
    """A number where the cell is one, in columns that may hold numbers."""
    if column not in TEXT_COLUMNS:
        for kind in (int, float):
            try:
                return kind(cell)
            except ValueError:
                continue
    return cell
