"""Finished W&B runs into a results folder: real trials and their files, and a double of the server that has them."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from double_sweeps import Sweep
from hypothesis import given
from hypothesis import strategies as st
from offline import records_of
from offline import run_files as offline_files
from sweeping import tiny_content, tiny_spec
from wandb_double import WandbDouble

from model.metrics import BATCH_STEP, Level
from model.sinks import Event, Row, read_csv
from sweep import import_wandb, rescore
from sweep.blocks import WandbSettings
from sweep.imported import LeftOutError, as_trial
from sweep.mapping import SpaceMapping
from sweep.outcome import Outcome
from sweep.report.__main__ import main as report_main
from sweep.results import ResultsFolder
from sweep.scored import past_trials
from sweep.spec import SweepSpec, load_spec
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob
from sweep.wandb_client import reset_client
from sweep.wandb_files import PastRun, recorded_runs
from sweep.wandb_run import RunIdentity
from sweep.wandb_runs import SweepName
from sweep.wandb_sink import WandbSink
from sweep.warm_start import load_warm_start

KEY = "0123456789abcdef" * 2 + "01234567"  # the form of a key: 40 characters
FILES = ("batch.csv", "epoch.csv", "config.yaml", "summary.json")
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as JSON has them
OLD = 1_700_000_000  # a time at which nothing is written any more


class ApiDouble(WandbDouble):
    """Also answers what wandb.Api asks of a sweep, its runs and their history.

    Attributes:
        states: run -> its state, where it is to be another than the double knows.
        page: rows that one answer holds at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, str] = {}
        self.page = 1_000

    def state(self, run_id: str) -> str:
        return self.states.get(run_id) or super().state(run_id)

    def on_GetSweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps.get(variables["name"])
        node = sweep and {**self._sweep_node(sweep), "__typename": "Sweep", "createdAt": "2026-01-01T00:00:00"}
        return {"project": {"sweep": node}}

    on_GetSweepLegacy = on_GetSweep

    def on_Runs(self, variables: dict[str, Any]) -> dict[str, Any]:
        (wanted,) = json.loads(variables["filters"])["$and"]
        mine = [run_id for run_id in self.run if self.sweep_of(run_id) == wanted["sweep"]]
        begin = int(variables.get("cursor") or 0)
        some = mine[begin : begin + variables["perPage"]]
        edges = [{"node": self._api_node(run_id), "cursor": str(begin + len(some))} for run_id in some]
        info = {"endCursor": str(begin + len(some)), "hasNextPage": begin + len(some) < len(mine)}
        runs = {"edges": edges, "pageInfo": info}
        return {"project": {"internalId": "1", "runCount": len(mine), "readOnly": False, "runs": runs}}

    def _api_node(self, run_id: str) -> dict[str, Any]:
        more = {
            "tags": [],
            "jobType": "trial",
            "createdAt": "2026-01-01T00:00:00",
            "projectId": "1",
            "historyKeys": None,
        }
        user = {"name": "me", "username": "me"}
        lines = len(self.history[run_id])
        return {**self.node(run_id), **more, "user": user, "historyLineCount": lines, "systemMetrics": "{}"}

    def on_RunHistoryKeys(self, variables: dict[str, Any]) -> dict[str, Any]:
        last = max((row["_step"] for row in self.history[variables["name"]].values()), default=-1)
        return {"project": {"run": {"historyKeys": {"lastStep": last, "sets": [], "keys": {}}}}}

    def on_RunParquetHistory(self, variables: dict[str, Any]) -> dict[str, Any]:
        rows = self.history[variables["runName"]]
        live = [{key: rows[line][key] for key in variables["liveKeys"]} for line in sorted(rows)]
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}}}}

    def on_HistoryPage(self, variables: dict[str, Any]) -> dict[str, Any]:
        rows = [row for _, row in sorted(self.history[variables["run"]].items())]
        some = [row for row in rows if variables["minStep"] <= row["_step"] < variables["maxStep"]]
        texts = [json.dumps(row) for row in some[: min(self.page, variables["pageSize"])]]
        return {"project": {"run": {"history": texts}}}


def _bare(patch: pytest.MonkeyPatch, home: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    home.mkdir(exist_ok=True)
    patch.setenv("HOME", str(home))
    patch.delenv("NETRC", raising=False)
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    patch.chdir(home)


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _bare(monkeypatch, tmp_path / "home")
    yield
    reset_client()


def train(
    results: Path,
    spec: SweepSpec,
    number: int,
    values: dict[str, Any],
    *,
    stop_after: int | None = None,
    interrupt: bool = False,
    preset: str | None = None,
) -> None:
    """One trial as Ray runs it: to its end, stopped by the scheduler, or asked to leave a checkpoint at once."""
    job = TrialJob(
        trial=f"{number:04d}",
        sweep=spec.name,
        sweep_uid="uid",
        results=results,
        config=spec.space.to_config(spec.trainer, values),
        values=values,
        preset=preset,
        objective=spec.objective,
        wandb=spec.wandb,
        project=spec.project,
    )
    run = TrialRun(job, should_stop=lambda: interrupt)
    run._look_clock._every_s = 0.0
    while True:
        report = run.run_epoch()
        if report.finished or report.diverged or report.interrupted:
            return
        if report.epochs == stop_after:
            run.close()
            return


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with offline runs: two complete trials, of which one was resumed, one stopped early, one diverged."""
    folder = tmp_path_factory.mktemp("sweep") / "tiny"
    spec = tiny_spec()
    with pytest.MonkeyPatch.context() as patch:
        _bare(patch, folder.parent / "home")
        train(folder, spec, 0, {"alpha": 0.5, "base_lr": 0.03}, preset="equal-weights")
        train(folder, spec, 1, {"alpha": 0.3, "base_lr": 0.05}, interrupt=True)
        train(folder, spec, 1, {"alpha": 0.3, "base_lr": 0.05})
        train(folder, spec, 2, {"alpha": 0.7, "base_lr": 0.02}, stop_after=1)
        train(folder, spec, 3, {"alpha": 0.6, "base_lr": 1e30})
        reset_client()
    for file in offline_files(folder):
        records_of(file)
    ResultsFolder(folder).write_spec(spec)
    rows = [["trial", "state", "reason", "preset"], ["0000", "complete", "", "equal-weights"]]
    rows += [["0001", "complete", "", ""], ["0002", "pruned", "", ""], ["0003", "diverged", "", ""]]
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def copied(sweep: Path, tmp_path: Path) -> Path:
    """The W&B files of the sweep alone, to be spoilt."""
    shutil.copytree(sweep / "wandb", tmp_path / "copied" / "wandb")
    for file in (tmp_path / "copied").rglob("*.wandb"):
        os.utime(file, (OLD, OLD))
    return tmp_path / "copied" / "wandb"


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content()), encoding="utf-8")
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiDouble]:
    with ApiDouble() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr("sweep.wandb_runs.RETRIES", 1)
        yield double


@pytest.fixture
def on_server(sweep: Path, server: ApiDouble) -> ApiDouble:
    """The sweep's runs as the server has them, sent online, in the sweep abc123."""
    content = tiny_spec().wandb_sweep_config()
    server.sweeps["abc123"] = Sweep("abc123", content, "tactile-sweep")
    for run in recorded_runs(sweep / "wandb"):
        rows, _ = run.read_rows()
        send(server, run.run_id, run.config, rows, summary=run.summary, exit_code=0 if run.state == "finished" else 1)
    return server


def send(
    server: ApiDouble,
    run_id: str,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    *,
    summary: Mapping[str, Any] | None = None,
    exit_code: int = 0,
) -> None:
    """An online run of the sweep abc123 with these rows."""
    log(run_id, config, rows, Path.cwd() / "sent", "online", summary=summary, exit_code=exit_code)


def log(
    run_id: str,
    config: dict[str, Any],
    rows: list[dict[str, Any]],
    folder: Path,
    mode: Any = "offline",
    *,
    summary: Mapping[str, Any] | None = None,
    exit_code: int = 0,
) -> None:
    """A run with any config and any rows."""
    identity = RunIdentity(run_id, run_id, "g", "tactile-sweep", None, folder, sweep_id="abc123")
    sink = WandbSink(identity, config, WandbSettings(mode=mode))
    assert sink.mode == mode
    for row in rows:
        if not any(name.startswith("pictures/") for name in row):
            sink._run.log({name: NOT_FINITE.get(x, x) for name, x in row.items() if name[0] != "_"})
    if summary:
        sink.log(Event(Level.SUMMARY, {name: x for name, x in summary.items() if name.startswith("summary/")}))
    sink.close(exit_code)
    for file in offline_files(folder):
        records_of(file)


def imports(tmp_path: Path, *arguments: str | Path) -> tuple[Path, int]:
    """Run the command; returns DIR and the exit code."""
    results = tmp_path / "imported"
    return results, import_wandb.main([*map(str, arguments), "--results", str(results)])


def check_trials(imported: Path, sweep: Path) -> None:
    """Raise AssertionError unless the files of all trials are those of the sweep, to the last byte."""
    names = sorted(folder.name for folder in (sweep / "trials").iterdir())
    assert sorted(folder.name for folder in (imported / "trials").iterdir()) == names
    for name in names:
        for file in FILES:
            there, here = (folder / "trials" / name / file for folder in (sweep, imported))
            assert here.read_bytes() == there.read_bytes(), here


def ledger(imported: Path) -> dict[str, dict[str, str]]:
    with (imported / "trials.csv").open(newline="", encoding="utf-8") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


# --- runs of ours


def test_a_results_folder_comes_back_from_its_offline_runs_to_the_last_byte(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, code = imports(tmp_path, sweep)
    assert code == 0
    check_trials(imported, sweep)
    assert load_spec(imported / "spec.yaml") == load_spec(sweep / "spec.yaml")
    rows = ledger(imported)
    assert [row["state"] for row in rows.values()] == ["complete", "complete", "pruned", "diverged"]
    assert (rows["0000"]["preset"], rows["0001"]["preset"]) == ("equal-weights", "")
    assert (rows["0001"]["alpha"], rows["0001"]["base_lr"]) == ("0.3", "0.05")
    assert rows["0002"]["reason"] == "stopped early after 1 epochs"
    assert "nan" in rows["0003"]["reason"]
    assert "4 of 4 runs: 2 complete, 1 pruned, 1 diverged" in capsys.readouterr().out


def test_a_copied_wandb_folder_needs_a_spec_or_tells_what_differs(
    copied: Path, sweep: Path, spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, code = imports(tmp_path, copied, "--spec", spec_file)
    assert code == 0
    check_trials(imported, sweep)
    assert load_spec(imported / "spec.yaml") == load_spec(spec_file)
    shutil.rmtree(imported)
    capsys.readouterr()

    imported, code = imports(tmp_path, copied)
    assert code == 0
    check_trials(imported, sweep)
    spec = load_spec(imported / "spec.yaml")
    assert list(spec.space.parameters) == ["alpha", "base_lr"]
    # for a warm start it is the same sweep
    assert SpaceMapping(tiny_spec(), spec).differing == SpaceMapping(tiny_spec(), tiny_spec()).differing == ()
    assert "what differs between the runs counts as searched: alpha, base_lr" in capsys.readouterr().out


def test_the_server_gives_the_same_trials_and_the_sweeps_own_space(
    on_server: ApiDouble, sweep: Path, tmp_path: Path
) -> None:
    imported, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 0
    check_trials(imported, sweep)
    spec = load_spec(imported / "spec.yaml")
    assert spec.parameters == tiny_spec().parameters
    assert (spec.objective, spec.name) == (tiny_spec().objective, "tiny")
    assert SpaceMapping(tiny_spec(), spec).differing == ()
    assert on_server.unknown == set()


@pytest.mark.process
def test_as_a_command_it_prints_what_it_did_and_nothing_else(on_server: ApiDouble, tmp_path: Path) -> None:
    reset_client()
    words = [sys.executable, "-m", "sweep.import_wandb", "me/tactile-sweep/abc123", "--results", "imported"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "imported: 4 of 4 runs: 2 complete, 1 pruned, 1 diverged",
        "use them in another sweep by search.warm_start: [imported]",
    ]


def test_long_histories_and_many_runs_come_page_by_page(
    on_server: ApiDouble, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.wandb_runs.PAGE_RUNS", 1)
    monkeypatch.setattr("sweep.wandb_runs.PAGE_ROWS", 7)
    imported, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 0
    check_trials(imported, sweep)
    assert on_server.operations["Runs"] == 4


@pytest.mark.parametrize("source", ["offline", "server"])
def test_an_imported_sweep_is_a_warm_start_like_the_sweep_itself(
    source: str, sweep: Path, on_server: ApiDouble, tmp_path: Path
) -> None:
    imported, code = imports(tmp_path, sweep if source == "offline" else "me/tactile-sweep/abc123")
    assert code == 0
    new = tiny_spec(search={"startup_trials": 2, "warm_start": [str(imported)]})
    of_imported, of_sweep = (load_warm_start([folder], new).prior for folder in (imported, sweep))
    assert len(of_sweep) == 3  # base_lr 1e30 lies outside the space
    for one, other in zip(of_imported, of_sweep, strict=True):
        assert (one.trial, one.values, one.outcome, one.steps) == (
            other.trial,
            other.values,
            other.outcome,
            other.steps,
        )


def test_rescore_and_report_take_an_imported_sweep(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, _ = imports(tmp_path, copied)
    capsys.readouterr()
    assert rescore.main([str(imported), "--set", "objective.ratio_weight=0"]) == 0
    assert "reported other values" not in capsys.readouterr().out
    assert report_main([str(imported)]) == 0
    assert "equal-weights" in (imported / "report.html").read_text()


def test_a_run_without_a_row_for_each_update_is_told_of(
    sweep: Path, spec_file: Path, tmp_path: Path, capsys: Any
) -> None:
    run = recorded_runs(sweep / "wandb")[0]
    rows, _ = run.read_rows()
    kept = [row for row in rows if row.get(BATCH_STEP, 0) % 2 == 0]
    log("thin", run.config, kept, tmp_path / "thin", summary=run.summary)
    imported, code = imports(tmp_path, tmp_path / "thin", "--spec", spec_file)
    assert code == 0
    assert "trial 0000: 9 of 17 updates have a row" in capsys.readouterr().out
    there = read_csv(sweep / "trials" / "0000" / "batch.csv")
    assert read_csv(imported / "trials" / "0000" / "batch.csv") == there[::2]
    assert (imported / "trials/0000/epoch.csv").read_bytes() == (sweep / "trials/0000/epoch.csv").read_bytes()


def test_rows_that_came_twice_are_taken_once(sweep: Path, spec_file: Path, tmp_path: Path) -> None:
    run = recorded_runs(sweep / "wandb")[0]
    rows, _ = run.read_rows()
    log("twice", run.config, [*rows[:9], *rows[4:]], tmp_path / "twice", summary=run.summary)
    imported, code = imports(tmp_path, tmp_path / "twice", "--spec", spec_file)
    assert code == 0
    for file in FILES:
        assert (imported / "trials/0000" / file).read_bytes() == (sweep / "trials/0000" / file).read_bytes()


def test_runs_of_the_confirmation_are_left_out_and_named(sweep: Path, tmp_path: Path, capsys: Any) -> None:
    run = recorded_runs(sweep / "wandb")[0]
    rows, _ = run.read_rows()
    log("search", run.config, rows, tmp_path / "runs")
    log("confirmation", {**run.config, "trial": "c0001", "seed": 7}, rows, tmp_path / "runs")
    log("other", {**run.config, "trial": "0001", "alpha": 0.2, "beta": 0.8}, rows, tmp_path / "runs")
    imported, code = imports(tmp_path, tmp_path / "runs")
    assert code == 0
    assert list(ledger(imported)) == ["0000", "0001"]
    assert list(load_spec(imported / "spec.yaml").space.parameters) == ["alpha"]  # not the seed
    assert "left out, since it belongs to a confirmation, not to the search: confirmation" in capsys.readouterr().out


def test_runs_of_two_sweeps_keep_apart(sweep: Path, copied: Path, spec_file: Path, tmp_path: Path, capsys: Any) -> None:
    run = recorded_runs(sweep / "wandb")[0]
    rows, _ = run.read_rows()
    log("other", {**run.config, "alpha": 0.2, "beta": 0.8}, rows, tmp_path / "other")
    imported, code = imports(tmp_path, copied, tmp_path / "other", copied.parent, "--spec", spec_file)
    assert code == 0
    assert list(ledger(imported)) == ["0000", "0001", "0002", "0003", "0004"]
    assert ledger(imported)["0004"]["alpha"] == "0.2"
    assert "it is in two of the sources" in capsys.readouterr().out
    assert json.loads((imported / "runs.json").read_text())["other"] == "0004"


# --- how runs ended


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    os.utime(file, (OLD, OLD))


def file_of(folder: Path, run_id: str) -> Path:
    (file,) = folder.glob(f"*/run-{run_id}.wandb")
    return file


def test_a_run_that_was_cut_off_counts_as_failed_as_far_as_it_can_be_read(
    copied: Path, sweep: Path, spec_file: Path, tmp_path: Path
) -> None:
    cut(file_of(copied, "uid-0000"), 0.5)
    imported, code = imports(tmp_path, copied, "--spec", spec_file)
    assert code == 0
    row = ledger(imported)["0000"]
    assert (row["state"], row["reason"]) == ("failed", "W&B: crashed after 1 of 3 epochs")
    there, here = (read_csv(folder / "trials" / "0000" / "batch.csv") for folder in (sweep, imported))
    assert here == there[: len(here)]
    assert len(here) > 5


def test_a_file_that_is_damaged_within_is_told_of(copied: Path, spec_file: Path, tmp_path: Path, capsys: Any) -> None:
    file = file_of(copied, "uid-0000")
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + b"x" * 40 + content[middle + 40 :])
    os.utime(file, (OLD, OLD))
    imported, code = imports(tmp_path, copied, "--spec", spec_file)
    assert code == 0
    out = capsys.readouterr().out
    assert "trial 0000: damaged, so that some of its rows are lost: " in out
    assert "run-uid-0000.wandb" in out
    assert ledger(imported)["0000"]["state"] == "failed"


@pytest.mark.parametrize("content", [b"", b"garbage" * 99])
def test_a_file_that_cannot_be_read_is_left_out_with_its_name(
    content: bytes, copied: Path, spec_file: Path, tmp_path: Path, capsys: Any
) -> None:
    file = file_of(copied, "uid-0000")
    file.write_bytes(content)
    os.utime(file, (OLD, OLD))
    imported, code = imports(tmp_path, copied, "--spec", spec_file)
    assert code == 0
    assert list(ledger(imported)) == ["0001", "0002", "0003"]
    assert "left out, since its file holds nothing that can be read: uid-0000" in capsys.readouterr().out


def test_a_run_that_goes_on_is_left_out(copied: Path, spec_file: Path, tmp_path: Path, capsys: Any) -> None:
    file = file_of(copied, "uid-0000")
    cut(file, 0.9)
    os.utime(file)  # written to just now
    imported, code = imports(tmp_path, copied, "--spec", spec_file)
    assert code == 0
    assert list(ledger(imported)) == ["0001", "0002", "0003"]
    assert "left out, since it is running: tiny-0000 (uid-0000)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("killed", "pruned"),
        ("finished", "pruned"),
        ("crashed", "failed"),
        ("failed", "failed"),
        ("preempted", "failed"),
    ],
)
def test_states_of_the_server_become_ours(
    state: str, expected: str, on_server: ApiDouble, tmp_path: Path, spec_file: Path
) -> None:
    on_server.states = {"uid-0000": state, "uid-0001": "running", "uid-0002": state, "uid-0003": state}
    imported, code = imports(tmp_path, "me/tactile-sweep/abc123", "--spec", spec_file)
    assert code == 0
    assert {name: row["state"] for name, row in ledger(imported).items()} == {
        "0000": "complete",  # all of its epochs are there
        "0002": expected,
        "0003": "diverged",
    }
    outcomes = {trial.name: trial.scored(tiny_spec().objective).outcome for trial in past_trials(imported)}
    assert outcomes == {"0000": Outcome.COMPLETE, "0002": Outcome(expected), "0003": Outcome.DIVERGED}


def a_run(epochs: int, rows: list[Row], **summary: float) -> PastRun:
    """A run of ours that W&B calls finished."""
    config = {**tiny_spec().trainer.model_dump(mode="json"), "trial": "0000", "sweep": "tiny", "epochs": epochs}
    return PastRun("r", "r", "finished", config, summary, lambda: (rows, None))


def test_a_run_of_ours_that_ended_without_its_summary_was_killed_and_not_stopped() -> None:
    killed = as_trial(a_run(8, foreign_rows(2)), tiny_spec())
    assert killed.outcome is Outcome.FAILED
    assert killed.reason is not None
    assert killed.reason.startswith("W&B: finished after 2 of 8 epochs, but without summary/total_time_seconds")
    stopped = as_trial(a_run(8, foreign_rows(2), **{"summary/total_time_seconds": 3.0}), tiny_spec())
    assert (stopped.outcome, stopped.reason) == (Outcome.PRUNED, "stopped early after 2 epochs")
    whole = as_trial(a_run(2, foreign_rows(2)), tiny_spec())
    assert whole.outcome is Outcome.COMPLETE


def test_a_run_that_was_stopped_before_its_first_epoch_was_stopped_and_did_not_fail() -> None:
    rows = [row for row in foreign_rows(1) if "epoch" not in row]
    assert rows
    stopped = as_trial(a_run(8, rows, **{"summary/total_time_seconds": 0.5}), tiny_spec())
    assert (stopped.outcome, stopped.reason) == (Outcome.PRUNED, "stopped early after 0 epochs")
    assert as_trial(a_run(8, rows), tiny_spec()).outcome is Outcome.FAILED


# --- runs of others


def foreign_rows(epochs: int, **changes: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for epoch in range(epochs):
        for update in range(3):
            step: Row = {"batch/iteration": epoch * 3 + update, "batch/epoch": epoch, "batch/loss_ratio": 0.5 + update}
            rows.append({**step, "acc": 0.1 * update})
        share = {"epoch/actual_static_contribution": 0.4, "eval/reference_loss": 2.0 - epoch / 4}
        rows.append({"epoch": epoch, **share, "val_loss": 3.0, "note": "text", **changes})
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def test_a_run_of_another_program_is_mapped_where_names_fit_and_the_rest_is_named(
    spec_file: Path, tmp_path: Path, capsys: Any
) -> None:
    config = {"alpha": 0.4, "base_lr": 0.1, "data": {"frame_stride": 2, "augment": "heavy"}, "lr": 3, "arch": "vit"}
    log("mine", config, foreign_rows(3), tmp_path / "runs")
    imported, code = imports(tmp_path, tmp_path / "runs", "--spec", spec_file)
    assert code == 0
    (trial,) = past_trials(imported)
    assert (trial.config.alpha, trial.config.base_lr, trial.config.data.frame_stride) == (0.4, 0.1, 2)
    assert trial.config.encoder == tiny_spec().trainer.encoder  # what it does not name is the spec's
    scored = trial.scored(tiny_spec().objective)
    assert scored.outcome is Outcome.COMPLETE
    assert scored.reports[-1]["objective/loss"] == 1.5
    assert trial.stored(["objective/value"]) == scored.value(["objective/value"])
    assert "note: not ours, left out: acc, arch, data.augment, lr, val_loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "changes", "why"),
    [
        ({"alpha": 0.4}, {}, "its config has no base_lr, which is searched"),
        ({"alpha": 0.4, "base_lr": -1}, {}, "the trainer refuses it"),
        ({"alpha": 0.4, "base_lr": 0.1}, {"eval/reference_loss": None}, "it has no eval/reference_loss"),
        (
            {"alpha": 0.4, "base_lr": 0.1},
            {"epoch/actual_static_contribution": None},
            "it has no epoch/actual_static_contribution, which objective.contribution_weight = 0.5 needs",
        ),
        ({"alpha": 0.4, "base_lr": 0.1}, {"epoch": 0.5}, "it has no row with metrics of ours"),
    ],
)
def test_a_run_that_cannot_be_a_trial_is_left_out_with_the_reason(
    config: dict[str, Any], changes: dict[str, Any], why: str, spec_file: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = foreign_rows(3, **changes)
    if "epoch" in changes:
        rows = [row for row in rows if "epoch" in row]
    log("bad", config, rows, tmp_path / "runs")
    log("good", {"alpha": 0.4, "base_lr": 0.1}, foreign_rows(3), tmp_path / "runs")
    imported, code = imports(tmp_path, tmp_path / "runs", "--spec", spec_file)
    assert code == 0
    assert list(ledger(imported)) == ["0000"]
    out = capsys.readouterr().out
    assert f"left out, since {why}" in out
    assert out.count(": bad") == 1


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400) | st.just("NaN")
NAMES = st.sampled_from(
    ["batch/iteration", "batch/epoch", "batch/loss_ratio", "epoch", "eval/reference_loss", "_step", "x"]
)
KEYS = st.sampled_from(["alpha", "base_lr", "data", "data.frame_stride", "epochs", "trial", "sweep", "beta", "x", ""])
ITEMS = st.dictionaries(NAMES, ODD | st.lists(ODD, max_size=2) | st.dictionaries(KEYS, ODD, max_size=2))


@given(
    config=st.dictionaries(KEYS, ODD | st.dictionaries(st.sampled_from(["frame_stride", "x"]), ODD)),
    rows=st.lists(ITEMS, max_size=6),
    state=st.sampled_from(["finished", "failed", "running", "killed", "new state"]),
    summary=st.dictionaries(st.sampled_from(["summary/best_epoch", "diverged", "y"]), ODD),
)
def test_whatever_a_run_holds_it_is_a_trial_or_left_out(
    config: dict[str, Any], rows: list[dict[str, Any]], state: str, summary: dict[str, Any]
) -> None:
    full = tiny_spec().trainer.model_dump(mode="json") | {"alpha": 0.3, "base_lr": 0.1}
    for given_config in (config, {**full, "sweep": "s", "trial": "0003", **config}):
        run = PastRun("id", "name", state, given_config, summary, lambda: (rows, None))
        try:
            trial = as_trial(run, tiny_spec())
        except LeftOutError:
            continue
        assert [row["epoch"] for row in trial.history.epoch] == sorted({row["epoch"] for row in trial.history.epoch})
        assert (trial.outcome is Outcome.COMPLETE) <= (len(trial.history.epoch) >= trial.config.epochs)


def test_a_sweep_of_another_program_gives_its_space_where_names_fit(
    server: ApiDouble, tmp_path: Path, capsys: Any
) -> None:
    config = {"method": "random", "name": "their sweep", "parameters": {"alpha": {"min": 0.1, "max": 0.9}}}
    config["parameters"]["dropout"] = {"values": [0, 0.1]}
    server.sweeps["abc123"] = Sweep("abc123", config, "tactile-sweep")
    for number in range(2):
        send(server, f"r{number}", {"alpha": 0.2 + number / 10, "dropout": 0.1, "epochs": 3}, foreign_rows(3))
    imported, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 0
    spec = load_spec(imported / "spec.yaml")
    assert (spec.name, spec.method, list(spec.space.parameters)) == ("their_sweep", "random", ["alpha"])
    assert [row["alpha"] for row in ledger(imported).values()] == ["0.2", "0.30000000000000004"]
    assert "parameters of the sweep that are no fields of the trainer, left out: dropout" in capsys.readouterr().out


# --- bad input


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_an_unknown_sweep_says_what_to_give(server: ApiDouble, tmp_path: Path, capsys: Any) -> None:
    imported, code = imports(tmp_path, "me/tactile-sweep/nothing")
    assert code == 2
    assert "W&B has no such sweep" in error_of(capsys)
    assert not imported.exists()


def test_a_sweep_without_runs_says_so(server: ApiDouble, tmp_path: Path, capsys: Any) -> None:
    server.sweeps["abc123"] = Sweep("abc123", tiny_spec().wandb_sweep_config(), "tactile-sweep")
    _, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 2
    assert "has no runs yet" in error_of(capsys)


def test_without_credentials_it_says_how_to_get_them(tmp_path: Path, capsys: Any) -> None:
    _, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 2
    assert "no credentials for api.forge.coreweave.com (to go online: wandb login" in error_of(capsys)


@pytest.mark.parametrize("behaviour", ["error", "refuse_key", "gone"])
def test_a_server_that_fails_is_one_error_without_the_key(
    behaviour: Any, server: ApiDouble, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if behaviour == "gone":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # refused: the discard port has no server
    else:
        server.behaviour = behaviour
    imported, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 2
    assert KEY not in error_of(capsys)
    assert not imported.exists()


def test_a_server_that_fails_amid_the_runs_leaves_no_half_folder(
    on_server: ApiDouble, tmp_path: Path, capsys: Any
) -> None:
    on_server.behaviour_of["HistoryPage"] = "error"
    imported, code = imports(tmp_path, "me/tactile-sweep/abc123")
    assert code == 2
    error_of(capsys)
    assert not imported.exists()
    assert [path.name for path in tmp_path.iterdir() if "importing" in path.name] == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "is no folder, and no sweep of the form ENTITY/PROJECT/SWEEP"),
        ("empty", "holds no W&B runs"),
        ("file", "is a file"),
    ],
)
def test_a_source_that_is_none_says_what_one_is(source: str, said: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    _, code = imports(tmp_path, tmp_path / source if source != "nowhere" else source)
    assert code == 2
    assert said in error_of(capsys)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_results_folder_that_holds_something_is_left_alone(
    kind: str, copied: Path, tmp_path: Path, capsys: Any
) -> None:
    results = tmp_path / "imported"
    if kind == "file":
        results.write_text("mine")
    else:
        results.mkdir()
        (results / "mine").write_text("mine")
    _, code = imports(tmp_path, copied)
    assert code == 2
    assert "give a" in error_of(capsys)
    assert (results if kind == "file" else results / "mine").read_text() == "mine"


def test_an_empty_results_folder_will_do(copied: Path, sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "imported").mkdir()
    imported, code = imports(tmp_path, copied)
    assert code == 0
    check_trials(imported, sweep)


def test_runs_of_others_without_a_spec_say_that_one_is_needed(tmp_path: Path, capsys: Any) -> None:
    log("mine", {"alpha": 0.4, "base_lr": 0.1}, foreign_rows(3), tmp_path / "runs")
    _, code = imports(tmp_path, tmp_path / "runs")
    assert code == 2
    assert "give --spec SPEC" in error_of(capsys)


def test_runs_of_which_none_can_be_a_trial_are_an_error_that_names_why(
    spec_file: Path, tmp_path: Path, capsys: Any
) -> None:
    log("mine", {"lr": 0.1}, [{"loss": 1.0}], tmp_path / "runs")
    imported, code = imports(tmp_path, tmp_path / "runs", "--spec", spec_file)
    assert code == 2
    assert "none of the runs can be imported: its config has no alpha, which is searched: mine" in error_of(capsys)
    assert not imported.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("me/p/abc", SweepName("me", "p", "abc")),
        ("https://wandb.ai/me/p/sweeps/abc?nw=1", SweepName("me", "p", "abc")),
        ("https://wandb.example.org/me/p/sweeps/abc/", SweepName("me", "p", "abc")),
        ("p/abc", None),
        ("a/b/c/d", None),
        ("abc", None),
        ("", None),
    ],
)
def test_names_of_sweeps_and_addresses_of_their_pages_are_read(text: str, expected: SweepName | None) -> None:
    assert SweepName.parse(text) == expected


def test_the_command_trains_a_new_sweep_from_an_import(copied: Path, tmp_path: Path, capsys: Any) -> None:
    from sweep import run

    imported, _ = imports(tmp_path, copied)
    content = tiny_content(search={"startup_trials": 2, "warm_start": [str(imported)]})
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run.main([str(tmp_path / "new.yaml"), "--dry-run", "--results", str(tmp_path / "new")]) == 0
    assert "3 of 4 trials are known to the sampler" in " ".join(capsys.readouterr().out.split())
