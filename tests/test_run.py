"""`python -m sweep.run` as a user runs it: whole sweeps with Optuna's storage and offline W&B runs, without Ray.

On Ray: tests/test_on_ray.py. What is killed, stopped or starved: tests/test_every_write.py, tests/test_faults.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model import metrics
from model.sinks import read_csv
from model.train import main as train
from sweep.run import main
from sweep.study import JOURNAL
from tests.inline import sweep
from tests.offline import records_of
from tests.sweeping import TINY_TRAINER, table, trial_folders, write_spec

pytestmark = pytest.mark.xdist_group("run")  # its tests share a sweep


def logged_history(results: Path, trial: str) -> list[dict[str, Any]]:
    files = sorted(results.glob(f"wandb/offline-run-*/run-*-{trial}.wandb"))
    items = [record["history"]["item"] for file in files for record in records_of(file) if record["type"] == "history"]
    return [{name: value for name, value in item.items() if not name.startswith("_")} for item in items]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of 6 trials with early stopping, one of which diverges for certain."""
    folder = tmp_path_factory.mktemp("finished")
    spec = write_spec(
        folder,
        run_cap=6,
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3},
        trainer={**TINY_TRAINER, "clip_grad": None},
        search={"presets": [{"alpha": 0.5}, {"alpha": 0.75}, {"alpha": 0.4, "base_lr": 1e30}], "startup_trials": 2},
        parameters={
            "alpha": {"min": 0.1, "max": 0.9},
            "base_lr": {"values": [0.01, 0.03, 0.1, 1e30]},
            "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.1},
        },
    )
    done = sweep(spec, folder / "results")
    assert done.code == 0, done.out + done.err
    return folder / "results", done.out


def test_a_sweep_leaves_behind_what_the_readme_lists(finished: tuple[Path, str]) -> None:
    results, _ = finished
    for name in ("spec.yaml", "provenance.json", JOURNAL, "trials.csv", "best.yaml", "report.html"):
        assert (results / name).stat().st_size > 0, name
    assert [folder.name for folder in trial_folders(results)] == [f"{number:04d}" for number in range(6)]
    for folder in trial_folders(results):
        for name in ("config.yaml", "batch.csv", "epoch.csv", "summary.json"):
            assert (folder / name).exists(), folder / name
    session = json.loads((results / "provenance.json").read_text())["sessions"][0]
    assert session["packages"]["optuna"]
    assert not (results / ".stop").exists()


def test_rows_in_wandb_and_csv_equal_the_updates_done_in_every_trial(finished: tuple[Path, str]) -> None:
    results, _ = finished
    for folder, row in zip(trial_folders(results), table(results), strict=True):
        batches, epochs = read_csv(folder / "batch.csv"), read_csv(folder / "epoch.csv")
        history = logged_history(results, folder.name)
        assert [r["batch/iteration"] for r in batches] == list(range(len(batches)))
        assert sum(metrics.BATCH_STEP in r for r in history) == len(batches)
        # beside the epochs' rows a diverged run has one that says only that its metric is NaN
        assert sum("epoch/train_loss" in r for r in history) == len(epochs)
        if row["state"] != "diverged":
            assert len(batches) == 6 * int(row["epochs_done"])
            assert [r for r in history if metrics.BATCH_STEP in r] == batches
            assert set(batches[0]) == set(metrics.BATCH_NAMES)
            assert set(epochs[0]) == {
                *metrics.EPOCH_NAMES,
                *metrics.EVAL_NAMES,
                *metrics.OBJECTIVE_NAMES,
                "eval/effective_rank",
            }
            assert set(json.loads((folder / "summary.json").read_text())) == set(metrics.SUMMARY_NAMES)


def test_every_trial_has_its_state_and_the_presets_trained_to_their_end(finished: tuple[Path, str]) -> None:
    rows = table(finished[0])
    assert [row["preset"] for row in rows[:2]] == ["equal-weights", "balanced-weights"]
    assert [row["state"] for row in rows[:3]] == ["complete", "complete", "diverged"]
    assert [row["epochs_done"] for row in rows[:2]] == ["3", "3"]
    assert "nan" in rows[2]["reason"] or "inf" in rows[2]["reason"]
    assert all(row["state"] in ("complete", "pruned", "diverged") for row in rows)
    assert all(0 < float(row["effective_mask_ratio"]) < 1 for row in rows)


def test_the_terminal_says_what_was_found_and_where(finished: tuple[Path, str]) -> None:
    results, printed = finished
    rows = [row for row in table(results) if row["state"] == "complete"]
    winner = min(rows, key=lambda row: float(row["objective/value"]))
    assert f"best trial: {winner['trial']}" in printed
    assert "best.yaml" in printed
    assert "1/6" in printed
    assert "6/6" in printed
    assert "equal-weights" in printed
    assert "Traceback" not in printed


def test_best_yaml_trains_as_it_is(finished: tuple[Path, str], tmp_path: Path) -> None:
    best = finished[0] / "best.yaml"
    assert train([str(best), "--set", "epochs=1", "--out", str(tmp_path / "run")]) == 0
    assert len(read_csv(tmp_path / "run/batch.csv")) == 6


def test_a_finished_sweep_resumed_with_a_larger_run_cap_adds_trials_and_keeps_the_others(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    results = shutil.copytree(finished[0], tmp_path / "results", symlinks=True)
    before = {folder.name: (folder / "batch.csv").read_bytes() for folder in trial_folders(results)}
    spec = finished[0].parent / "tiny.yaml"
    done = sweep(spec, results, "--resume", "--set", "run_cap=7")
    assert done.code == 0, done.out + done.err
    assert len(trial_folders(results)) == 7
    assert {name: (results / "trials" / name / "batch.csv").read_bytes() for name in before} == before
    assert len(json.loads((results / "provenance.json").read_text())["sessions"]) == 2


def test_resources_that_only_the_cluster_knows_to_be_missing_leave_the_folder_free(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, resources={"gpu": 8})
    done = sweep(spec, tmp_path / "results")
    assert done.code == 2, done.out + done.err
    assert "a trial asks for 1 CPU and 8 GPU" in done.err
    assert (
        main(
            [str(spec), "--results", str(tmp_path / "results"), "--set", "resources.gpu=0", "--dry-run", "--no-measure"]
        )
        == 0
    )


def test_when_no_trial_comes_to_its_end_it_says_why_and_exits_with_1(tmp_path: Path) -> None:
    trainer = {**TINY_TRAINER, "clip_grad": None, "base_lr": 1e30}
    parameters = {"alpha": {"min": 0.1, "max": 0.9}}
    spec = write_spec(tmp_path, run_cap=2, trainer=trainer, parameters=parameters, search={"startup_trials": 1})
    done = sweep(spec, tmp_path / "results")
    assert done.code == 1, done.out + done.err
    assert "no trial trained to its end" in done.out
    assert "lower base_lr, or clip gradients" in done.out
    assert [row["state"] for row in table(tmp_path / "results")] == ["diverged", "diverged"]
    assert (tmp_path / "results/report.html").exists()


REAL_FRAMES = Path(__file__).parents[2] / "shared/data/gelsight_mini/frames"
ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not REAL_FRAMES.is_dir(), reason="the real frames are not here")
def test_the_spec_for_real_frames_runs_on_them(tmp_path: Path) -> None:
    short = ["run_cap=2", "trainer.epochs=1", "trainer.data.clips_per_epoch=64", f"trainer.data.root={REAL_FRAMES}"]
    short += ["confirm={top_k: 1, seeds: [1, 2]}"]
    options = [word for option in short for word in ("--set", option)]
    done = sweep(ROOT / "sweeps/real_frames.yaml", tmp_path / "results", *options)
    assert done.code == 0, done.out + done.err
    assert "53 sequences" in done.out
    assert [row["state"] for row in table(tmp_path / "results")] == ["complete"] * 2


# --- bad input: an error before Ray starts -------------------------------------------------------------------------


def bad(**data: Any) -> dict[str, Any]:
    return {"trainer": {**TINY_TRAINER, "data": {**TINY_TRAINER["data"], **data}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"paramters": {}}, ["unknown key 'paramters'", "did you mean 'parameters'?"]),
        ({"parameters": {"alhpa": {"min": 0.1, "max": 0.9}}}, ["unknown parameter 'alhpa'", "'alpha'"]),
        ({"parameters": {"alpha": {"min": 0.9, "max": 0.1}}}, ["min = 0.9 is not below max = 0.1"]),
        (
            {"parameters": {"base_lr": {"distribution": "log_uniform_values", "min": 0.0, "max": 0.1}}},
            ["base_lr", "must be above 0"],
        ),
        ({"parameters": {"mask_ratio": {"min": 0.5, "max": 0.999}}}, ["parameters.mask_ratio", "no visible"]),
        (
            {"parameters": {"alpha": {"min": 0.1, "max": 0.9}, "mask_ratio": {"value": 0.99}}},
            ["the constant {'mask_ratio': 0.99} cannot be trained", "no visible"],
        ),
        ({"trainer": {**TINY_TRAINER, "mask_ratio": 1.5}}, ["trainer.mask_ratio = 1.5", "less than 1"]),
        ({"trainer": {**TINY_TRAINER, "batch_size": 1000}}, ["trainer.batch_size = 1000", "training clips"]),
        ({"trainer": {**TINY_TRAINER, "accum_iter": 99}}, ["trainer.accum_iter = 99", "longer than an epoch"]),
        ({"trainer": {**TINY_TRAINER, "encoder": {"name": "vit_tinny_patch16_224"}}}, ["no timm model", "vit_tiny"]),
        (bad(image_size=17), ["image_size = 17 x 17", "patch size 4", "use 16 x 16"]),
        (bad(source="frames", root="/nowhere/at/all"), ["/nowhere/at/all"]),
        (bad(source="frames"), ["needs root"]),
        (bad(frame_stride=5), ["a clip spans 16 frames"]),
        ({"metric": {"name": "val_loss"}}, ["val_loss"]),
        ({"trainer": {**TINY_TRAINER, "lr": 0.1}}, ["unknown key 'lr' = 0.1", "give base_lr"]),
        ({"trainer": {**TINY_TRAINER, "betas": [0.9]}}, ["trainer.betas has too few values"]),
        ({"trainer": {**TINY_TRAINER, "device": "cuda"}}, ["trainer.device = 'cuda'", "resources.gpu = 0"]),
        ({"resources": {"cpu": 9999}}, ["resources.cpu = 9999", "this machine has"]),
        ({"project": "a/b"}, ["W&B project 'a/b'"]),
        ({"parameters": {"learning_rate": {"min": 0.1, "max": 0.2}}}, ["did you mean 'base_lr'?"]),
        ({"parameters": {"batch_size": {"values": [8, 999]}}}, ["parameters.batch_size = 999", "training clips"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else "-".join(value),
)
def test_bad_input_is_an_error_with_its_key_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: list[str]
) -> None:
    if "encoder" in changes.get("trainer", {}) and "name" in changes["trainer"]["encoder"]:
        changes["trainer"]["data"] = {**TINY_TRAINER["data"], "image_size": 32}
    spec = write_spec(tmp_path, **changes)
    assert main([str(spec), "--results", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (tmp_path / "results").exists()


def test_a_missing_spec_names_those_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(tmp_path)
    assert main([str(tmp_path / "tinny.yaml")]) == 2
    assert "did you mean 'tiny.yaml'?" in capsys.readouterr().err


def test_set_reaches_any_key_and_its_faults_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path)
    results = ["--results", str(tmp_path / "results"), "--dry-run", "--no-measure"]
    options = ["--set", "run_cap=2", "--set", "trainer.data.eval_clips=4", "--set", "parameters.alpha.max=0.8"]
    assert main([str(spec), *results, *options]) == 0
    printed = capsys.readouterr().out
    assert "2 trials" in printed
    assert "4 held-out clips" in printed
    assert "alpha 0.1 to 0.8" in printed
    assert main([str(spec), *results, "--set", "trainer.epoch=3"]) == 2
    assert "did you mean 'trainer.epochs'?" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_spec(tmp_path)), "--results", str(tmp_path / "results"), "--dry-run", "--no-measure"]) == 0
    printed = capsys.readouterr().out
    assert "3 epochs of 6 updates" in printed
    assert "nothing was started" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_folder_with_other_files_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/thesis.tex").write_text("precious")
    assert main([str(write_spec(tmp_path)), "--results", str(tmp_path / "results")]) == 2
    assert "holds files, but no sweep" in capsys.readouterr().err


def test_nothing_to_resume_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_spec(tmp_path)), "--results", str(tmp_path / "results"), "--resume"]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_a_folder_of_another_spec_is_refused_with_the_difference(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = finished[0]
    spec = str(results.parent / "tiny.yaml")
    assert main([spec, "--results", str(results)]) == 2
    assert "holds this sweep already" in capsys.readouterr().err
    assert main([spec, "--results", str(results), "--resume", "--set", "trainer.epochs=4"]) == 2
    assert "trainer.epochs: 3 there, 4 here" in capsys.readouterr().err
