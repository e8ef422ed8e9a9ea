"""python -m sweep.diagnose on W&B's own files and on sweeps: where the rules fire."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from offline import records_of, run_files
from test_diagnosis_live import LOPSIDED, job, trained
from tiny import tiny_config

from sweep.diagnose import main
from sweep.diagnosis_input import load_run, read_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    """A results folder with one lopsided trial, recorded by W&B offline."""
    results = tmp_path_factory.mktemp("lopsided")
    trained(job(results, **LOPSIDED))
    records_of(run_files(results)[0])  # wandb's process writes behind the run's back
    return results


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command in a wide terminal; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def same_findings(path, results):
    read = read_run(path)
    own = load_run(results / "trials" / "0000")
    assert [(f.rule, f.severity, f.epoch) for f in read.findings()] == [
        (f.rule, f.severity, f.epoch) for f in own.findings()
    ]
    return read


# --- W&B's files


@pytest.mark.parametrize("which", ["folder", "file", "wandb folder"])
def test_an_offline_run_is_diagnosed_as_its_folder_is(lopsided, run, which):
    file = run_files(lopsided)[0]
    path = {"folder": file.parent, "file": file, "wandb folder": lopsided / "wandb"}[which]
    read = same_findings(path, lopsided)
    assert read.config == load_run(lopsided / "trials" / "0000").config
    code, out, err = run(path)
    assert (code, err) == (1, "")
    assert "s-0000" in out
    assert "static share" in out


def test_the_changes_for_an_offline_run_are_applied_to_its_own_config(lopsided, run, tmp_path):
    code, out, _ = run(run_files(lopsided)[0].parent, "--apply", tmp_path / "next.yaml")
    assert code == 1
    assert "alpha: 0.95 -> " in out
    assert yaml.safe_load((tmp_path / "next.yaml").read_text())["base_lr"] == 0.01


def test_a_wandb_folder_of_several_runs_asks_for_one(lopsided, run, tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / f"offline-run-20260101_000000-{name}"
        folder.mkdir()
        shutil.copy(run_files(lopsided)[0], folder / f"run-{name}.wandb")
    code, _, err = run(tmp_path)
    assert code == 2
    assert "holds W&B's files of 2 runs; give the folder of one" in err


def test_a_damaged_wandb_file_is_named(run, tmp_path):
    (tmp_path / "run-x.wandb").write_bytes(b"no file of wandb's")
    code, _, err = run(tmp_path / "run-x.wandb")
    assert code == 2
    assert f"{tmp_path / 'run-x.wandb'}: cannot be read" in err


# --- other files


def test_a_csv_that_was_exported_from_wandb_is_refused_with_what_to_give(run, tmp_path):
    path = tmp_path / "export.csv"
    path.write_text("Step,s-0000 - batch/loss_total\n0,1.0\n")
    code, out, err = run(path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}: CSV files that W&B's page exports are not read any more; give the trial's")
    assert err.count("\n") == 1


def test_a_trials_own_table_stands_for_its_folder_and_other_files_are_refused(lopsided, run, tmp_path):
    same_findings(lopsided / "trials" / "0000" / "batch.csv", lopsided)
    (tmp_path / "notes.txt").write_text("x")
    assert "is no run's batch.csv, epoch.csv or .wandb file" in run(tmp_path / "notes.txt")[2]


# --- the verdict


def test_the_verdict_is_the_exit_code(lopsided, run, tmp_path):
    assert run(lopsided / "trials" / "0000", "--verdict")[0] == 1
    trained(job(tmp_path, epochs=6, base_lr=0.01, alpha=0.6, seed=2))
    trained(job(tmp_path, "0001", base_lr=1e30, clip_grad=None))
    code, out, _ = run(tmp_path / "trials" / "0000", "--verdict")
    assert code == 0
    assert "quick test: passed; next: run the full training" in out
    assert run(tmp_path / "trials" / "0001", "--verdict")[0] == 2
    assert "--verdict" in run(tmp_path, "--verdict")[2]


QUICK = {
    "data.image_size": 16,
    "data.eval_clips": 8,
    "data.synthetic.sequences": 12,
    "data.synthetic.frames": 8,
    "encoder.width": 32,
    "encoder.depth": 1,
    "encoder.heads": 2,
    "encoder.patch_size": 4,
    "decoder.width": 32,
    "decoder.depth": 1,
    "decoder.heads": 2,
    "batch_size": 8,
    "device": "cpu",
    "seed": 2,
}


@pytest.mark.process
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"alpha": 0.6, "beta": 0.4, "base_lr": 0.01}, 0, "quick test: passed; next: run the full training"),
        ({"alpha": 0.95, "beta": 0.05, "base_lr": 0.01}, 1, "quick test: not passed; next: "),
        ({"base_lr": 1e30, "clip_grad": "null"}, 2, "NaN / Inf: lower base_lr"),
        ({"base_lr": -1}, 2, "must be greater than 0"),
    ],
)
def test_the_exit_code_of_the_quick_test_script_is_its_verdict(tmp_path, changes, code, said):
    options = [word for key, value in (QUICK | changes).items() for word in ("--set", f"{key}={value}")]
    script = shutil.copy(ROOT / "scripts" / "train_joint_test.sh", tmp_path)  # beside an _env.sh that installs nothing
    (tmp_path / "_env.sh").write_text(f"root={ROOT}; answer_help() {{ :; }}; prepare_env() {{ :; }}")
    places = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(script), "--out", "run", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | places)
    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())


# --- a sweep


def test_a_sweep_says_where_in_its_space_a_rule_fires_and_what_to_change(run, tmp_path):
    """Rows of epochs as an alpha far from balance leaves them, of 20 trials."""
    spec = {"name": "s", "parameters": {"alpha": {"min": 0.0, "max": 1.0}}, "run_cap": 20}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    for number in range(20):
        alpha = number / 20
        folder = tmp_path / "trials" / f"{number:04}"
        folder.mkdir(parents=True)
        content = tiny_config(alpha=alpha).model_dump(mode="json")
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        share = 0.9 if alpha > 0.72 else 0.5
        rows = "".join(f"{epoch},{0.8**epoch},{share}\n" for epoch in range(3))
        (folder / "epoch.csv").write_text("epoch,epoch/train_loss,epoch/actual_static_contribution\n" + rows)
    code, out, _ = run(tmp_path)
    assert code == 1
    assert "static share (critical): alpha above 0.7 (5 of 5 trials there; 0 of 15 elsewhere)" in out
    assert "search alpha only up to 0.7;" in out
    (tmp_path / "spec.yaml").write_text("name: 3\n")
    code, out, _ = run(tmp_path)
    assert code == 1
    assert "where in the space the rules fire is not known" in out
