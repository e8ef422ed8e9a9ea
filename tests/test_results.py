"""The results folder belongs to one sweep, and its table tells of every trial."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from model.metrics import EPOCH_NAMES, EVAL_NAMES, Level
from model.sinks import CsvSink, Event
from sweep.results import ResultsFolder, equal_weights
from sweep.study import Outcome, Record
from sweep.trial_table import TrialTable
from tests.sweeping import tiny_spec

SPEC = tiny_spec()


def opened(path: Path) -> ResultsFolder:
    folder = ResultsFolder(path)
    folder.open(SPEC, resume=False)
    folder.write_provenance(SPEC)
    return folder


def record(number: int = 0, outcome: Outcome = Outcome.COMPLETE, **values: Any) -> Record:
    values = {"alpha": 0.5, "base_lr": 0.03} | values
    return Record(number, f"{number:04d}", values, "equal-weights", outcome, 0.7, 1, None)


def test_a_new_folder_is_made_and_its_spec_loads_again(tmp_path: Path) -> None:
    folder = opened(tmp_path / "deep" / "er")
    assert folder.spec_file.exists()
    with pytest.raises(ConfigError, match="holds this sweep already; go on with it by --resume"):
        ResultsFolder(folder.path).check(SPEC, resume=False)
    ResultsFolder(folder.path).check(SPEC, resume=True)


def test_another_spec_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = opened(tmp_path / "results")
    other = tiny_spec(search={"seed": 4, "startup_trials": 2})
    with pytest.raises(ConfigError, match=r"search\.seed: 0 there, 4 here"):
        folder.check(other, resume=True)


@pytest.mark.parametrize(
    "change",
    [{"run_cap": 9}, {"wandb": {"mode": "disabled"}}, {"resources": {"max_concurrent": 1}}, {"description": "more"}],
)
def test_what_changes_no_trial_may_change_at_a_resumption(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = opened(tmp_path / "results")
    folder.check(tiny_spec(**change), resume=True)


def test_a_second_driver_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    first = opened(tmp_path / "results")
    second = ResultsFolder(first.path)
    with pytest.raises(ConfigError, match=r"another process is running this sweep .* \(process \d+ on"):
        second.open(SPEC, resume=True)
    first.close()
    second.open(SPEC, resume=True)
    second.close()


def test_provenance_keeps_the_uid_and_every_session(tmp_path: Path) -> None:
    folder = opened(tmp_path / "results")
    uid = folder.provenance()["uid"]
    assert folder.write_provenance(SPEC) == uid
    sessions = json.loads(folder.provenance_file.read_text())["sessions"]
    assert len(sessions) == 2
    assert sessions[0]["packages"]["torch"]
    assert sessions[0]["command"]


def rows(folder: ResultsFolder) -> list[dict[str, str]]:
    with folder.trials_file.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_has_the_trials_state_parameters_and_last_metrics(tmp_path: Path) -> None:
    folder = opened(tmp_path / "results")
    sink = CsvSink(folder.trial_folder("0000"))
    epoch = dict.fromkeys((*EPOCH_NAMES, *EVAL_NAMES, "objective/value"), 0.25)
    sink.log(Event(Level.EPOCH, epoch | {"epoch": 0, "objective/value": 0.9}))
    sink.log(Event(Level.EPOCH, epoch | {"epoch": 1, "objective/value": 1 / 3}))
    sink.log(Event(Level.SUMMARY, {"summary/best_epoch": 1, "summary/best_loss": 0.2}))
    sink.close(0)
    table = TrialTable(folder, SPEC)
    table.update(record())
    table.write()
    (row,) = rows(folder)
    assert (row["trial"], row["state"], row["preset"], row["epochs_done"]) == ("0000", "complete", "equal-weights", "2")
    assert float(row["objective/value"]) == 1 / 3
    assert (row["alpha"], row["effective_mask_ratio"], row["summary/best_loss"]) == ("0.5", "0.75", "0.2")


def test_a_trial_without_files_has_a_row_too(tmp_path: Path) -> None:
    folder = opened(tmp_path / "results")
    table = TrialTable(folder, SPEC)
    table.update(record(1, Outcome.FAILED))
    table.update(record(0, Outcome.RUNNING))
    table.write()
    assert [(row["trial"], row["state"]) for row in rows(folder)] == [("0000", "running"), ("0001", "failed")]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(A1)", "+1+1", "-2+3", "\tx", "=1\r=2\n=3"])
def test_a_text_that_a_spreadsheet_would_run_is_quoted_and_numbers_stay(tmp_path: Path, text: str) -> None:
    folder = opened(tmp_path / "results")
    hostile = replace(record(), outcome=Outcome.FAILED, reason=text, values={"alpha": -0.5, "base_lr": text})
    for _ in range(2):  # written, loaded, and written again
        table = TrialTable(folder, SPEC)
        table.load()
        table.put(hostile)
        table.write()
    with folder.trials_file.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["reason"] == row["base_lr"] == "'" + text.replace("\r", " ")
    assert row["alpha"] == "-0.5"


def test_equal_weights_is_the_preset_that_weighs_both_losses_alike() -> None:
    other = record(0, alpha=0.75)
    both = record(1, alpha=0.3, beta=0.3)
    assert equal_weights([other, both]) is both
    assert equal_weights([other]) is None
