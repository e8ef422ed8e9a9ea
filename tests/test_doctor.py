"""`python -m sweep.doctor`: whole sweeps, damaged as crashes and power losses do it, and mended."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.folder import LAST, PREVIOUS
from model.sinks import read_csv
from sweep.confirm import Confirmation
from sweep.doctor.__main__ import main
from sweep.doctor.files import TableBook
from sweep.doctor.repair import DAMAGED, mended_for_resume
from sweep.plan import first_trials
from sweep.results import ResultsFolder
from sweep.single import main as single_trial
from sweep.spec import SweepSpec, load_spec
from sweep.study import JOURNAL, Record, SweepStudy
from sweep.trial_table import TrialTable
from sweep.wandb_files import whole_records
from tests.inline import Inline, sweep
from tests.sweeping import TINY_TRAINER, tiny_content

pytestmark = pytest.mark.xdist_group("doctor")  # they share a sweep
DIVERGES = {"alpha": 0.4, "base_lr": 1e30}
LEARNING_RATES = {"values": [0.01, 0.03, 0.1, 1e30]}


def write_spec(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    content = tiny_content(resources={"max_concurrent": 1}, **changes)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run_whole(folder: Path, **changes: Any) -> Path:
    ran = sweep(write_spec(folder, **changes), folder / "results")
    assert ran.code == 0, ran.out + ran.err
    return folder / "results"


def killed_at(moment: int, event: str, work: Callable[[], object]) -> bool:
    """Whether the `moment`-th `event`, one of Python's audit events, was reached, and ended the process of `work`."""
    if (child := os.fork()) == 0:
        count = 0

        def die(what: str, arguments: object) -> None:
            nonlocal count
            if what == event and (count := count + 1) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(die)
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of 5 trials, one of them pruned and one diverged, and 3 runs of its confirmation."""
    return run_whole(
        tmp_path_factory.mktemp("whole"),
        run_cap=5,
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3},
        trainer={**TINY_TRAINER, "clip_grad": None},
        parameters={"alpha": {"min": 0.1, "max": 0.9}, "base_lr": LEARNING_RATES},
        search={"presets": [{"alpha": 0.5}, {"alpha": 0.75}, DIVERGES], "startup_trials": 2},
        confirm={"top_k": 1, "seeds": [1, 2]},
    )


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "results", symlinks=True)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(results: Path, *options: str) -> tuple[int, str]:
        capsys.readouterr()  # of a sweep before
        code = main([str(results), *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def mends(doctor: Callable[..., tuple[int, str]], results: Path, *words: str, left: int = 0) -> str:
    """That the doctor names this, mends it, and finds nothing but what is left afterwards; what it said first."""
    before = snapshot(results)
    code, said = doctor(results)
    assert code == 1, said
    for word in words:
        assert word in said, said
    assert "Traceback" not in said
    assert snapshot(results) == before, "a check changed something"
    assert doctor(results, "--repair")[0] == (1 if left else 0)
    code, again = doctor(results)
    assert code == (1 if left else 0), again
    assert again.count("cannot be mended") == left
    return said


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, locks aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def studies(results: Path) -> tuple[SweepStudy, Confirmation]:
    spec = load_spec(results / "spec.yaml")
    search = opened(results, spec)
    return search, Confirmation(ResultsFolder(results), spec, search.records())


def opened(results: Path, spec: SweepSpec) -> SweepStudy:
    return SweepStudy(
        results,
        spec.name,
        spec.space,
        sampler=spec.search.sampler or "random",
        seed=spec.search.seed,
        startup_trials=spec.search.startup_trials,
        goals=[metric.goal for metric in spec.objectives],
        first=first_trials(spec),
    )


def told(results: Path) -> list[tuple[list[Record], dict[int, dict[int, float]], list[str]]]:
    """All that both studies say, and in which order their trials ended."""
    return [(s.records(), s.intermediate_values(), [r.trial for r in s.ended()]) for s in studies(results)]


def rows(results: Path) -> dict[str, bytes]:
    """Every row and summary of every trial, and the tables."""
    names = ("trials/*/*.csv", "trials/*/summary.json", "trials.csv", "confirm.csv")
    return {str(p.relative_to(results)): p.read_bytes() for name in names for p in results.glob(name)}


def cut(path: Path, count: int) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - count)


def outcome_of(results: Path, state: str) -> str:
    """The first trial that ended so."""
    with (results / "trials.csv").open(newline="", encoding="utf-8") as file:
        return next(row["trial"] for row in csv.DictReader(file) if row["state"] == state)


def wandb_file(results: Path, trial: str) -> Path:
    return next(results.glob(f"wandb/offline-run-*-{trial}/run-*.wandb"))


# --- healthy sweeps


def test_a_healthy_sweep_has_no_disagreement_and_stays_as_it_is(doctor, results):
    before = snapshot(results)
    code, said = doctor(results)
    assert (code, said) == (0, f"all books agree: {len(list((results / 'trials').iterdir()))} trials, 11 W&B runs\n")
    assert doctor(results, "--repair")[0] == 0
    assert snapshot(results) == before


def test_a_resume_of_a_healthy_sweep_is_quiet_and_reads_no_checkpoint(results):
    spec = load_spec(results / "spec.yaml")
    for checkpoint in results.glob(f"trials/*/{LAST}"):
        checkpoint.write_bytes(b"PK, of 2 GB")  # to look into these would cost minutes
    assert list(mended_for_resume(results, spec)) == []


def test_sweeps_of_several_metrics_and_warm_started_ones_are_healthy_and_can_be_rebuilt(doctor, whole, tmp_path):
    results = run_whole(
        tmp_path,
        run_cap=2,
        metrics=[{"name": "eval/loss_static"}, {"name": "eval/loss_dynamic"}],
        search={"warm_start": [str(whole)], "sampler": "tpe"},
    )
    assert doctor(results)[0] == 0
    spec = load_spec(results / "spec.yaml")
    before = opened(results, spec).records()
    (results / JOURNAL).unlink()
    mends(doctor, results, "study.journal: it is missing")
    assert opened(results, spec).records()[: len(before)] == before


def test_a_population_is_healthy_and_can_be_rebuilt(doctor, tmp_path):
    search = {"pbt": {"every_epochs": 1, "quantile": 0.5, "parameters": ["alpha"]}, "presets": []}
    results = run_whole(tmp_path, run_cap=4, method="random", search=search)
    assert json.loads((results / "population.json").read_text())["changes"]
    assert doctor(results) == (0, "all books agree: 4 trials, 4 W&B runs\n")
    spec = load_spec(results / "spec.yaml")
    before = opened(results, spec).records()
    assert any(record.final_values for record in before)
    (results / JOURNAL).unlink()
    mends(doctor, results, "study.journal: it is missing")
    assert opened(results, spec).records() == before


# --- the study's file


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\0" * path.stat().st_size), id="zeros"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[700:]), id="its beginning is gone"),
        pytest.param(lambda path: cut(path, path.stat().st_size // 2), id="an older copy"),
        pytest.param(lambda path: cut(path, 9), id="cut in its last line"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"\0" * 4096), id="zeros at its end"),
    ],
)
def test_a_lost_or_damaged_study_is_the_same_again_and_the_search_goes_on_from_it(doctor, results, damage):
    before = told(results)
    suggested = studies(results)[0].next()
    journal = results / JOURNAL
    journal.write_bytes(without_last_suggestion(journal.read_bytes(), suggested.number))
    assert told(results) == before
    damage(journal)
    mends(doctor, results, "study.journal")
    assert told(results) == before
    assert studies(results)[0].next() == suggested


def without_last_suggestion(data: bytes, number: int) -> bytes:
    """The journal before the trial was suggested."""
    lines = data.splitlines(keepends=True)
    created = [place for place, line in enumerate(lines) if json.loads(line)["op_code"] == 4]
    return b"".join(lines[: created[-1]])


def test_damaged_lines_of_a_study_are_mended_and_a_copy_of_it_is_kept(doctor, results):
    before, journal = told(results), results / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    for place in (0, 5, len(lines) // 2, len(lines) - 3):
        lines[place] = b"\0" * 30 + lines[place][30:]
    journal.write_bytes(b"".join(lines))
    mends(doctor, results, "study.journal: damaged in 4 lines")
    assert told(results) == before
    (kept,) = results.glob(f"{DAMAGED}/*/{JOURNAL}")
    assert kept.read_bytes() == b"".join(lines)


def test_a_trial_whose_end_the_study_was_not_told_is_told_with_its_very_values(doctor, results):
    before, journal = told(results), results / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    ended = max(place for place, line in enumerate(lines) if json.loads(line)["op_code"] == 6)
    journal.write_bytes(b"".join(lines[:ended]))  # a power loss before that
    said = mends(doctor, results, "the study has it as running, but it ended as complete")
    assert "trial c000" in said
    assert told(results) == before


# --- rows


@pytest.mark.parametrize("state", ["complete", "pruned", "diverged"])
def test_rows_of_an_ended_trial_come_back_from_its_wandb_run_bit_for_bit(doctor, results, state):
    before, trial = rows(results), outcome_of(results, state)
    folder = results / "trials" / trial
    lines = (folder / "batch.csv").read_bytes().splitlines(keepends=True)
    lines[1], lines[2] = lines[2], lines[1]
    (folder / "batch.csv").write_bytes(b"".join(lines[:3]) + b"0.25,\0\0\0\n" + b"".join(lines[4:])[:-7])
    if state != "diverged":  # in its first epoch
        (folder / "epoch.csv").unlink()
    (folder / "summary.json").write_text('{"summary/best_')
    mends(doctor, results, f"trial {trial}: batch.csv: ", "1 row is damaged (line 4)", "wrong order", "summary.json is")
    assert rows(results) == before


def test_rows_that_no_book_has_are_named_as_lost_with_how_to_train_again(doctor, results):
    trial = outcome_of(results, "complete")
    shutil.rmtree(wandb_file(results, trial).parent)
    lines = (results / "trials" / trial / "batch.csv").read_bytes().splitlines(keepends=True)
    (results / "trials" / trial / "batch.csv").write_bytes(b"".join(lines[:5] + lines[7:]))
    said = mends(doctor, results, f"trial {trial}: batch.csv: rows 4 to 5 are missing", left=1)
    assert f"python -m model.train {results}/trials/{trial}/config.yaml" in said
    assert len(read_csv(results / "trials" / trial / "batch.csv")) == 16  # what is there stays


@pytest.mark.parametrize("damage", ["missing", "old", "cut", "zeros", "of another sweep"])
def test_a_damaged_table_is_written_anew(doctor, results, damage):
    before, path = rows(results), results / "trials.csv"
    if damage == "missing":
        path.unlink()
    elif damage == "old":
        path.write_text(path.read_text().replace("complete", "running"))
    elif damage == "cut":
        cut(path, 40)
    elif damage == "zeros":
        path.write_bytes(path.read_bytes()[:-200] + b"\0" * 200)
    else:
        path.write_text(path.read_text() + path.read_text().splitlines()[1].replace("0000", "0042", 1) + "\n")
    mends(doctor, results, "trials.csv: ")
    assert rows(results) == before


# --- checkpoints and other files of a trial


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(doctor, results):
    last = results / "trials" / "0000" / LAST
    shutil.copy(last, last.with_name(PREVIOUS))
    sound = last.read_bytes()
    last.write_bytes(sound[: len(sound) // 2])
    mends(doctor, results, "trial 0000: its last checkpoint is damaged")
    assert last.read_bytes() == sound
    assert not last.with_name(PREVIOUS).exists()


def test_lost_weights_are_named_with_how_to_train_them_again(doctor, results):
    last = results / "trials" / "0001" / LAST
    damaged = b"PK" + b"\0" * 400
    last.write_bytes(damaged)
    said = mends(doctor, results, "trial 0001: its checkpoint does not load", "Its weights are lost")
    assert f"python -m model.train {results}/trials/0001/config.yaml --out {results}/again/0001" in said
    assert "trial 0001: it has no checkpoint" in doctor(results)[1]
    assert next(results.glob(f"{DAMAGED}/*/trials/0001/{LAST}")).read_bytes() == damaged


def test_what_dead_processes_left_is_cleared_away(doctor, results):
    trial = results / "trials" / "0000"
    left = [trial / "batch.csv.tmp", trial / "checkpoint" / ".last.pt.4711.tmp", results / ".trials.csv.4711.tmp"]
    for path in left:
        path.write_text("half")
    (results / ".stop").touch()
    (results / f"{JOURNAL}.lock").symlink_to(JOURNAL)
    (trial / "config.yaml").write_text("alpha: [")
    before = (results / "trials" / "0000" / "config.yaml", results / "provenance.json")
    uid = json.loads(before[1].read_text())["uid"]
    before[1].write_text('{"uid": ')
    mends(doctor, results, "batch.csv.tmp", ".last.pt.4711.tmp", ".stop", f"{JOURNAL}.lock", "config.yaml", uid)
    assert not any(path.exists() for path in (*left, results / ".stop", results / f"{JOURNAL}.lock"))
    assert {path.name for path in results.glob(f"{DAMAGED}/**/*.tmp")} == {path.name for path in left}
    assert json.loads(before[1].read_text())["uid"] == uid
    assert yaml.safe_load(before[0].read_text())["alpha"] == 0.5


def test_a_missing_folder_of_a_trial_cannot_be_mended_and_is_named(doctor, results):
    shutil.rmtree(results / "trials" / "0001")
    mends(doctor, results, "trial 0001: its folder is missing", left=1)
    record = studies(results)[0].records()[1]
    assert record.outcome == "complete"
    spec = load_spec(results / "spec.yaml")
    before = TableBook(results / "trials.csv").rows
    table = TrialTable(ResultsFolder(results), spec)
    table.update(record)  # as a resumed sweep does
    table.write()
    assert TableBook(results / "trials.csv").rows == {"0001": before["0001"]}, "the last copy of its numbers"


def test_a_spec_of_another_name_moves_no_trial_aside(doctor, results):
    before = rows(results)
    text = (results / "spec.yaml").read_text()
    (results / "spec.yaml").write_text(text.replace("name: tiny", "name: other", 1))
    code, said = doctor(results, "--repair")
    assert (code, "name: other; the study in study.journal is of the sweep tiny" in said) == (2, True), said
    assert rows(results) == before


def test_a_lost_summary_of_a_trial_whose_rows_are_lost_comes_from_the_table(doctor, results):
    trial = outcome_of(results, "complete")
    folder = results / "trials" / trial
    before = json.loads((folder / "summary.json").read_text())
    shutil.rmtree(wandb_file(results, trial).parent)
    cut(folder / "epoch.csv", 40)
    (folder / "summary.json").unlink()
    mends(doctor, results, "summary.json is missing", left=1)
    assert json.loads((folder / "summary.json").read_text()) == before


def test_a_file_that_cannot_be_read_is_an_error_and_no_traceback(doctor, results):
    (results / JOURNAL).unlink()
    (results / JOURNAL).mkdir()
    for options in ((), ("--repair",)):
        code, said = doctor(results, *options)
        assert code == 2
        assert said.startswith("error: ")
        assert str(results / JOURNAL) in said


# --- orphans


def test_orphans_are_moved_aside_whole(doctor, results):
    before = rows(results)
    shutil.copytree(results / "trials" / "0001", results / "trials" / "0005")
    shutil.copytree(results / "trials" / "0001", results / "trials" / "c0099")
    (results / "ray" / "0077_ab12").mkdir()
    (results / "ray" / "0001_ab12").mkdir()  # Ray's name for a trial that was started again
    uid = json.loads((results / "provenance.json").read_text())["uid"]
    strange = results / "wandb" / f"offline-run-20260101_000000-{uid}-0042"
    shutil.copytree(wandb_file(results, "0001").parent, strange)
    next(strange.glob("run-*.wandb")).rename(strange / f"run-{uid}-0042.wandb")
    mends(doctor, results, "trials/0005", "trials/c0099", "ray/0077_ab12", strange.name)
    assert rows(results) == before
    assert (results / "ray" / "0001_ab12").exists()
    (kept,) = results.glob(f"{DAMAGED}/*")
    assert (kept / "trials" / "0005" / LAST).exists()
    assert (kept / "wandb" / strange.name).exists()


# --- W&B


def test_a_run_that_breaks_off_is_completed_so_that_a_sync_has_every_row_once(doctor, results):
    trials = {state: outcome_of(results, state) for state in ("complete", "pruned", "diverged")}
    for trial in trials.values():
        file = wandb_file(results, trial)
        cut(file, file.stat().st_size // 2)
    shutil.rmtree(wandb_file(results, "0001").parent)
    words = [f"trial {trial}: its W&B run lacks its last" for trial in trials.values()]
    mends(doctor, results, *words, "trial 0001: it has no W&B run")
    for state, trial in (*trials.items(), ("complete", "0001")):
        files = results.glob(f"wandb/offline-run-*-{trial}*/run-*.wandb")
        parts = [record for file in files for record in whole_records(file)]
        history = [record["history"]["item"] for record in parts if record["type"] == "history"]
        logged = [item["batch/iteration"] for item in history if "batch/iteration" in item]
        assert sorted(logged) == list(range(len(read_csv(results / "trials" / trial / "batch.csv")))), state
        codes = [record["exit"].get("exit_code", 0) for record in parts if record["type"] == "exit"]
        assert codes == [1 if state == "diverged" else 0]
        updates = [record["summary"].get("update") or {} for record in parts if record["type"] == "summary"]
        assert any("summary/total_time_seconds" in update for update in updates)


def test_wandb_that_is_disabled_is_left_alone(doctor, results, monkeypatch):
    spec = yaml.safe_load((results / "spec.yaml").read_text())
    spec["wandb"]["mode"] = "disabled"
    (results / "spec.yaml").write_text(yaml.safe_dump(spec))
    shutil.rmtree(wandb_file(results, "0001").parent)
    assert doctor(results)[0] == 0


# --- what the command refuses, and what ends it


def test_a_driver_at_work_is_named_and_nothing_is_looked_at(doctor, results):
    driver = ResultsFolder(results)
    driver.lock()
    try:
        for options in ((), ("--repair",)):
            code, said = doctor(results, *options)
            assert code == 2
            assert "another process is running this sweep" in said
            assert "process " in said
    finally:
        driver.close()


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_a_sweep_is_bad_input(doctor, tmp_path, there):
    if there:
        (tmp_path / "none").mkdir()
    code, said = doctor(tmp_path / "none")
    assert code == 2
    assert "give the results folder of a sweep" in said


def test_a_lost_spec_is_taken_from_the_file_of_the_sweep_and_from_no_other(doctor, results, whole, tmp_path):
    there, own = (results / "spec.yaml"), whole.parent / "tiny.yaml"
    before = there.read_text()
    there.write_text("name: [")
    code, said = doctor(results)
    assert code == 2
    assert "--spec SPEC.yaml" in said
    other = ("--spec", str(own), "--set", "trainer.batch_size=4")
    assert doctor(results, "--repair", *other)[0] == 2
    assert "not the spec of this sweep" in doctor(results, *other)[1]
    assert doctor(results, "--spec", str(own))[0] == 1
    assert there.read_text() == "name: ["
    assert doctor(results, "--spec", str(own), "--repair")[0] == 0
    assert there.read_text() == before
    assert "is sound" in doctor(results, "--spec", str(own))[1]


def test_a_repair_that_is_killed_anywhere_is_finished_by_the_next(doctor, results):
    before, rows_before = told(results), rows(results)
    for trial in ("0000", "0001"):
        cut(results / "trials" / trial / "batch.csv", 300)
        (results / "trials" / trial / "summary.json").unlink()
        cut(wandb_file(results, trial), 500)  # its end, behind all rows
    (results / JOURNAL).unlink()
    moment = 1
    while killed_at(moment, "os.rename", lambda: main([str(results), "--repair"])):  # whatever it puts in place
        moment += 1
    assert moment > 5
    code, said = doctor(results, "--repair")
    assert code == 0, said
    assert doctor(results)[0] == 0
    assert told(results) == before
    assert rows(results) == rows_before


def test_single_trials_are_compared_without_a_study(doctor, tmp_path):
    spec = write_spec(tmp_path)
    assert single_trial([str(spec), "--alpha=0.3", "--results", str(tmp_path / "trials")]) == 0
    results = tmp_path / "trials"
    assert doctor(results) == (0, "all books agree: 1 trials, 1 W&B runs\n")
    before = rows(results)
    (results / "trials" / "0000" / "summary.json").unlink()
    cut(results / "trials" / "0000" / "batch.csv", 99)
    mends(doctor, results, "trial 0000: batch.csv", "trial 0000: summary.json is missing")
    assert rows(results) == before
    assert not (results / JOURNAL).exists()


# --- a sweep that goes on


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A sweep whose process was killed in the middle of its second trial."""
    spec = write_spec(tmp_path, run_cap=3, trainer={**TINY_TRAINER, "epochs": 6}, wandb={"mode": "disabled"})

    def before_epoch(trial: str, epochs: int) -> None:
        if (trial, epochs) == ("0001", 4):
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        try:
            sweep(spec, tmp_path / "results", engine=Inline(before_epoch=before_epoch))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return tmp_path / "results"


def test_a_resumed_sweep_mends_first_says_so_and_ends_complete(doctor, killed):
    folder = killed / "trials" / "0001"
    finished = {path.name: path.read_bytes() for path in (killed / "trials" / "0000").glob("*.csv")}
    with (folder / "batch.csv").open("ab") as file:
        file.write(b"0.25,0.1,\0\0\0\0")
    with (killed / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":7,"work')
    (killed / "trials.csv").unlink(missing_ok=True)
    (killed / "trials" / "0000" / "summary.json").write_text("{")
    assert "trial 0001: under way when it was interrupted; --resume goes on with it" in doctor(killed)[1]
    ran = sweep(killed.parent / "tiny.yaml", killed, "--resume")
    assert ran.code == 0, ran.out + ran.err
    for said in (
        "mended study.journal: its last line is half written",
        "mended trial 0001: batch.csv: its last row is half written",
        "mended trial 0000: summary.json is damaged",
        "what was damaged is kept in",
    ):
        assert said in ran.out
    assert {path.name: path.read_bytes() for path in (killed / "trials" / "0000").glob("*.csv")} == finished
    for trial in ("0000", "0001", "0002"):
        batches = read_csv(killed / "trials" / trial / "batch.csv")
        assert [row["batch/iteration"] for row in batches] == list(range(36))
    code, said = doctor(killed)
    assert (code, said) == (0, "all books agree: 3 trials, 0 W&B runs\n")
    assert list(killed.glob(".*.tmp")) == []
