"""Trials that stop at a named epoch until the test lets them go, and trials that tell the test before each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweep import trial
from sweep.trial_job import TrialJob


def close_gate(epoch: int) -> None:
    """Every trial of this process waits before this epoch (from 0) for a file `<run>.go`, or to be asked to stop.

    That it is there is told by a file `<run>.there`, both in the current folder.
    """

    class Gated(trial.TrialRun):
        def __init__(self, job: TrialJob, should_stop: Callable[[], bool], obeys_wandb: bool = False) -> None:
            self._leaves = should_stop
            super().__init__(job, should_stop, obeys_wandb)

        def run_epoch(self) -> trial.EpochReport:
            if self.epochs == epoch:
                Path(f"{self.job.wandb_run}.there").touch()
                while not Path(f"{self.job.wandb_run}.go").exists() and not self._leaves():
                    time.sleep(0.02)
                time.sleep(trial.LOOK_EVERY_S)  # now it looks whether it is to stop
            return super().run_epoch()

    trial.TrialRun = Gated  # type: ignore[misc]


@contextmanager
def before_epochs(actions: dict[int, Callable[[], None]]) -> Iterator[None]:
    """Trials of this process do this before these epochs (from 0), in the trainer's own thread."""

    class Told(trial.TrialRun):
        def run_epoch(self) -> trial.EpochReport:
            actions.get(self.epochs, lambda: None)()
            return super().run_epoch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "TrialRun", Told)
        yield
