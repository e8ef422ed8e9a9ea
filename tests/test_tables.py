"""sweep/tables.py: the tables and figures that a notebook gets of a results folder."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
from past_sweeps import UPDATES, Past, past_sweep, write_trial
from sweeping import tiny_spec

from model.errors import UserError
from model.metrics import BATCH_NAMES, EPOCH_COLUMNS
from model.sinks import read_csv
from sweep import load_results
from sweep.outcome import Outcome
from sweep.report.data import read_results

ALPHA = {"alpha": 0.5, "base_lr": 0.03}
TRIALS = (
    Past(ALPHA, preset="equal-weights"),
    Past({"alpha": 0.2, "base_lr": 0.1}, Outcome.PRUNED, epochs=1),
    Past({"alpha": 0.9, "base_lr": 0.2}, Outcome.DIVERGED, epochs=2, nan_in="batch"),
    Past({"alpha": 0.7, "base_lr": 0.05}),
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return past_sweep(tmp_path / "results", tiny_spec(), *TRIALS)


def confirmed(results: Path) -> Path:
    """The folder with two runs of a confirmation, of which one has ended."""
    spec = tiny_spec(parameters={**tiny_spec().resolved()["parameters"], "seed": {"min": 0, "max": 9}})
    for number in range(2):
        write_trial(results / "trials" / f"c{number:04d}", spec, Past({**ALPHA, "seed": number + 1}), seed=number)
    with (results / "confirm.csv").open("w", newline="", encoding="utf-8") as file:
        rows: list[list[Any]] = [["trial", "state", "reason", "candidate", "seconds", "alpha", "base_lr", "seed"]]
        csv.writer(file).writerows([*rows, ["c0000", "complete", "", "equal-weights", 1.5, 0.5, 0.03, 1]])
    return results


def test_every_value_of_every_row_of_every_trial_is_in_the_tables(results):
    sweep = load_results(str(results))
    for table, file, columns in ((sweep.batches, "batch.csv", BATCH_NAMES), (sweep.epochs, "epoch.csv", EPOCH_COLUMNS)):
        assert list(table.columns) == ["trial", *columns]
        there = [
            {"trial": folder.name, **row}
            for folder in sorted((results / "trials").iterdir())
            for row in read_csv(folder / file)
        ]
        assert len(table) == len(there) > 0
        for shown, row in zip(table.to_dict("records"), there, strict=True):
            assert shown["trial"] == row["trial"]
            for name in columns:
                assert shown[name] == row.get(name) or (math.isnan(shown[name]) and math.isnan(row.get(name, math.nan)))
    assert np.isnan(sweep.batches.set_index("trial").loc["0002"]["batch/loss_total"].iloc[-1])
    assert sweep.batches["batch/iteration"].dtype == "int64"


def test_a_row_per_trial_tells_state_parameters_and_objective(results):
    trials = load_results(results).trials.set_index("trial")
    assert list(trials.state) == ["complete", "pruned", "diverged", "complete"]
    assert list(trials.alpha) == [past.values["alpha"] for past in TRIALS]
    assert trials.preset["0000"] == "equal-weights"
    assert list(trials.epochs_done) == [3, 1, 1, 3]
    for trial in read_results(results).trials:
        assert trials["objective/value"][trial.name] == trial.metrics["objective/value"]
    assert not trials.confirmation.any()


def test_runs_of_the_confirmation_are_marked_and_one_that_runs_is_told_by_its_files(results):
    trials = load_results(confirmed(results)).trials
    runs = trials[trials.confirmation].set_index("trial")
    assert list(runs.index) == ["c0000", "c0001"]
    assert list(runs.state) == ["complete", "running"]
    assert list(runs.seed) == [1, 2]
    assert list(runs.alpha) == [0.5, 0.5]
    assert runs.candidate["c0000"] == "equal-weights"
    assert runs.seconds["c0000"] == 1.5
    assert set(load_results(results).batches.trial) == {*trials.trial}


def test_a_trial_that_has_not_ended_has_its_parameters(tmp_path):
    sweep = load_results(past_sweep(tmp_path / "r", tiny_spec(), Past(ALPHA, Outcome.RUNNING, epochs=1)))
    (row,) = sweep.trials.to_dict("records")
    assert (row["state"], row["alpha"], row["base_lr"], row["epochs_done"]) == ("running", 0.5, 0.03, 1)
    assert sweep.best is None
    assert sweep.conclusion is None


def test_the_best_trial_and_the_spec_are_those_of_the_report(results):
    sweep = load_results(results)
    best = sweep.best
    assert best is not None
    complete = sweep.trials[sweep.trials.state == "complete"].set_index("trial")
    assert best.name == complete["objective/value"].idxmin()
    assert sweep.spec.name == "tiny"
    assert repr(sweep) == f"<sweep tiny: 4 trials in {results}>"


def test_the_figures_are_those_of_the_report_and_need_no_page(results):
    figures = load_results(results).figures
    assert {"batch/loss_ratio", "Value by trial"} <= set(figures)  # the example notebook shows the second
    for name, figure in figures.items():
        assert figure.layout.paper_bgcolor == "white", name
        assert figure.layout.title.text
        assert figure.data or figure.layout.annotations, name


def test_a_half_written_line_is_left_out(results):
    path = results / "trials" / "0000" / "batch.csv"
    whole = len(load_results(results).batches)
    with path.open("a") as file:
        file.write("0.5,0.1,2")
    sweep = load_results(results)
    assert len(sweep.batches) == whole
    assert sweep.notes == []


@pytest.mark.parametrize(
    "damage", ["0.5,oops" + ",1" * 14, "0.5,0.1", "1" + ",1" * 16, "\0\0\0\0", '"' + ",1" * 15, ""]
)
def test_of_a_damaged_file_the_rows_before_the_damage_are_shown_and_a_note_says_so(results, damage):
    path = results / "trials" / "0001" / "batch.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], damage, *lines[3:]]) + "\n")
    sweep = load_results(results)
    rows = sweep.batches.groupby("trial").size()
    assert dict(rows) == {"0000": 3 * UPDATES, "0001": 2, "0002": 2 * UPDATES, "0003": 3 * UPDATES}
    assert [note for note in sweep.notes if str(path) in note and "2 rows before" in note]


def test_files_of_another_version_with_other_columns_are_read_beside_the_others(results):
    path = results / "trials" / "0001" / "epoch.csv"
    table = pd.read_csv(path)
    table.drop(columns="probe/chance_accuracy").assign(**{"eval/extra": 1.0}).to_csv(path, index=False)
    epochs = load_results(results).epochs
    assert list(epochs.trial) == ["0000"] * 3 + ["0001"] + ["0002"] + ["0003"] * 3
    assert epochs.set_index("trial")["eval/extra"].dropna().index.tolist() == ["0001"]
    assert len(epochs.columns) == len(EPOCH_COLUMNS) + 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n1,2\n", b"batch/lr,batch/lr\n1,2\n", b"hello\nworld\n"])
def test_a_file_without_our_columns_costs_its_trial_alone(results, content):
    path = results / "trials" / "0001" / "batch.csv"
    path.write_bytes(content)
    sweep = load_results(results)
    assert set(sweep.batches.trial) == {"0000", "0002", "0003"}
    assert any(str(path) in note for note in sweep.notes)


def test_a_sweep_without_a_row_has_empty_tables_with_all_columns(tmp_path):
    sweep = load_results(past_sweep(tmp_path / "r", tiny_spec(), Past(ALPHA, Outcome.RUNNING, epochs=0)))
    assert (len(sweep.batches), len(sweep.epochs)) == (0, 0)
    assert list(sweep.batches.columns) == ["trial", *BATCH_NAMES]
    empty = load_results(past_sweep(tmp_path / "e", tiny_spec()))
    assert (len(empty.trials), len(empty.batches), empty.best) == (0, 0, None)
    assert {"trial", "state", "alpha", "base_lr"} <= set(empty.trials.columns)
    assert isinstance(empty.figures, dict)


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        load_results(tmp_path)


def test_the_rows_of_many_trials_are_parsed_in_one_call(tmp_path, monkeypatch):
    results = past_sweep(tmp_path / "r", tiny_spec(), Past(ALPHA))
    trials = results / "trials"
    content = (trials / "0000" / "batch.csv").read_text()
    for number in range(1, 200):
        (trials / f"{number:04d}").mkdir()
        (trials / f"{number:04d}" / "batch.csv").write_text(content)
    calls = []
    parse = pyarrow.csv.read_csv  # counted: one call for all files with the same columns
    monkeypatch.setattr(pyarrow.csv, "read_csv", lambda *given, **options: calls.append(1) or parse(*given, **options))
    batches = load_results(results).batches
    assert len(calls) == 1
    assert dict(batches.groupby("trial").size()) == {f"{number:04d}": 3 * UPDATES for number in range(200)}


@pytest.mark.process
def test_importing_the_package_costs_nothing_of_what_the_tables_need():
    probe = "import sys, sweep; print([m for m in ('pandas', 'pyarrow', 'plotly', 'torch', 'ray') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
