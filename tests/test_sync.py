"""Uploading offline runs: runs of the real sink, the real `wandb sync`, a double of the server on loopback."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from offline import records_of, run_files
from wandb_double import WandbDouble

from model.metrics import BATCH_NAMES, EPOCH_COLUMNS, Level
from model.sinks import CsvSink, Event, Row, read_csv
from sweep import sync, wandb_client, wandb_sink
from sweep.blocks import WandbSettings
from sweep.wandb_client import reset_client
from sweep.wandb_files import run_files as parts_of
from sweep.wandb_rest import rest_of_trial, rows_beyond
from sweep.wandb_run import RunIdentity
from sweep.wandb_sink import WandbSink

KEY = "0123456789abcdef" * 2 + "01234567"  # the form of a key: 40 characters
REPOSITORY = Path(__file__).parents[1]
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def batch(iteration: int, **changes: float) -> Event:
    values: dict[str, float] = {name: (iteration + 1) / (column + 3) for column, name in enumerate(BATCH_NAMES)}
    return Event(Level.BATCH, {**values, "batch/iteration": iteration, "batch/epoch": iteration // 2, **changes})


def epoch(number: int) -> Event:
    values: dict[str, float] = {name: math.sqrt(number + column + 2) for column, name in enumerate(EPOCH_COLUMNS)}
    return Event(Level.EPOCH, {**values, "epoch": number})


SUMMARY = Event(Level.SUMMARY, {"summary/best_epoch": 1, "summary/best_loss": 1 / 3, "summary/total_time_seconds": 2.5})
TWO_EPOCHS = [batch(0), batch(1), epoch(0), batch(2), batch(3), epoch(1)]


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # rows go so often; by default every 15 s
    monkeypatch.chdir(tmp_path)
    # a dead server is dead at once
    for name in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER"):
        monkeypatch.setenv(f"WANDB__{name}_RETRY_MAX", "1")
        monkeypatch.setenv(f"WANDB__{name}_RETRY_WAIT_MIN_SECONDS", "0.1")
        monkeypatch.setenv(f"WANDB__{name}_RETRY_WAIT_MAX_SECONDS", "0.2")
    yield
    reset_client()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbDouble]:
    with WandbDouble() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield double


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results" / "s"


@pytest.fixture
def record(results: Path) -> Callable[..., None]:
    """Leaves an offline run, or one more part of it, as a trial does, and its CSV files in results/s/<run id>."""

    def record_run(
        run_id: str, events: list[Event], exit_code: int = 0, resumed: bool = False, sweep_id: str | None = None
    ) -> None:
        tags, config = ("equal-weights",), {"alpha": 0.3, "data": {"image_size": [48, 48]}, "trial": run_id}
        identity = RunIdentity(run_id, f"s-{run_id}", "s", "tactile", None, results, "trial", tags, sweep_id)
        sink = WandbSink(identity, config, WandbSettings(mode="offline"), resumed=resumed)
        csv = CsvSink(results / run_id)
        for event in events:
            sink.log(event)
            csv.log(event)
        sink.close(exit_code)
        csv.close(exit_code)
        for file in run_files(results):
            records_of(file)  # waits until it is written to its end

    return record_run


def rows(server: WandbDouble, run_id: str) -> list[Row]:
    """As the double has them, NaN as a number."""
    return [
        {name: NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in row.items()}
        for row in server.rows(run_id)
    ]


def check_rows(server: WandbDouble, run_id: str, results: Path) -> None:
    """Raise AssertionError unless the server's rows are those of the run's CSV files."""
    there = rows(server, run_id)
    batches = [row for row in there if "batch/iteration" in row]
    epochs = [row for row in there if "epoch" in row]
    assert len(batches) + len(epochs) == len(there)
    assert list(map(repr, batches)) == list(
        map(repr, map(dict, _like(read_csv(results / run_id / "batch.csv"), batches)))
    )
    assert list(map(repr, epochs)) == list(
        map(repr, map(dict, _like(read_csv(results / run_id / "epoch.csv"), epochs)))
    )


def _like(rows: list[dict[str, float]], others: list[Row]) -> Iterator[dict[str, float]]:
    """Rows with their names in the order of others, whole numbers as they have them; the numbers stay the same."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        yield {name: int(row[name]) if isinstance(value, int) else row[name] for name, value in other.items()}


def markers(results: Path) -> list[Path]:
    return sorted(results.glob("wandb/*/*.synced"))


def command(*folders: Path) -> subprocess.CompletedProcess[str]:
    """`python -m sweep.sync`, as a process of its own."""
    words = [sys.executable, "-m", "sweep.sync", *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False)


def test_all_runs_arrive_as_they_were_recorded(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("plain", [*TWO_EPOCHS, SUMMARY])
    record("of-agent", [*TWO_EPOCHS, SUMMARY], sweep_id="abc123")
    record("diverged", [batch(0), batch(1, **{"batch/loss_total": math.nan, "batch/lr": math.inf})], exit_code=1)
    assert sync.main([str(results)]) == 0

    for run_id in ("plain", "of-agent", "diverged"):
        check_rows(server, run_id, results)
        assert server.config(run_id) == {"alpha": 0.3, "data": {"image_size": [48, 48]}, "trial": run_id}
        sent = server.run[run_id]
        assert (sent["displayName"], sent["groupName"], sent["project"]) == (f"s-{run_id}", "s", "tactile")
        assert (sent["jobType"], sent["tags"]) == ("trial", ["equal-weights"])
    assert [server.sweep_of(run_id) for run_id in ("plain", "of-agent")] == [None, "abc123"]
    assert server.exit_code == {"plain": 0, "of-agent": 0, "diverged": 1}
    kept = {name: value for name, value in server.summary["plain"].items() if name.startswith("summary/")}
    assert kept == SUMMARY.values
    assert "3 uploaded" in capsys.readouterr().out


def test_parts_of_a_resumed_run_become_one_run_in_their_order_also_where_two_began_in_one_second(
    record: Callable[..., None], results: Path, server: WandbDouble
) -> None:
    record("trial", TWO_EPOCHS[:1], exit_code=1)
    record("trial", TWO_EPOCHS[:3], exit_code=1, resumed=True)
    record("trial", [*TWO_EPOCHS, SUMMARY], resumed=True)
    assert len(run_files(results)) == 3
    assert sync.main([str(results)]) == 0
    check_rows(server, "trial", results)
    assert server.exit_code == {"trial": 0}
    assert server.starts["trial"] == 3


def test_parts_are_ordered_by_number_where_their_second_is_the_same(record: Callable[..., None], results: Path) -> None:
    record("a-1", [batch(0)])
    (folder,) = results.glob("wandb/offline-run-*")
    for number in (2, 10):
        (results / "wandb" / f"{folder.name}-{number}").mkdir()
        file = next(folder.glob("*.wandb"))
        (results / "wandb" / f"{folder.name}-{number}" / file.name).write_bytes(file.read_bytes())
    from sweep.wandb_files import run_files as parts_of

    assert [part.suffix for part in parts_of(results / "wandb")] == [0, 2, 10]


def test_a_repetition_uploads_nothing_twice_and_takes_what_is_new(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("first", TWO_EPOCHS)
    assert sync.main([str(results)]) == 0
    record("second", TWO_EPOCHS)
    assert sync.main([str(results), str(results)]) == 0  # named twice
    assert sync.main([str(results)]) == 0
    for run_id in ("first", "second"):
        check_rows(server, run_id, results)
        assert server.starts[run_id] == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 uploaded before"


def test_a_later_part_goes_behind_one_that_was_uploaded_before(
    record: Callable[..., None], results: Path, server: WandbDouble
) -> None:
    record("trial", TWO_EPOCHS[:3], exit_code=1)
    assert sync.main([str(results)]) == 0
    record("trial", TWO_EPOCHS, resumed=True)
    assert sync.main([str(results)]) == 0
    check_rows(server, "trial", results)


@pytest.mark.parametrize("behaviour", ["error", "rate_limit", "gone"])
def test_a_server_that_is_out_of_order_is_one_error_and_nothing_is_marked(
    behaviour: Any,
    record: Callable[..., None],
    results: Path,
    server: WandbDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record("trial", TWO_EPOCHS)
    server.behaviour = behaviour if behaviour != "gone" else "answer"
    if behaviour == "gone":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # refused: the discard port has no server
    assert sync.main([str(results)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: wandb: http://127.0.0.1")
    assert "nothing was uploaded" in line
    assert markers(results) == []


def test_a_run_that_the_server_fails_is_named_not_marked_and_goes_with_the_next_sync(
    record: Callable[..., None],
    results: Path,
    server: WandbDouble,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record("one", TWO_EPOCHS[:3], exit_code=1)
    record("one", TWO_EPOCHS, resumed=True)
    record("two", TWO_EPOCHS)
    for kind in ("RunResumeStatus", "UpsertBucket", "file_stream"):
        server.behaviour_of = {kind: "error"}
        assert sync.main([str(results)]) == 1
        shown = capsys.readouterr()
        assert [line.partition(": failed: ")[0] for line in shown.err.splitlines()[:2]] == [
            f"{results}: run {run_id}" for run_id in ("one", "two")
        ]
        assert "500" in shown.err
        assert "2 failed" in shown.out
        assert markers(results) == []

    server.behaviour_of = {}
    assert sync.main([str(results)]) == 0
    for run_id in ("one", "two"):
        check_rows(server, run_id, results)


@pytest.mark.process
def test_a_key_that_is_refused_fails_each_run_and_is_not_shown(
    record: Callable[..., None], results: Path, server: WandbDouble
) -> None:
    record("trial", TWO_EPOCHS)
    server.behaviour = "refuse_key"
    done = command(results)
    assert done.returncode == 1
    assert "401" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert markers(results) == []


def test_files_that_did_not_arrive_are_a_failure_that_says_so(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("trial", TWO_EPOCHS)
    server.behaviour_of["upload"] = "error"
    assert sync.main([str(results)]) == 1
    assert "not all of its files" in capsys.readouterr().err
    check_rows(server, "trial", results)


def test_without_credentials_it_says_how_to_get_them(
    record: Callable[..., None], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("trial", TWO_EPOCHS)
    assert sync.main([str(results)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    missing = "no credentials for api.forge.coreweave.com (to go online: wandb login, or set WANDB_API_KEY)"
    assert line == f"error: wandb: {missing}"


def test_a_mode_of_the_environment_and_the_run_of_an_agent_do_not_matter(
    record: Callable[..., None], results: Path, server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("trial", TWO_EPOCHS)
    for name in ("MODE", "RUN_ID", "SWEEP_ID", "PROJECT", "RESUME", "NAME"):
        monkeypatch.setenv(f"WANDB_{name}", "offline" if name == "MODE" else "foreign")
    assert sync.main([str(results)]) == 0
    assert list(server.run) == ["trial"]
    assert "foreign" not in json.dumps(server.run)


def test_credentials_of_a_settings_file_beside_the_results_serve(
    record: Callable[..., None], results: Path, server: WandbDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("trial", TWO_EPOCHS)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\nbase_url = {server.url}\napi_key = {KEY}\n")
    assert sync.main([str(results)]) == 0
    check_rows(server, "trial", results)
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["settings"]  # no logs of wandb's


def test_a_run_that_goes_on_is_left_for_later(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("ended", TWO_EPOCHS)
    identity = RunIdentity("going-on", "n", "s", "tactile", None, results)
    sink = WandbSink(identity, {}, WandbSettings(mode="offline"))
    try:
        sink.log(epoch(0))
        (file,) = results.glob("wandb/*/run-going-on.wandb")
        hour_ago = file.stat().st_mtime - 3600
        os.utime(file, (hour_ago, hour_ago))  # an epoch may take an hour
        assert sync.main([str(results)]) == 0
        assert "run going-on: left out" in capsys.readouterr().out
        assert list(server.run) == ["ended"]
    finally:
        sink.close(0)
    records_of(file)
    assert sync.main([str(results)]) == 0
    assert len(server.rows("going-on")) == 1


def test_a_run_that_was_killed_is_uploaded_as_far_as_it_goes(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("killed", [batch(number) for number in range(40)])
    (file,) = run_files(results)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    assert sync.main([str(results)]) == 0
    assert "cut off a moment ago" in capsys.readouterr().out
    assert server.run == {}
    os.utime(file, (1_700_000_000, 1_700_000_000))
    for _ in range(2):
        assert sync.main([str(results)]) == 0
    assert "as far as its files can be read" in capsys.readouterr().out
    there = server.rows("killed")
    assert 10 < len(there) < 40
    assert [row["batch/iteration"] for row in there] == list(range(len(there)))
    assert server.exit_code == {"killed": 1}


@pytest.mark.parametrize(("content", "code"), [(b"", 0), (b"garbage" * 100, 1)])
def test_a_file_that_holds_no_run_does_not_keep_others_back(
    content: bytes,
    code: int,
    record: Callable[..., None],
    results: Path,
    server: WandbDouble,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record("sound", TWO_EPOCHS)
    broken = results / "wandb" / "offline-run-20260101_000000-broken" / "run-broken.wandb"
    broken.parent.mkdir()
    broken.write_bytes(content)
    os.utime(broken, (1_700_000_000, 1_700_000_000))
    assert sync.main([str(results)]) == code
    assert ("run broken: failed" in capsys.readouterr().err) == (code == 1)
    check_rows(server, "sound", results)
    assert [marker.name for marker in markers(results)] == ["run-sound.wandb.synced"]


def test_a_damaged_part_goes_as_far_as_it_can_be_read_once_and_the_next_part_behind_it(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("trial", [batch(number) for number in range(40)], exit_code=1)
    (file,) = run_files(results)
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + b"x" * 50 + whole[middle + 50 :])
    record("trial", [*[batch(number) for number in range(40)], epoch(0)], resumed=True)
    record("other", TWO_EPOCHS)
    for _ in range(2):
        assert sync.main([str(results)]) == 0
    there = [row.get("batch/iteration") for row in server.rows("trial")]
    assert there == [*range(len(there) - 1), None]  # no row twice, none behind the damage, and the next part's
    assert len(there) > 10
    check_rows(server, "other", results)
    assert "uploaded (2 parts), as far as its files can be read" in capsys.readouterr().out


def test_parts_go_in_the_order_in_which_they_began_whatever_second_their_folders_bear(
    record: Callable[..., None], results: Path, server: WandbDouble
) -> None:
    record("trial", [batch(0), batch(1)], exit_code=1)
    (first,) = (file.parent for file in run_files(results))
    first.rename(results / "wandb" / "offline-run-20260101_000000-later")
    record("trial", [batch(2), batch(3)], resumed=True)
    (second,) = (file.parent for file in run_files(results) if file.parent.name.endswith("-trial"))
    second.rename(results / "wandb" / "offline-run-20260101_000000-trial")
    (results / "wandb" / "offline-run-20260101_000000-later").rename(first)
    assert [part.file.parent for part in parts_of(results / "wandb")] == [
        first,
        second.parent / ("offline-run-20260101_000000-trial"),
    ]
    assert sync.main([str(results)]) == 0
    assert [row["batch/iteration"] for row in server.rows("trial")] == [0, 1, 2, 3]


def test_two_syncs_do_not_share_a_folder(
    record: Callable[..., None], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    record("trial", TWO_EPOCHS)
    with FileLock(results / ".sync.lock"):
        assert sync.main([str(results)]) == 2
    assert "another process uploads its runs" in capsys.readouterr().err
    assert server.run == {}


@pytest.mark.parametrize(("make", "said"), [(False, "is no folder"), (True, "has no folder wandb/")])
def test_a_folder_without_runs_says_what_to_give(
    make: bool, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    assert sync.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(folder) in line


def test_runs_that_were_online_need_no_upload(
    results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = WandbSink(RunIdentity("online", "n", "s", "tactile", None, results), {}, WandbSettings(mode="online"))
    sink.log(epoch(0))
    sink.close(0)
    assert sync.main([str(results)]) == 0
    assert capsys.readouterr().out == "no offline runs to upload\n"
    assert len(server.rows("online")) == 1


def test_of_an_online_run_that_outlived_its_server_the_rest_is_sent_once(
    results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = RunIdentity("online", "n", "s", "tactile", None, results, tags=("equal-weights",), sweep_id="sweep1")
    sink = WandbSink(identity, {"alpha": 0.3}, WandbSettings(mode="online"), finish_timeout_s=1.0)
    csv = CsvSink(results / "online")
    for place, event in enumerate([*TWO_EPOCHS, batch(4, **{"batch/loss_total": math.nan}), SUMMARY]):
        if place == 3:
            server.wait_until(lambda: len(server.rows("online")) == 3)
            server.close()
        sink.log(event)
        csv.log(event)
    sink.close(0)
    csv.close(0)
    reset_client()
    assert sync.main([str(results)]) == 1
    assert "is not ready" in capsys.readouterr().err
    server.reopen()
    assert len(server.rows("online")) == 3
    assert sync.main([str(results)]) == 0
    assert capsys.readouterr().out == f"{results}: run online: uploaded\n1 uploaded\n"
    check_rows(server, "online", results)
    assert server.state("online") == "finished"
    assert server.summary["online"]["summary/best_loss"] == 1 / 3
    assert (server.group("online"), server.sweep_of("online"), server.config("online")["alpha"]) == ("s", "sweep1", 0.3)
    assert len(list(results.glob("wandb/*run-*"))) == 1
    assert sync.main([str(results)]) == 0
    assert capsys.readouterr().out == "no offline runs to upload\n"
    check_rows(server, "online", results)


@pytest.fixture
def cut_off(results: Path, server: WandbDouble, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Leaves an online run whose wandb service died after the first epoch, and its trial; returns W&B's file."""
    for module in (wandb_sink, wandb_client):  # a dead service does not answer
        monkeypatch.setattr(module, "GRACE_S", 1.0)

    def leave(run_id: str, state: str, runs: dict[str, str], uid: str = "uid") -> Path:
        folder = results / "trials" / "0003"
        sink = WandbSink(
            RunIdentity(run_id, "n", "s", "tactile", None, results),
            {},
            WandbSettings(mode="online"),
            finish_timeout_s=1,
        )
        csv = CsvSink(folder)
        events = [*TWO_EPOCHS, SUMMARY]
        if state == "diverged":
            events[-2:-2] = [batch(4, **{"batch/loss_total": math.nan})]
        for place, event in enumerate(events):
            if place == 3:
                server.wait_until(lambda: len(server.rows(run_id)) == 3)
                (core,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "wandb-core"]
                core.kill()
                core.wait(timeout=240)
            sink.log(event)
            csv.log(event)
        sink.close(0)
        csv.close(0)
        reset_client()
        (results / "trials.csv").write_text(f"trial,state,reason\n0003,{state},loss_total is nan\n")
        (results / "spec.yaml").write_text("metric: {name: objective/value, goal: minimize}\n")
        (results / "runs.json").write_text(json.dumps(runs))
        (results / "provenance.json").write_text(json.dumps({"uid": uid}))
        (file,) = results.glob(f"wandb/run-*/run-{run_id}.wandb")
        os.utime(file, (1_700_000_000, 1_700_000_000))
        return file

    return leave


@pytest.mark.parametrize(
    ("run_id", "runs", "state", "code"),
    [
        ("agents", {"agents": "0003"}, "complete", 0),
        ("uid-0003", {}, "pruned", 0),
        ("agents", {"agents": "0003"}, "diverged", 1),
        ("uid-0003", {}, "failed", 1),
    ],
)
def test_of_an_online_run_whose_wandb_service_died_the_rest_comes_from_its_trial(
    run_id: str,
    runs: dict[str, str],
    state: str,
    code: int,
    cut_off: Callable[..., Path],
    results: Path,
    server: WandbDouble,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut_off(run_id, state, runs)
    assert sync.main([str(results)]) == 0
    assert f"run {run_id}: uploaded" in capsys.readouterr().out
    there = rows(server, run_id)
    if state == "diverged":
        last = there.pop()
        assert last.keys() == {"objective/value"}
        assert math.isnan(last["objective/value"])
        assert server.summary[run_id]["diverged"] == "loss_total is nan"
    assert [row["batch/iteration"] for row in there if "epoch" not in row] == [0, 1, 2, 3] + [4] * (state == "diverged")
    assert [row for row in there if "epoch" in row] == read_csv(results / "trials" / "0003" / "epoch.csv")
    assert server.summary[run_id]["summary/best_loss"] == 1 / 3
    assert server.exit_code == {run_id: code}
    before = len(server.rows(run_id))
    assert sync.main([str(results)]) == 0
    assert len(server.rows(run_id)) == before


def test_an_online_run_whose_trial_goes_on_is_left_for_later(
    cut_off: Callable[..., Path], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_off("agents", "running", {"agents": "0003"})
    assert sync.main([str(results)]) == 0
    assert "run agents: left out, its trial has not ended\n1 not ended" in capsys.readouterr().out
    assert len(server.rows("agents")) == 3
    assert markers(results) == []


def test_an_online_run_without_a_trial_whose_file_breaks_off_may_be_incomplete(
    cut_off: Callable[..., Path], results: Path, server: WandbDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cut_off("strange", "complete", {"agents": "0003"})
    assert sync.main([str(results)]) == 1
    assert "it may be incomplete" in capsys.readouterr().err
    assert markers(results) == []
    file.with_suffix(".wandb.synced").touch()  # as the message says
    assert sync.main([str(results)]) == 0


def test_the_rest_of_a_trial_has_the_updates_that_the_user_wants_in_wandb(results: Path) -> None:
    csv = CsvSink(results / "trials" / "0003")
    for event in TWO_EPOCHS:
        csv.log(event)
    csv.close(0)
    (results / "trials.csv").write_text("trial,state,reason\n0003,complete,\n")
    (results / "spec.yaml").write_text("wandb: {log_every: 3}\n")
    (results / "runs.json").write_text('{"agents": "0003"}')
    rest = rest_of_trial(results, "agents")
    assert rest is not None
    assert [row.get("batch/iteration") for row in rest.rows] == [0, None, 3, None]


def test_the_nan_of_a_divergence_goes_behind_new_rows_or_where_the_page_does_not_say_so() -> None:
    held = [epoch(0).values, {"objective/value": math.nan, "epoch": 0}, {"pictures/x": 1, "pictures/epoch": 0}]
    assert list(rows_beyond(held, {"epoch": 0, "diverged": "nan"})) == []
    (row,) = rows_beyond(held, {"epoch": 0})
    assert row.keys() == {"objective/value"}
    assert len(list(rows_beyond(held, {"diverged": "nan"}))) == 2


@pytest.mark.process
def test_no_process_is_left_behind(record: Callable[..., None], results: Path, server: WandbDouble) -> None:
    record("trial", TWO_EPOCHS)
    reset_client()
    before = {process.pid for process in psutil.process_iter()}
    assert command(results).returncode == 0
    left = [p for p in psutil.process_iter(["name"]) if p.pid not in before and p.info["name"] == "wandb-core"]
    assert [p for p in left if str(results) in " ".join(p.cmdline())] == []


def test_the_script_names_its_command_and_is_executable() -> None:
    script = REPOSITORY / "scripts" / "sync.sh"
    assert os.access(script, os.X_OK)
    assert 'exec python -m sweep.sync "$@"' in script.read_text()
