"""What a trial tells and keeps at the ends of its epochs and parts; tests/test_trial.py has the whole of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from model.config import TrainConfig
from sweep.blocks import WandbSettings
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob
from tests.sweeping import TINY_TRAINER


def job(results: Path) -> TrialJob:
    return TrialJob(
        trial="0000",
        sweep="tiny",
        sweep_uid="abcd1234",
        results=results,
        config=TrainConfig.model_validate(TINY_TRAINER),
        values={},
        wandb=WandbSettings(mode="disabled"),
        project="tests",
    )


def test_the_best_loss_that_a_sweep_may_minimise_is_the_running_one(tmp_path: Path) -> None:
    run = TrialRun(job(tmp_path))
    reports = [run.run_epoch()]
    with torch.no_grad():
        # private, since nothing that a user can give makes the loss rise for certain
        for weight in run._trainer.model.parameters():
            weight.mul_(3.0)
    reports += [run.run_epoch(), run.run_epoch()]
    losses = [report.metrics["epoch/train_loss"] for report in reports]
    assert losses[1] > losses[0]
    assert [report.metrics["summary/best_loss"] for report in reports] == list(itertools.accumulate(losses, min))


def test_a_trial_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sweep.trial.SAVE_EVERY_S", 0.0)  # after every update
    TrialRun(job(tmp_path)).run_epoch()  # and it is killed
    (tmp_path / "trials/0000/checkpoint/last.pt").write_bytes(b"cut short")
    again = TrialRun(job(tmp_path))
    assert "Going on from the checkpoint before it" in caplog.text
    assert "starts afresh" not in caplog.text
    assert again.run_epoch().epochs == 1
    assert again.run_epoch().epochs == 2
    again.close()


def test_weights_that_broke_since_the_last_row_take_the_place_of_no_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.trial.SAVE_EVERY_S", 0.0)  # also while the broken update is under way
    steps = itertools.count(1)

    def break_third(optimiser: torch.optim.Optimizer, *_: object) -> None:
        if next(steps) == 3:
            with torch.no_grad():
                optimiser.param_groups[0]["params"][0].fill_(torch.nan)

    handle = register_optimizer_step_post_hook(break_third)
    try:
        assert TrialRun(job(tmp_path)).run_epoch().diverged is not None
    finally:
        handle.remove()
    kept = torch.load(tmp_path / "trials/0000/checkpoint/last.pt", weights_only=True)
    assert kept["update"] == 2
    assert all(torch.isfinite(weight).all() for weight in kept["model"].values())
