"""What a trial is told, and what it says after an epoch: plain data that travels to any worker and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from model.config import TrainConfig
from model.fields import PositiveInt
from sweep.blocks import WandbSettings
from sweep.objective import ObjectiveSettings
from sweep.pbt import Change


class TrialJob(BaseModel):
    """What a trial needs to know, as plain data that travels to any worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str
    """Id of the trial in its sweep, such as "0007": its Optuna number, folder and the end of its W&B id."""
    sweep: str
    """Name of the sweep; W&B's group."""
    sweep_uid: str
    """Tells sweeps of one name apart."""
    results: Path
    """The sweep's results folder."""
    config: TrainConfig
    values: dict[str, Any]
    """The searched parameters of this trial, by dotted name."""
    preset: str | None = None
    objective: ObjectiveSettings = ObjectiveSettings()
    metrics: tuple[str, ...] = ("objective/value",)
    """What the sweep optimises."""
    wandb: WandbSettings = WandbSettings()
    project: str
    entity: str | None = None
    wandb_run: str | None = None
    """Id of its W&B run, where W&B gave it one; else it is made of `sweep_uid` and `trial`."""
    wandb_sweep: str | None = None
    """The W&B sweep whose agent started the trial."""
    hang_s: float | None = None
    """Seconds without a batch after which the trial's process ends itself; None never."""
    processes: PositiveInt = 1
    """Processes that train the model together, on one machine."""
    until: int | None = None
    """Epochs after which the trial pauses; `config` and `values` are those of this part."""
    changes: tuple[Change, ...] = ()
    """What changed in the trial before this part."""
    remote: str | None = None
    """URL that `results` is the local copy of: files are sent there, and fetched where it has newer ones."""

    @property
    def folder(self) -> Path:
        """Where the trial's files are."""
        return self.results / "trials" / self.trial


class EpochReport(BaseModel):
    """What a trial says after an epoch (or where it ended within one)."""

    model_config = ConfigDict(frozen=True)

    epochs: int
    """Epochs done."""
    metrics: dict[str, float]
    """The epoch's row; of a diverged trial only the objective's NaN."""
    finished: bool = False
    """All epochs are done."""
    diverged: str | None = None
    """Why the trial has no value."""
    interrupted: bool = False
    """The trial was asked to stop and left a checkpoint."""
    stopped: bool = False
    """W&B stopped the trial: its record is ended, with a summary and a checkpoint."""
    findings: tuple[tuple[str, str], ...] = ()
    """What the diagnosis says for the first time: texts and their severities."""
    paused: bool = False
    """The trial has come to `TrialJob.until` and left a checkpoint."""
