"""One trial without Ray: its files, its W&B run, its end in every way, and going on as if it had never stopped."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from model import metrics
from model.config import TrainConfig
from model.data.clips import load_clips
from model.sinks import read_csv
from sweep.blocks import WandbSettings
from sweep.objective import ObjectiveSettings, score
from sweep.trial import TrialRun
from sweep.trial_job import EpochReport, TrialJob
from tests.offline import read_history, read_pictures, read_summary
from tests.sweeping import TINY_TRAINER

UPDATES = 6  # of an epoch of the tiny trainer


def job(results: Path, **changes: Any) -> TrialJob:
    trainer = {**TINY_TRAINER, "alpha": 0.6, **changes}
    return TrialJob(
        trial="0003",
        sweep="tiny",
        sweep_uid="abcd1234",
        results=results,
        config=TrainConfig.model_validate(trainer),
        values={"alpha": trainer["alpha"]},
        preset="equal-weights",
        wandb=WandbSettings(mode="offline"),
        project="tests",
    )


def run_all(run: TrialRun) -> list[EpochReport]:
    reports = []
    while not reports or not (reports[-1].finished or reports[-1].diverged or reports[-1].interrupted):
        reports.append(run.run_epoch())
    run.close()
    return reports


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[EpochReport]]:
    results = tmp_path_factory.mktemp("finished")
    return results, run_all(TrialRun(job(results)))


def test_every_update_has_its_row_in_csv_and_in_wandb(finished: tuple[Path, list[EpochReport]]) -> None:
    results, _ = finished
    batches = read_csv(results / "trials/0003/batch.csv")
    epochs = read_csv(results / "trials/0003/epoch.csv")
    updates = job(results).config.epochs * UPDATES
    assert [row["batch/iteration"] for row in batches] == list(range(updates))
    assert all(set(row) == set(metrics.BATCH_NAMES) for row in batches)
    wanted = {*metrics.EPOCH_NAMES, *metrics.EVAL_NAMES, *metrics.OBJECTIVE_NAMES, "eval/effective_rank"}
    assert all(set(row) == wanted for row in epochs)
    history = read_history(results)
    assert [row for row in history if metrics.BATCH_STEP in row] == batches
    assert [row for row in history if metrics.EPOCH_STEP in row] == epochs
    assert len(history) == len(batches) + len(epochs)


def test_a_finished_trial_leaves_its_picture_in_its_folder_and_in_wandb(
    finished: tuple[Path, list[EpochReport]],
) -> None:
    results, _ = finished
    [(name, epoch, file)] = read_pictures(results)
    assert (name, epoch) == ("pictures/reconstruction", job(results).config.epochs - 1)
    with Image.open(file) as sent, Image.open(results / "trials/0003/pictures/reconstruction.png") as kept:
        assert sent.tobytes() == kept.tobytes()


def test_wandb_has_group_parameters_and_summary(finished: tuple[Path, list[EpochReport]]) -> None:
    results, _ = finished
    run = read_summary(results)
    summary = json.loads((results / "trials/0003/summary.json").read_text())
    assert set(summary) == set(metrics.SUMMARY_NAMES)
    assert run["run_id"] == "abcd1234-0003"
    assert run["exit_code"] == 0
    assert run["config"]["alpha"] == 0.6
    assert run["config"]["beta"] == 0.4
    assert run["config"]["effective_mask_ratio"] == 0.75
    assert {name: run["summary"][name] for name in summary} == summary


def test_every_epoch_reports_the_objective_of_the_epochs_so_far(finished: tuple[Path, list[EpochReport]]) -> None:
    results, reports = finished
    epochs, batches = (read_csv(results / f"trials/0003/{level}.csv") for level in ("epoch", "batch"))
    for count, report in enumerate(reports, start=1):
        expected = score(epochs[:count], batches, ObjectiveSettings())
        assert {name: report.metrics[name] for name in expected} == expected
    assert [report.epochs for report in reports] == [1, 2, 3]
    assert [report.finished for report in reports] == [False, False, True]


def test_the_trials_config_trains_again_with_model_train(finished: tuple[Path, list[EpochReport]]) -> None:
    from model.train import load_config

    results, _ = finished
    file = results / "trials/0003/config.yaml"
    assert load_config(file, []) == job(results).config
    assert "12 of 16 patches are masked: 0.75" in file.read_text()


def without_time(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("summary/total_time_seconds")
    return {"summary": summary} | {name: (folder / name).read_text() for name in ("batch.csv", "epoch.csv")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = torch.load(folder / "checkpoint/last.pt", weights_only=True)["model"]
    return model


@pytest.mark.parametrize("stop_after", [1, 7, 12])
def test_an_interrupted_trial_goes_on_to_the_same_rows_and_weights(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]], stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.trial.LOOK_EVERY_S", 0.0)
    asked = iter([False] * (stop_after - 1) + [True])
    run = TrialRun(job(tmp_path), should_stop=lambda: next(asked))
    assert run_all(run)[-1].interrupted
    assert not (tmp_path / "trials/0003/summary.json").exists()
    run_all(TrialRun(job(tmp_path)))
    whole = finished[0] / "trials/0003"
    assert without_time(tmp_path / "trials/0003") == without_time(whole)
    resumed, uninterrupted = weights(tmp_path / "trials/0003"), weights(whole)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert read_history(tmp_path) == read_history(finished[0])  # both parts together hold each row once


def test_a_killed_trial_goes_on_from_its_last_checkpoint_and_repeats_no_row(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.trial.SAVE_EVERY_S", 0.0)
    killed = TrialRun(job(tmp_path))
    killed.run_epoch()
    monkeypatch.setattr("model.checkpoint.torch.save", lambda *_: pytest.fail("no checkpoint after the kill"))
    events = killed._trainer.run_epoch()
    for _ in range(3):  # rows of updates that no checkpoint knows of
        killed._log(next(events))
    monkeypatch.undo()
    with (tmp_path / "trials/0003/batch.csv").open("a") as file:
        file.write("0.1,0.2,half a r")
    run_all(TrialRun(job(tmp_path)))
    assert without_time(tmp_path / "trials/0003") == without_time(finished[0] / "trials/0003")


def test_a_damaged_checkpoint_starts_the_trial_afresh_with_a_warning(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]], caplog: pytest.LogCaptureFixture
) -> None:
    run = TrialRun(job(tmp_path))
    run.run_epoch()
    run.close()
    (tmp_path / "trials/0003/checkpoint/last.pt").write_bytes(b"cut short")
    again = TrialRun(job(tmp_path))
    assert "trial 0003 starts afresh" in caplog.text
    run_all(again)
    assert without_time(tmp_path / "trials/0003") == without_time(finished[0] / "trials/0003")


def test_a_trial_stopped_early_has_its_summary_and_a_checkpoint(tmp_path: Path) -> None:
    run = TrialRun(job(tmp_path))
    run.run_epoch()
    run.close()
    assert json.loads((tmp_path / "trials/0003/summary.json").read_text())["summary/best_epoch"] == 0
    assert (tmp_path / "trials/0003/checkpoint/last.pt").exists()
    assert read_summary(tmp_path)["exit_code"] == 0


def test_a_diverged_trial_ends_at_once_says_why_and_keeps_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrialRun(job(tmp_path))
    run.run_epoch()
    monkeypatch.setattr(run._save_clock, "_every_s", 0.0)
    with torch.no_grad():
        next(run._trainer.model.parameters()).fill_(math.nan)
    report = run.run_epoch()
    assert report.diverged is not None
    assert "nan at update 6 (epoch 1" in report.diverged
    assert not (tmp_path / "trials/0003/checkpoint").exists()  # none of broken weights, though one was due
    assert math.isnan(report.metrics["objective/value"])
    rows = read_csv(tmp_path / "trials/0003/batch.csv")
    assert math.isnan(rows[6]["batch/loss_total"])
    assert len(rows) == run._trainer.update
    assert read_summary(tmp_path)["exit_code"] == 1
    assert set(json.loads((tmp_path / "trials/0003/summary.json").read_text())) == set(metrics.SUMMARY_NAMES)


def test_two_trials_with_the_same_config_have_the_same_rows(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]]
) -> None:
    run_all(TrialRun(job(tmp_path)))
    assert without_time(tmp_path / "trials/0003") == without_time(finished[0] / "trials/0003")


def test_trials_of_a_process_share_the_open_clips() -> None:
    from sweep.trial import _clips

    data = TrainConfig.model_validate(TINY_TRAINER).data
    assert _clips(data) is _clips(data)
    assert len(_clips(data).train) == len(load_clips(data).train)


def test_a_trial_that_was_finished_before_reports_its_last_epoch_again_and_trains_no_more(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]]
) -> None:
    reports = run_all(TrialRun(job(tmp_path)))
    again = run_all(TrialRun(job(tmp_path)))
    assert again == reports[-1:]
    assert without_time(tmp_path / "trials/0003") == without_time(finished[0] / "trials/0003")


def test_rows_that_never_came_to_wandb_come_with_the_next_part(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.trial.SAVE_EVERY_S", 0.0)
    killed = TrialRun(job(tmp_path))
    lost = killed._sinks.pop()  # the CSV files go on, W&B's service is dead
    lost.close(1)
    killed.run_epoch()
    run_all(TrialRun(job(tmp_path)))
    assert read_history(tmp_path) == read_history(finished[0])


def test_a_worker_keeps_no_model_of_an_earlier_trial(tmp_path: Path) -> None:
    run = TrialRun(job(tmp_path, epochs=1, warmup_epochs=0))
    model = weakref.ref(run._trainer.model)
    run.run_epoch()
    run.close()
    gc.disable()  # reference counting alone must do
    try:
        del run
        assert model() is None
    finally:
        gc.enable()


def test_a_trial_killed_before_its_first_checkpoint_leaves_no_row_twice_in_wandb(
    tmp_path: Path, finished: tuple[Path, list[EpochReport]]
) -> None:
    killed = TrialRun(job(tmp_path))
    killed.run_epoch()
    killed._sinks.pop().close(1)  # as W&B's service does when its process dies
    assert not (tmp_path / "trials/0003/checkpoint").exists()
    run_all(TrialRun(job(tmp_path)))
    assert read_history(tmp_path) == read_history(finished[0])
