"""Reads the books of a sweep from its results folder; nothing is changed, and nothing that is damaged is raised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from model.configfile import field_value, parse_yaml
from model.errors import ConfigError, UserError
from model.folder import LAST, PREVIOUS
from sweep.doctor.ledger import FolderBook, State
from sweep.doctor.rebuild import Evidence
from sweep.doctor.rows import Rows, read_rows
from sweep.outcome import Outcome
from sweep.pbt import Change
from sweep.space import Space
from sweep.spec import SweepSpec
from sweep.study import Values
from sweep.table_rows import sound_table

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # config.yaml is our own dump


class TableBook:
    """trials.csv or confirm.csv as far as it can be read. `rows` are its sound rows by trial, cells as text.

    Attributes:
        fault: what is wrong with the file, in words; None where nothing is, or there is none.
    """

    def __init__(self, path: Path) -> None:
        self.there = path.exists()
        lines, self.fault = sound_table(path)
        self.rows: dict[str, dict[str, str]] = {}
        for line in lines:
            if line.whole and line.cells.get("state") in {*Outcome} and line.cells.get("trial"):
                self.rows[line.cells["trial"]] = line.cells
            else:
                self.fault = self.fault or f"its line {line.line} is damaged"


class TrialFiles:
    """The folder of one trial, read once.

    Args:
        folder: may be absent.
        thorough: read every number and every checkpoint.
        ended: by the study: its checkpoint is looked at by a thorough reading only.
    """

    def __init__(self, folder: Path, thorough: bool, ended: bool) -> None:
        self.folder = folder
        self.there = folder.is_dir()
        self._thorough = thorough
        self._ended = ended
        self.batch = self._rows("batch.csv")
        self.epoch = self._rows("epoch.csv")

    def _rows(self, name: str) -> Rows:
        try:
            data = (self.folder / name).read_bytes()
        except OSError:
            data = None
        return read_rows(name, data, thorough=self._thorough or not self._ended or name == "epoch.csv")

    @cached_property
    def config_text(self) -> str:
        try:
            return (self.folder / "config.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """config.yaml; None where it is missing or damaged."""
        try:
            content = yaml.load(self.config_text, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) and isinstance(content.get("data"), dict) else None

    @cached_property
    def summary(self) -> State:
        path = self.folder / "summary.json"
        try:
            content = json.loads(path.read_bytes())
        except OSError:
            return "missing"
        except (ValueError, RecursionError):
            return "damaged"
        numbers = isinstance(content, dict) and all(isinstance(value, int | float) for value in content.values())
        return "sound" if numbers and content else "damaged"

    @cached_property
    def modified(self) -> float:
        """When its summary was written, or its last epoch."""
        for name in ("summary.json", "epoch.csv", "batch.csv", "error.txt"):
            with suppress(OSError):
                return (self.folder / name).stat().st_mtime
        return 0.0

    def is_of(self, trial: str, sweep: str) -> bool:
        """Whether its config names this trial of this sweep."""
        return self.config is not None and f"# trial {trial} of sweep {sweep};" in self.config_text

    def trained_whole(self) -> bool:
        """All epochs are done and summed up, and every row of them is sound."""
        epochs = None if self.config is None else self.config.get("epochs")
        return (
            self.summary == "sound"
            and not self.batch.faults
            and not self.epoch.faults
            and isinstance(epochs, int)
            and self.epoch.whole == len(self.epoch.lines) == epochs
            and self.batch.whole == len(self.batch.lines) > 0
        )

    def book(self) -> FolderBook:
        """What the folder says; reads its checkpoints where they matter."""
        last: State = "unread"
        previous: State = "unread"
        knows = (0, 0)
        if self.there and (self._thorough or not self._ended):
            last, knows = checkpoint_state(self.folder / LAST)
            if last != "sound" or self._thorough:
                previous, before = checkpoint_state((self.folder / LAST).with_name(PREVIOUS))
                knows = before if last != "sound" else knows
        config: State = "unread"
        if self._thorough or not self._ended:
            config = "sound" if self.config is not None else "damaged" if self.config_text else "missing"
        return FolderBook(self.there, self.batch, self.epoch, self.summary, config, last, previous, knows)


def checkpoint_state(path: Path) -> tuple[State, tuple[int, int]]:
    """Whether a checkpoint loads, and after how many batch and epoch rows it was made."""
    if not path.exists():
        return "missing", (0, 0)
    from model.checkpoint import CheckpointError, load_checkpoint  # torch: only where there is a checkpoint to read

    try:
        state = load_checkpoint(path)
        return "sound", (int(state["update"]) - len(state["in_flight"]), int(state["epoch"]))
    except (CheckpointError, LookupError, TypeError, ValueError):
        return "damaged", (0, 0)


def checkpoint_seconds(path: Path) -> float | None:
    """The training time that a checkpoint knows of; None where it does not load."""
    from model.checkpoint import CheckpointError, load_checkpoint

    try:
        return float(load_checkpoint(path)["seconds"])
    except (CheckpointError, LookupError, TypeError, ValueError):
        return None


class EvidenceReader:
    """What folders and tables tell a study of its trials.

    Args:
        spec, space: of the sweep; the space of the study.
        metrics: what the study was told of.
        results: the folder.
        prefix: of the study's trials.
    """

    def __init__(self, spec: SweepSpec, space: Space, metrics: Sequence[str], results: Path, prefix: str) -> None:
        self._space, self._metrics = space, metrics
        self._changes: list[Change] = []
        if spec.search.pbt is not None and not prefix:
            from sweep.population import Ledger  # imports Ray

            with suppress(UserError):
                self._changes = Ledger.of(results).changes

    def of(self, trial: str, files: TrialFiles, row: Mapping[str, str] | None) -> Evidence:
        """What a trial's folder and its row in the table tell."""
        row = row or {}
        steps = self._steps(files.epoch)
        outcome = Outcome(row.get("state", Outcome.RUNNING))
        if outcome is Outcome.RUNNING and files.trained_whole() and files.epoch.whole - 1 in steps:
            outcome = Outcome.COMPLETE
        if outcome is Outcome.COMPLETE and (not steps or max(steps) != max(files.epoch.lines)):
            outcome = Outcome.RUNNING  # it has no value here
        final: Values = {}
        for change in self._changes:
            final |= change.values if change.trial == trial else {}
        values = self._values(files, row, changed=bool(final))
        seconds = _number(row.get("seconds")) or _number(row.get("summary/total_time_seconds")) or 0.0
        return Evidence(
            values=values,
            preset=row.get("preset") or row.get("candidate") or None,
            outcome=outcome,
            reason=row.get("reason") or None,
            seconds=seconds,
            steps=steps,
            final_values={**values, **final} if values and final and outcome is not Outcome.RUNNING else None,
            modified=files.modified,
        )

    def _steps(self, epochs: Rows) -> dict[int, tuple[float, ...]]:
        """The metrics by epoch, as the trial reported them; epochs without a finite value are left out."""
        found = {}
        for place in sorted(epochs.lines):
            row = epochs.row(place)
            row.setdefault("summary/best_loss", row.get("epoch/best_loss_so_far", float("nan")))
            values = tuple(row.get(name, float("nan")) for name in self._metrics)
            if all(abs(value) < float("inf") for value in values):
                found[place] = values
        return found

    def _values(self, files: TrialFiles, row: Mapping[str, str], changed: bool) -> Values | None:
        """Of the searched parameters. Where they changed midway, the table has those that the trial began with."""
        sources = [self._of_config(files), self._of_row(row)]
        for values in reversed(sources) if changed else sources:
            if values is not None:
                return values
        return None

    def _of_config(self, files: TrialFiles) -> Values | None:
        if files.config is None:
            return None
        every = {}
        for name, parameter in self._space.parameters.items():
            with suppress(LookupError, TypeError):
                value = field_value(files.config, name)
                if parameter.contains(value):
                    every[name] = value
        return self._checked(every)

    def _of_row(self, row: Mapping[str, str]) -> Values | None:
        every = {}
        for name in self._space.parameters:
            with suppress(ConfigError):
                if row.get(name):
                    every[name] = parse_yaml(row[name], name)
        return self._checked(every)

    def _checked(self, every: Values) -> Values | None:
        """The values where the study could have given them: all that matter are there."""
        try:
            values = self._space.to_values(self._space.from_values(every))
        except (ValueError, LookupError, TypeError):
            return None
        known = values | self._space.constants
        lacks = [name for name in self._space.parameters if name not in every and self._space.matters(name, known)]
        return None if lacks else every


def _number(cell: str | None) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return None


def trainer_differences(folder: Path, spec: SweepSpec) -> str | None:
    """What a trial's config has otherwise than the spec's trainer, searched parameters aside; None where nothing."""
    content = TrialFiles(folder, thorough=False, ended=True).config
    if content is None:
        return None
    values = {}
    for name in spec.space.parameters:
        with suppress(LookupError, TypeError):
            values[name] = field_value(content, name)
    try:
        wanted = spec.space.to_config(spec.trainer, values).model_dump(mode="json")
    except ConfigError as error:
        return str(error)
    differing = [name for name in wanted if content.get(name, wanted[name]) != wanted[name]]
    return ", ".join(f"{name} {content[name]!r} (the spec: {wanted[name]!r})" for name in differing) or None
