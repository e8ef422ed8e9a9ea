"""What the diagnosis is of: a run's folder, or W&B's files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.configfile import load_yaml, set_field, validated
from model.errors import ConfigError, DataError, UserError, one_line
from model.sinks import Row, read_csv
from sweep.diagnosis import Finding, diagnose

STEP_COLUMN = {"epoch.csv": "epoch", "batch.csv": "batch/epoch"}  # which epoch a row belongs to
CONFIG = "config.yaml"


class NoRowsError(DataError):
    """Nothing was trained yet."""


@dataclass(frozen=True)
class Run:
    """The rows of a run.

    Attributes:
        name: how it is called: its folder, or W&B's name of it.
        config: what it was trained with; None where that is not known.
        record: the file that `config` is from; None where it is none.
        notes: what was concluded of its rows, or is missing.
    """

    name: str
    epochs: Sequence[Row]
    batches: Sequence[Row]
    config: TrainConfig | None = None
    record: Path | None = None
    notes: tuple[str, ...] = ()

    def findings(self) -> list[Finding]:
        """What the rules see in it."""
        return diagnose(self.epochs, self.batches, self.config)


def read_run(path: Path) -> Run:
    """The run that `path` holds.

    Raises NoRowsError where nothing was trained yet, UserError where it is none of these or damaged.
    """
    if path.is_file():
        if path.name in STEP_COLUMN:
            return load_run(path.parent)
        if path.suffix == ".wandb":
            return _recorded(path)
        if path.suffix.lower() == ".csv":
            raise ConfigError(
                f"{path}: CSV files that W&B's page exports are not read any more; give the trial's folder, its "
                "batch.csv or epoch.csv, or the run's .wandb file"
            )
        raise ConfigError(f"{path}: is no run's batch.csv, epoch.csv or .wandb file; {WHAT_TO_GIVE}")
    if not path.is_dir():
        raise ConfigError(f"{path}: is no folder and no file; {WHAT_TO_GIVE}")
    if any((path / name).exists() for name in STEP_COLUMN):
        return load_run(path)
    parts = sorted(path.glob("run-*.wandb")) or sorted(path.glob("*run-*/run-*.wandb"))
    runs = sorted({part.name for part in parts})
    if len(runs) == 1:
        return _recorded(parts[-1])
    if runs:
        raise ConfigError(f"{path}: holds W&B's files of {len(runs)} runs; give the folder of one: {parts[0].parent}")
    return load_run(path)


WHAT_TO_GIVE = (
    "give the folder of a trial, such as results/alpha_beta/trials/0003, the --out folder of model.train, a sweep's "
    "results folder, or a W&B run's folder (offline-run-*)"
)


def load_run(folder: Path) -> Run:
    """Read a run's folder. Raises NoRowsError where it holds no rows, UserError where a file of it is damaged."""
    epochs, batches = (_rows(folder / name) for name in ("epoch.csv", "batch.csv"))
    if not epochs and not batches:
        raise NoRowsError(
            f"{folder}: epoch.csv and batch.csv are missing or hold no row; nothing was trained yet. {WHAT_TO_GIVE}"
        )
    path = folder / CONFIG
    if not path.exists():
        return Run(str(folder), epochs, batches, notes=(f"without {CONFIG}, no new learning rate can be given",))
    return Run(str(folder), epochs, batches, validated(TrainConfig, load_yaml(path), str(path)), path)


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        return read_csv(path, key=STEP_COLUMN[path.name])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _recorded(file: Path) -> Run:
    from sweep.imported import follows, history_of, is_ours, known_fields
    from sweep.wandb_files import UNREADABLE, recorded_run

    run = recorded_run(file)
    if run.state == UNREADABLE:
        raise DataError(f"{file}: cannot be read: it is damaged, or no file of W&B's")
    items, lost = run.read_rows()
    history = history_of(items)
    if not history.batch and not history.epoch:
        raise NoRowsError(f"{file}: holds no row with metrics of ours (such as batch/loss_total); nothing was logged")
    notes = [lost] if lost is not None else []
    config = None
    if is_ours(run.config):
        content: dict[str, Any] = {}
        for name, value in known_fields(run.config)[0].items():
            set_field(content, name, value)
        if follows(content):
            content["beta"] = None
        try:
            config = validated(TrainConfig, content, f"{file}: its config")
        except UserError as error:
            notes.append(f"{one_line(error)}; no new learning rate can be given")
    else:
        notes.append("its config is not that of a trial of ours, so no new learning rate can be given")
    return Run(f"{run.name} ({file.parent})", history.epoch, history.batch, config, notes=tuple(notes))
