"""python -m sweep.diagnose on W&B's own files, on CSV files exported there, and on sweeps: where the rules fire."""

import csv
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

from model.errors import DataError
from model.sinks import read_csv
from sweep.diagnose import main
from sweep.diagnosis_csv import read_exported
from sweep.diagnosis_input import load_run, read_runs
from sweep.limits import Rule

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


def history_export(results, path, columns=None):
    """A run's history as W&B's page exports it: updates and epochs mixed, empty cells."""
    trial = results / "trials" / "0000"
    epochs, batches = read_csv(trial / "epoch.csv"), read_csv(trial / "batch.csv")
    rows = []
    for epoch in epochs:
        rows += [row for row in batches if row["batch/epoch"] == epoch["epoch"]]
        rows.append(epoch)
    names = columns or [*dict.fromkeys(name for row in rows for name in row)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["Step", "_timestamp", *names, "pictures/reconstruction"])
        for step, row in enumerate(rows):
            writer.writerow([step, 1.7e9 + step, *(row.get(name, "") for name in names), "media/x.png" * (step == 3)])
    return path


def same_findings(path, results):
    [read] = read_runs(path)
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


# --- CSV files


def test_a_table_of_a_runs_history_is_diagnosed_as_its_folder_is(lopsided, run, tmp_path):
    path = history_export(lopsided, tmp_path / "export.csv")
    read = same_findings(path, lopsided)
    assert (len(read.epochs), len(read.batches), read.notes) == (3, 18, ())
    assert run(path)[0] == 1


def test_a_table_without_rows_of_epochs_gets_them_from_the_updates(lopsided, tmp_path):
    names = [name for name in read_csv(lopsided / "trials" / "0000" / "batch.csv")[0] if name != "batch/epoch"]
    path = history_export(lopsided, tmp_path / "export.csv", names)
    [read] = read_runs(path)
    assert Rule.STATIC_SHARE in {finding.rule for finding in read.findings()}
    assert [note.partition(";")[0] for note in read.notes] == ["there is no batch/epoch", "there are no rows of epochs"]


def test_updates_without_an_epoch_belong_to_the_epoch_whose_row_comes_next(lopsided, tmp_path):
    names = ["batch/loss_static", "batch/loss_dynamic", "epoch", "epoch/train_loss"]
    [read] = read_runs(history_export(lopsided, tmp_path / "export.csv", names))
    assert [row["batch/epoch"] for row in read.batches] == [0] * 6 + [1] * 6 + [2] * 6


def chart(path, *lines, axis="Step", metric="batch/loss_static"):
    """A chart's export with these runs: name -> values, None where a run has none at a step."""
    header = [axis]
    for name, _ in lines:
        header += [f"{name} - {metric}", f"{name} - {metric}__MIN", f"{name} - {metric}__MAX"]
    rows = [header]
    for step in range(max(len(values) for _, values in lines)):
        cells = [str(step)]
        for _, values in lines:
            value = values[step] if step < len(values) else None
            cells += [""] * 3 if value is None else [str(value)] * 3
        rows.append(cells)
    path.write_text("﻿" + "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_chart_of_several_runs_gets_a_line_for_each(run, tmp_path):
    path = chart(tmp_path / "c.csv", ("sweep - 触觉", [1.0] * 20 + [9.0]), ("b", [1.0, None] * 10))
    code, out, _ = run(path)
    assert code == 1
    assert "sweep - 触觉" in out
    assert "loss jumps (warning)" in out
    assert [found.name for found in read_exported(path)] == ["sweep - 触觉", "b"]
    assert run(path, "--verdict")[0] == 2
    assert "holds 2 runs" in run(path, "--apply", tmp_path / "next.yaml")[2]


def test_a_chart_over_epochs_tells_them(tmp_path):
    path = chart(tmp_path / "c.csv", ("a", [1.0, 0.8, "NaN"]), axis="epoch", metric="epoch/train_loss")
    [read] = read_runs(path)
    assert [row["epoch"] for row in read.epochs] == [0, 1, 2]
    [finding] = [found for found in read.findings() if found.rule is Rule.NOT_FINITE]
    assert finding.epoch == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Step,batch/loss_total\n0,1.0\n1,much\n", "line 3, 'batch/loss_total': 'much' is no number"),
        ("Step,batch/loss_total\n0,1.0\n1,1.0,7\n", "line 3 has 3 cells, line 1 has 2"),
        ("Step,epoch,epoch/train_loss\n0,0.5,1.0\n", "line 2, 'epoch': '0.5' must be a whole number"),
        ("Step,loss\n0,1.0\n", "line 1 names no metric of ours"),
        ("Step;batch/loss_total\n0;1.0\n", "line 1 names no metric of ours"),
        ("Step,batch/loss_total\n0,\n", "holds no row with metrics of ours"),
        ("", "line 1 names no metric of ours"),
        ("Step,a - batch/lr,a - batch/lr\n0,1,2\n", "line 1 has 'a - batch/lr' twice"),
        ('Step,batch/lr\n0,"1\n', "is no CSV"),
    ],
)
def test_a_damaged_export_is_named_with_its_line(run, tmp_path, text, message):
    path = tmp_path / "export.csv"
    path.write_text(text)
    code, out, err = run(path)
    assert (code, out) == (2, "")
    assert str(path) in err
    assert message in err


def test_an_export_that_is_no_text_is_named(tmp_path):
    (tmp_path / "export.csv").write_bytes(b"\xff\xfe\x00\n\x81\n")
    with pytest.raises(DataError, match=r"export\.csv: is no text"):
        read_exported(tmp_path / "export.csv")


def test_a_trials_own_table_stands_for_its_folder_and_other_files_are_refused(lopsided, run, tmp_path):
    same_findings(lopsided / "trials" / "0000" / "batch.csv", lopsided)
    (tmp_path / "notes.txt").write_text("x")
    assert "is no CSV and no .wandb file" in run(tmp_path / "notes.txt")[2]


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


@pytest.mark.slow
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
