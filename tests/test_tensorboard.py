"""sweep/tensorboard.py: what TensorBoard's own reader finds in the event files, against the CSV files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from past_sweeps import UPDATES, Past, past_sweep, write_trial
from sweeping import tiny_spec
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from model.metrics import OBJECTIVE_NAMES
from model.sinks import read_csv
from sweep.outcome import Outcome
from sweep.spec import SweepSpec
from sweep.tensorboard import TABLES, main

VALUES = {"alpha": 0.5, "base_lr": 0.03}
TRIALS = (
    Past(VALUES, preset="equal-weights"),
    Past({"alpha": 0.2, "base_lr": 0.1}, Outcome.PRUNED, epochs=1),
    Past({"alpha": 0.9, "base_lr": 0.2}, Outcome.DIVERGED, epochs=2, nan_in="batch"),
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return past_sweep(tmp_path / "results", tiny_spec(), *TRIALS)


def reader(folder: Path) -> EventAccumulator:
    """TensorBoard's reader of a run, with every value: by default it keeps a choice of them."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def shown(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """(step, value) by metric as TensorBoard has them; values as texts, since NaN is not equal to itself."""
    events = reader(folder)
    return {tag: [(e.step, repr(float(e.value))) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def written(trial: Path) -> dict[str, list[tuple[int, str]]]:
    """The same of the CSV files: all metrics but those that are the steps, as 32-bit floats."""
    there: dict[str, list[tuple[int, str]]] = {}
    for file, step in TABLES.items():
        for row in read_csv(trial / file):
            for name in row.keys() - {step}:
                there.setdefault(name, []).append((int(row[step]), repr(float(np.float32(row[name])))))
    return there


def assert_shown(results: Path, logdir: Path | None = None) -> None:
    for trial in sorted((results / "trials").iterdir()):
        assert shown((logdir or results / "tensorboard") / trial.name) == written(trial), trial.name


def hparams(folder: Path) -> dict[str, HParamsPluginData]:
    """What a run's folder tells the tab HPARAMS, by the last part of the tag."""
    events = reader(folder)
    content = {tag: events.SummaryMetadata(tag).plugin_data.content for tag in events.PluginTagToContent("hparams")}
    return {tag.rpartition("/")[2]: HParamsPluginData.FromString(data) for tag, data in content.items()}


def grow(results: Path, number: int, spec: SweepSpec, epochs: int) -> None:
    """The trial trains on: its rows so far are the same, since they depend on its number alone."""
    write_trial(results / "trials" / f"{number:04d}", spec, Past(VALUES, epochs=epochs), seed=number)


def test_every_value_of_every_row_is_there_once_also_nan(results, capsys):
    assert main([str(results)]) == 0
    assert_shown(results)
    assert math.isnan(float(shown(results / "tensorboard" / "0002")["batch/loss_total"][-1][1]))
    rows = 3 * UPDATES + 3 + UPDATES + 1 + 2 * UPDATES + 1
    assert capsys.readouterr().out.splitlines() == [
        f"{results}/tensorboard: {rows} new rows of 3 trials",
        f"to look at them: tensorboard --logdir {results}/tensorboard",
    ]


def test_a_repetition_adds_what_is_new_and_nothing_else(tmp_path, capsys):
    spec = tiny_spec()
    results = past_sweep(tmp_path / "results", spec, Past(VALUES, Outcome.RUNNING, epochs=1))
    for epochs, rows in ((1, UPDATES + 1), (1, 0), (2, UPDATES + 1), (3, UPDATES + 1)):
        grow(results, 0, spec, epochs)
        assert main([str(results)]) == 0
        assert_shown(results)
        assert f": {rows} new rows of 1 trial\n" in capsys.readouterr().out
    assert len(list((results / "tensorboard" / "0000").glob("*tfevents*"))) == 3  # none of the pass without a new row


def test_a_trial_that_was_trained_again_has_its_new_rows_alone(results):
    assert main([str(results)]) == 0
    write_trial(results / "trials" / "0000", tiny_spec(), Past(VALUES, epochs=2), seed=99)
    shutil.rmtree(results / "trials" / "0001")
    assert main([str(results)]) == 0
    assert_shown(results)


def test_a_half_written_line_waits_until_it_is_whole(results):
    path = results / "trials" / "0001" / "batch.csv"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert main([str(results)]) == 0
    assert_shown(results)
    path.write_text(whole)
    assert main([str(results)]) == 0
    assert_shown(results)


@pytest.mark.parametrize("state", ["lost", "half", "hostile", "more", "less", "another file"])
def test_what_a_killed_process_left_is_mended(results, state):
    assert main([str(results)]) == 0
    folder = results / "tensorboard" / "0000"
    (events,) = folder.glob("*tfevents*")
    rows = folder / "rows.json"
    content = events.read_bytes()
    if state == "lost":
        rows.unlink()
    elif state == "half":
        rows.write_text(rows.read_text()[:30])
    elif state == "hostile":
        rows.write_text('{"name": 3, "read": [1]}')
    elif state == "more":  # killed between the events and rows.json
        events.write_bytes(content + content[-500:-100])
    elif state == "less":  # the machine lost its power
        events.write_bytes(content[:-100])
    else:  # killed while it wrote its first events
        events.with_name("events.out.tfevents.9999999999.host").write_bytes(content[:-100])
    with (results / "trials" / "0000" / "batch.csv").open("a") as file:
        file.write(",".join(["1.5"] * 16) + "\n")
    assert main([str(results)]) == 0
    assert_shown(results)


def test_a_damaged_row_ends_its_file_and_is_named_once(results, capsys):
    path = results / "trials" / "0000" / "batch.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], "oops,1\n", *lines[3:]]))
    assert main([str(results)]) == 0
    assert len(shown(results / "tensorboard" / "0000")["batch/loss_total"]) == 2
    assert capsys.readouterr().err == f"note: {path}: a row is damaged; it and the rows after it are left out\n"
    path.write_text("".join(lines))
    assert main([str(results)]) == 0
    assert_shown(results)


def test_the_tab_hparams_has_parameters_and_objective_of_every_trial(tmp_path):
    parameters: dict[str, Any] = {
        "alpha": {"min": 0.1, "max": 0.9},
        "mode": {"values": ["joint", "dynamic"]},
        "betas": {"values": [[0.9, 0.95], [0.9, 0.99]]},
        "compile": {"values": [True, False]},
    }
    spec = tiny_spec(parameters=parameters, confirm={"top_k": 1, "seeds": [1, 2]})
    values = {"alpha": 0.25, "mode": "dynamic", "betas": [0.9, 0.99], "compile": False}
    results = past_sweep(tmp_path / "r", spec, Past(values, Outcome.RUNNING, epochs=1), Past(values), Past(values))
    assert main([str(results)]) == 0
    logdir = results / "tensorboard"
    experiment = hparams(logdir)["experiment"].experiment
    assert [info.name for info in experiment.hparam_infos] == [*parameters, "seed"]
    assert [info.name.tag for info in experiment.metric_infos] == list(OBJECTIVE_NAMES)
    start = hparams(logdir / "0000")["session_start_info"].session_start_info.hparams
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}
    assert told == {"alpha": 0.25, "mode": "dynamic", "betas": "[0.9, 0.99]", "compile": False}
    assert "session_end_info" not in hparams(logdir / "0000")
    assert "session_end_info" in hparams(logdir / "0001")


def test_the_events_of_two_sweeps_are_kept_apart(tmp_path, capsys):
    first, second = (past_sweep(tmp_path / name, tiny_spec(), Past(VALUES)) for name in ("first", "second"))
    logdir = tmp_path / "a folder"
    assert main([str(first), "--logdir", str(logdir)]) == 0
    assert f"tensorboard --logdir '{logdir}'" in capsys.readouterr().out
    assert main([str(second), "--logdir", str(logdir)]) == 2
    assert "holds the events of another sweep" in capsys.readouterr().err
    assert_shown(first, logdir)


@pytest.mark.parametrize("place", [".", "0000"])
def test_event_files_of_another_program_are_left_alone(results, tmp_path, capsys, place):
    theirs = tmp_path / "runs" / place / "events.out.tfevents.1.theirs"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert main([str(results), "--logdir", str(tmp_path / "runs")]) == 2
    assert "holds event files of another program; give a new folder by --logdir" in capsys.readouterr().err
    assert theirs.read_bytes() == b"theirs"


def test_a_folder_of_events_may_be_called_as_a_trial_is(results, tmp_path):
    assert main([str(results), "--logdir", str(tmp_path / "0000")]) == 0
    assert_shown(results, tmp_path / "0000")


def test_a_second_process_is_kept_away(results, capsys):
    (results / "tensorboard").mkdir()
    with FileLock(results / "tensorboard" / ".lock"):
        assert main([str(results)]) == 2
    assert "another process writes events there" in capsys.readouterr().err


def test_bad_input_is_named(tmp_path, results, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([str(results), "--logdir", str(tmp_path / "file")]) == 3
    assert "choose another folder by --logdir" in capsys.readouterr().err


def test_following_writes_rows_as_they_come_until_ctrl_c(tmp_path):
    spec = tiny_spec()
    results = past_sweep(tmp_path / "results", spec, Past(VALUES, Outcome.RUNNING, epochs=1))
    coming = [(0, 2), (1, 1), (0, 3)]  # (trial, epochs): more rows, a new trial, more rows

    def wait(_: float) -> None:
        assert_shown(results)  # also while the file is open
        if not coming:
            raise KeyboardInterrupt
        number, epochs = coming.pop(0)
        grow(results, number, spec, epochs)

    assert main([str(results), "--follow"], wait) == 130
    assert_shown(results)
    assert len(list((results / "tensorboard" / "0000").glob("*tfevents*"))) == 1, "a file for each pass"
