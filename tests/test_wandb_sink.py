"""The W&B sink against the real client: offline files are read back, servers are a double on loopback."""

from __future__ import annotations

import json
import logging
import math
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from offline import read_axes, read_history, read_records, read_summary, records_of, run_files
from PIL import Image
from wandb_double import WandbDouble

from model.errors import ConfigError
from model.metrics import BATCH_NAMES, EPOCH_COLUMNS, Level
from model.sinks import CsvSink, Event, read_csv
from sweep import wandb_sink
from sweep.blocks import WandbSettings
from sweep.wandb_client import reset_client
from sweep.wandb_files import last_rows
from sweep.wandb_mode import resolve_mode
from sweep.wandb_run import RunIdentity, own_gpus
from sweep.wandb_sink import WandbSink

KEY = "0123456789abcdef" * 2 + "01234567"  # the form of a key: 40 characters
REPOSITORY = Path(__file__).parents[1]


def batch(iteration: int, **changes: float) -> Event:
    """A full batch row, with values that differ in every column and are no short decimals."""
    values: dict[str, float] = {name: (iteration + 1) / (column + 3) for column, name in enumerate(BATCH_NAMES)}
    return Event(Level.BATCH, {**values, "batch/iteration": iteration, "batch/epoch": iteration // 2, **changes})


def epoch(number: int) -> Event:
    values: dict[str, float] = {name: math.sqrt(number + column + 2) for column, name in enumerate(EPOCH_COLUMNS)}
    return Event(Level.EPOCH, {**values, "epoch": number})


def summary() -> Event:
    values = {"summary/best_epoch": 1, "summary/best_loss": 1 / 3, "summary/total_time_seconds": 12.5}
    return Event(Level.SUMMARY, values)


TWO_EPOCHS = [batch(0), batch(1), epoch(0), batch(2), batch(3), epoch(1)]


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no settings, no memory of an earlier server."""
    for name in [n for n in os.environ if n.startswith("WANDB_") and n != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # rows go so often; by default every 15 s
    monkeypatch.setattr(WandbSink, "_offline_until_s", -math.inf)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _ended_service() -> Iterator[None]:
    yield
    reset_client()


@pytest.fixture
def fresh_client(bare_environment: None) -> Iterator[None]:
    """The client reads its environment once; before and after this test it starts anew."""
    reset_client()
    yield
    reset_client()


@pytest.fixture
def server(fresh_client: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbDouble]:
    with WandbDouble() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield double


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., WandbSink]:
    def start_sink(run_id: str = "trial_1", mode: Any = "auto", **changes: Any) -> WandbSink:
        identity = RunIdentity(run_id, f"name of {run_id}", "sweep", "tactile", None, tmp_path, tags=("mae",))
        chosen = {name: changes.pop(name) for name in WandbSettings.model_fields if name in changes}
        config = {"alpha": 0.3, "data": {"image_size": [48, 48]}}
        return WandbSink(identity, config, WandbSettings(mode=mode, **chosen), **changes)

    return start_sink


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sweep.wandb"]


# --- the rows


def test_offline_run_holds_the_same_rows_as_the_csv_files(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    sinks = [start(mode="offline"), CsvSink(tmp_path / "csv")]
    for sink in sinks:
        for event in [*TWO_EPOCHS, summary()]:
            sink.log(event)
        sink.close(0)

    rows = read_history(tmp_path)
    assert [row for row in rows if "epoch" not in row] == read_csv(tmp_path / "csv" / "batch.csv")
    assert [row for row in rows if "epoch" in row] == read_csv(tmp_path / "csv" / "epoch.csv")
    assert [set(row) for row in rows[:2]] == [set(BATCH_NAMES)] * 2
    kept = {name: value for name, value in read_summary(tmp_path)["summary"].items() if name.startswith("summary/")}
    assert kept == json.loads((tmp_path / "csv" / "summary.json").read_text())


def test_values_that_are_absent_stay_absent(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    static_only = {name: value for name, value in batch(0).values.items() if name != "batch/loss_dynamic"}
    sink = start(mode="offline")
    sink.log(Event(Level.BATCH, static_only))
    sink.log(batch(1))
    sink.close(0)
    assert read_history(tmp_path) == [static_only, batch(1).values]


def test_nan_and_infinite_values_are_kept_and_break_nothing(
    start: Callable[..., WandbSink], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"batch/loss_total": math.nan, "batch/loss_static": math.inf, "batch/loss_pred": -math.inf}
    sink = start(mode="offline")
    sink.log(batch(0, **odd))
    sink.log(batch(1))
    sink.close(1)
    first, second = read_history(tmp_path)
    assert {name: repr(first[name]) for name in odd} == {name: repr(value) for name, value in odd.items()}
    assert second == batch(1).values
    assert warnings_of(caplog) == []


def test_a_run_that_diverged_ends_on_nan_and_says_why(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    sink = start(mode="offline")
    sink.log(epoch(0))
    sink.note_divergence(["objective/value"], "loss_pred = nan at update 7")
    sink.close(1)
    assert [math.isnan(row["objective/value"]) for row in read_history(tmp_path)] == [False, True]
    assert read_summary(tmp_path)["summary"]["diverged"] == "loss_pred = nan at update 7"


def test_an_epochs_row_is_handed_over_at_once(server: WandbDouble, start: Callable[..., WandbSink]) -> None:
    """W&B's own early termination, and who watches the page, see each epoch when it ends."""
    sink = start()
    for event in TWO_EPOCHS[:3]:
        sink.log(event)
    server.wait_until(lambda: len(server.rows("trial_1")) == 3)
    sink.close(0)


def test_the_run_record_names_run_group_config_step_axes_and_exit_code(
    start: Callable[..., WandbSink], tmp_path: Path
) -> None:
    sink = start(mode="offline")
    sink.log(batch(0))
    sink.log(summary())
    sink.close(1)

    read = read_summary(tmp_path)
    assert (read["run_id"], read["name"], read["project"], read["tags"]) == (
        *("trial_1", "name of trial_1", "tactile"),
        ["mae"],
    )
    assert read["config"] == {"alpha": 0.3, "data": {"image_size": [48, 48]}}
    assert (read["exit_code"], read["state"]) == (1, "failed")
    assert read["summary"]["summary/best_loss"] == 1 / 3  # also after a failure
    run = next(record["run"] for record in read_records(tmp_path) if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("sweep", "trial")
    axes = {"batch/*": "batch/iteration", "pictures/*": "pictures/epoch"}
    axes |= dict.fromkeys(("epoch/*", "eval/*", "objective/*", "probe/*"), "epoch")
    assert read_axes(tmp_path) == axes


def test_a_picture_is_kept_with_its_epoch_in_a_row_of_its_own(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    sink = start(mode="offline")
    for event in TWO_EPOCHS:
        sink.log(event)
    sink.picture("reconstructions", image)
    sink.log(epoch(2))
    sink.close(0)

    *before, row, after = read_history(tmp_path, pictures=True)
    assert [*before, after] == [event.values for event in [*TWO_EPOCHS, epoch(2)]]
    assert row.pop("pictures/epoch") == 1
    media = {name.removeprefix("pictures/reconstructions."): value for name, value in row.items()}
    assert (media["_type"], media["height"], media["width"]) == ("image-file", 4, 6)
    [file] = tmp_path.glob(f"wandb/offline-run-*/files/{media['path']}")
    with Image.open(file) as kept:
        assert np.array_equal(np.asarray(kept), image)


def test_a_picture_that_cannot_be_taken_is_warned_of_once_and_the_rows_go_on(
    start: Callable[..., WandbSink], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = start(mode="offline")
    for _ in range(2):
        sink.picture("reconstructions", np.zeros((2, 2, 2, 2), np.uint8))
    sink.log(batch(0))
    sink.close(0)
    [warning] = warnings_of(caplog)
    assert "misses pictures" in warning
    assert read_history(tmp_path) == [batch(0).values]


def test_a_disabled_run_takes_pictures_without_a_word(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    sink = start(mode="disabled")
    sink.picture("reconstructions", np.zeros((2, 2, 3), np.uint8))
    sink.close(0)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_resumed_parts_hold_every_row_once(start: Callable[..., WandbSink], tmp_path: Path, cut: int) -> None:
    first = start(mode="offline")
    for event in TWO_EPOCHS[:cut]:
        first.log(event)
    first.close(1)

    second = start(mode="offline", resumed=True)
    for event in TWO_EPOCHS:  # the checkpoint is older than the last row: everything is computed again
        second.log(event)
    second.close(0)
    assert read_history(tmp_path) == [event.values for event in TWO_EPOCHS]


def test_a_part_that_began_in_the_same_second_as_another_is_known_too(
    start: Callable[..., WandbSink], tmp_path: Path
) -> None:
    sink = start(mode="offline")
    for event in TWO_EPOCHS:
        sink.log(event)
    sink.close(1)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    folder.rename(f"{folder}-1")  # wandb's name for the second of two
    assert last_rows(tmp_path, "trial_1") == (3, 1)
    assert last_rows(tmp_path, "trial") == (-1, -1)  # another run, whose id this one's begins with


def test_a_part_whose_end_was_never_written_counts_as_far_as_it_goes(
    start: Callable[..., WandbSink], tmp_path: Path
) -> None:
    sink = start(mode="offline")
    for event in TWO_EPOCHS:
        sink.log(event)
    sink.close(1)
    (file,) = run_files(tmp_path)
    records_of(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 3 // 4])
    os.utime(file, (1_700_000_000, 1_700_000_000))  # nothing writes to it any more
    iteration, epoch = last_rows(tmp_path, "trial_1")
    assert 0 <= iteration <= 3
    assert epoch <= 1


def test_a_run_that_was_not_closed_does_not_take_the_next_runs_rows(
    start: Callable[..., WandbSink], tmp_path: Path
) -> None:
    forgotten, following = start("trial_1", mode="offline"), start("trial_2", mode="offline")
    following.log(batch(0))
    following.close(0)
    forgotten.close(0)
    assert read_history(tmp_path) == [batch(0).values]
    assert {file.name for file in run_files(tmp_path)} == {"run-trial_1.wandb", "run-trial_2.wandb"}


# --- which run it is


def test_inherited_run_and_sweep_variables_do_not_merge_trials(
    start: Callable[..., WandbSink], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_client: None
) -> None:
    for name in ("RUN_ID", "RUN_GROUP", "NAME", "SWEEP_ID", "SWEEP_PARAM_PATH", "PROJECT", "JOB_TYPE", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", "inherited")
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.setenv("WANDB_LAUNCH", "true")
    for run_id in ("trial_1", "trial_2"):
        sink = start(run_id, mode="offline")
        sink.log(batch(0))
        sink.close(0)

    runs = [record["run"] for record in read_records(tmp_path) if record["type"] == "run"]
    assert {run["run_id"] for run in runs} == {"trial_1", "trial_2"}
    assert "inherited" not in json.dumps(runs)
    assert os.environ["WANDB_RUN_ID"] == "inherited"  # hidden from wandb only


def test_a_trial_of_a_wandb_agent_joins_its_sweep(tmp_path: Path) -> None:
    identity = RunIdentity("trial_1", "name", "sweep", "tactile", None, tmp_path, sweep_id="abc123")
    WandbSink(identity, {}, WandbSettings(mode="offline")).close(0)
    run = next(record["run"] for record in read_records(tmp_path) if record["type"] == "run")
    assert (run["run_id"], run["sweep_id"]) == ("trial_1", "abc123")


@pytest.mark.parametrize("run_id", ["", "a/b", " a", "a:b", "x" * 129])
def test_a_run_id_that_wandb_does_not_take_says_which_it_takes(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run id .*must have 1-128 characters"):
        RunIdentity(run_id, "name", "group", "project", None, tmp_path)


def test_a_time_limit_that_is_not_positive_says_so(start: Callable[..., WandbSink]) -> None:
    with pytest.raises(ConfigError, match="finish_timeout_s = 0"):
        start(finish_timeout_s=0)


# --- online, offline or disabled


def test_auto_without_credentials_is_offline_and_says_how_to_go_online() -> None:
    mode, reason = resolve_mode("auto")
    assert mode == "offline"
    assert "wandb login" in reason


def test_auto_with_a_key_is_online_and_does_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert resolve_mode("auto") == ("online", "api.forge.coreweave.com, with the credentials of WANDB_API_KEY")


@pytest.mark.parametrize(
    ("machine", "base_url", "expected"),
    [
        ("api.wandb.ai", None, "online"),
        ("api.forge.coreweave.com", None, "online"),
        ("api.forge.coreweave.com", "https://api.wandb.ai", "online"),
        ("wandb.example.org", "https://wandb.example.org/", "online"),
        ("wandb.example.org:8080", "http://wandb.example.org:8080", "online"),
        ("api.wandb.ai", "https://wandb.example.org", "offline"),  # a key for another server
    ],
)
def test_auto_follows_the_netrc_entry_of_the_server(
    machine: str, base_url: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / ".netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    assert resolve_mode("auto")[0] == expected


def test_auto_finds_what_wandb_login_has_written(tmp_path: Path) -> None:
    from wandb.sdk.lib import urls
    from wandb.sdk.lib.wbauth.wbnetrc import write_netrc_auth

    write_netrc_auth(host=urls.DEFAULT_BASE_URL, api_key=KEY)
    assert (tmp_path / "home" / ".netrc").exists()
    assert resolve_mode("auto")[0] == "online"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[default]\napi_key = {KEY}\n", "online"),
        (f"[default]\napi_key = {KEY}\nmode = offline\n", "offline"),
        ("[default]\nmode = disabled\n", "disabled"),
        ("[other]\nmode = disabled\n", "offline"),
    ],
)
def test_auto_follows_wandbs_own_settings_file(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "home" / ".config" / "wandb" / "settings"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert resolve_mode("auto")[0] == expected


@pytest.mark.parametrize(
    ("variable", "mode", "expected"),
    [
        ("offline", "auto", "offline"),
        ("dryrun", "auto", "offline"),
        ("disabled", "auto", "disabled"),
        ("run", "auto", "online"),
        ("offline", "online", "online"),  # the spec file decides where it says something
        ("nonsense", "auto", "online"),
    ],
)
def test_auto_respects_wandb_mode(variable: str, mode: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert resolve_mode(mode)[0] == expected


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'onlin'; must be one of: auto, online, offline, disabled"):
        resolve_mode("onlin")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    netrc=st.binary(max_size=60), own=st.binary(max_size=60), url=st.text(st.characters(codec="ascii", min_codepoint=1))
)
def test_resolving_survives_any_content_of_the_users_files(
    netrc: bytes, own: bytes, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_bytes(b"machine " + netrc)
    (tmp_path / "settings").write_bytes(b"[default]\n" + own)
    with monkeypatch.context() as patch:
        patch.setenv("NETRC", str(tmp_path / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
        patch.setenv("WANDB_BASE_URL", url)
        assert resolve_mode("auto")[0] in ("online", "offline", "disabled")


def test_online_without_credentials_is_offline_and_warns(
    start: Callable[..., WandbSink], caplog: pytest.LogCaptureFixture
) -> None:
    sink = start(mode="online")
    sink.close(0)
    assert sink.mode == "offline"
    assert "no credentials" in warnings_of(caplog)[0]


def test_disabled_writes_nothing(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    sink = start(mode="disabled")
    for event in [batch(0), epoch(0), summary()]:
        sink.log(event)
    sink.close(0)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.process
def test_a_terminal_sees_no_question_and_no_output(tmp_path: Path) -> None:
    trial = (
        "from pathlib import Path\n"
        "import sys\n"
        "from sweep.blocks import WandbSettings\n"
        "from sweep.wandb_mode import resolve_mode\n"
        "from sweep.wandb_run import RunIdentity\n"
        "from sweep.wandb_sink import WandbSink\n"
        "resolve_mode('auto')\n"
        "assert 'wandb' not in sys.modules, 'resolving imports wandb'\n"
        "for mode in ('auto', 'online'):\n"
        "    WandbSink(RunIdentity(mode, 'n', 'g', 'p', None, Path()), {}, WandbSettings(mode=mode)).close(0)\n"
    )
    terminal, inside = pty.openpty()
    try:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        environment.pop("WANDB_SERVICE", None)
        command = [sys.executable, "-c", trial]
        process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=environment, cwd=tmp_path)
        assert process.wait(timeout=240) == 0
        os.write(inside, b"|")  # marks the end: reading an empty terminal would wait
        shown = os.read(terminal, 10_000).decode()
    finally:
        os.close(terminal)
        os.close(inside)
    # the warning that online is not possible is ours, and goes through logging
    assert [line for line in shown.rstrip("|").splitlines() if "no credentials" not in line] == []
    assert len(run_files(tmp_path)) == 2


# --- servers


def test_an_online_run_sends_every_row_and_its_exit_code(
    start: Callable[..., WandbSink], server: WandbDouble, tmp_path: Path
) -> None:
    sink = start()
    for event in [*TWO_EPOCHS, summary()]:
        sink.log(event)
    sink.close(3)
    assert sink.mode == "online"
    assert server.rows("trial_1") == [event.values for event in TWO_EPOCHS]
    assert server.exit_code == {"trial_1": 3}
    assert server.run["trial_1"]["groupName"] == "sweep"


def test_a_resumed_online_run_goes_on_behind_its_earlier_rows(
    start: Callable[..., WandbSink], server: WandbDouble
) -> None:
    for resumed, exit_code in ((False, 1), (True, 0)):
        sink = start(resumed=resumed)
        for event in TWO_EPOCHS[: None if resumed else 3]:
            sink.log(event)
        sink.close(exit_code)
    assert server.rows("trial_1") == [event.values for event in TWO_EPOCHS]
    assert server.exit_code == {"trial_1": 0}


def test_a_burst_above_wandbs_guideline_arrives_each_row_once_also_behind_answers_that_say_too_many(
    server: WandbDouble,
    start: Callable[..., WandbSink],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MIN", "MAX"):
        monkeypatch.setenv(f"WANDB__FILE_STREAM_RETRY_WAIT_{name}_SECONDS", "0.1")
    events = [event for n in range(50) for event in (*(batch(i) for i in range(100 * n, 100 * n + 100)), epoch(n))]
    server.refuse("file_stream", 4, "rate_limit")
    sink = start(finish_timeout_s=120.0)
    for event in [*events, summary()]:
        sink.log(event)
    sink.close(0)
    assert server.refused == {"file_stream": 4}
    assert server.rows("trial_1") == [event.values for event in events]
    assert server.sent_twice == []
    assert server.summary["trial_1"]["summary/best_loss"] == 1 / 3
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_of_every_kth_update_there_is_a_row_and_of_every_epoch_also_behind_a_resume(
    mode: str, server: WandbDouble, start: Callable[..., WandbSink], tmp_path: Path
) -> None:
    events = [batch(0), batch(1), batch(2), batch(3), batch(4), epoch(0), batch(5), batch(6), epoch(1), summary()]
    csv = CsvSink(tmp_path / "csv")
    for logged in (events[:4], events):  # the second part is given all that the trial has, and then what is new
        sink = start(mode=mode, log_every=3, resumed=logged is events)
        for event in logged:
            sink.log(event)
        sink.close(0)
    for event in events:
        csv.log(event)
    csv.close(0)
    rows = server.rows("trial_1") if mode == "online" else read_history(tmp_path)
    assert rows == [event.values for event in (batch(0), batch(3), epoch(0), batch(6), epoch(1))]
    assert len(read_csv(tmp_path / "csv" / "batch.csv")) == 7


def test_a_trial_on_a_gpu_sends_metrics_of_its_own_gpus_and_processes(
    server: WandbDouble, start: Callable[..., WandbSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id, changes in (("gpu", {"on_gpu": True}), ("not", {"on_gpu": True, "system_metrics": False}), ("cpu", {})):
        sink = start(run_id, **changes)
        sink.log(batch(0))
        if run_id == "gpu":
            server.wait_until(lambda: bool(server.system_metrics["gpu"]))
        sink.close(0)
    (metrics,) = server.system_metrics["gpu"][:1]
    assert metrics["system.proc.memory.rssMB"] > 0
    assert server.system_metrics.keys() == {"gpu"}


@pytest.mark.parametrize(
    ("visible", "expected"), [("2", (2,)), ("0,3", (0, 3)), (None, None), ("", None), ("GPU-5d1c,GPU-77aa", None)]
)
def test_own_gpus_are_those_that_the_process_sees(
    visible: str | None, expected: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert own_gpus() == expected


def test_an_offline_run_keeps_every_row(start: Callable[..., WandbSink], tmp_path: Path) -> None:
    sink = start(mode="offline")
    for number in range(300):
        sink.log(batch(number))
    sink.close(0)
    assert [row["batch/iteration"] for row in read_history(tmp_path)] == list(range(300))


def test_a_run_that_is_to_be_stopped_is_known_at_once_where_one_asks(
    server: WandbDouble, start: Callable[..., WandbSink]
) -> None:
    sink = start()
    sink.log(batch(0))
    assert not sink.learn_whether_to_stop()
    server.stop("trial_1")
    assert sink.learn_whether_to_stop()
    assert sink.asked_to_stop
    sink.close(0)


@pytest.mark.parametrize("behaviour", ["error", "hang", "gone"])
def test_a_server_that_does_not_say_whether_to_stop_means_no(
    server: WandbDouble, start: Callable[..., WandbSink], behaviour: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "ASK_LIMIT_S", 0.5)  # it never answers: the limit is all that is waited for
    sink = start(finish_timeout_s=1.0)
    server.stop("trial_1")
    if behaviour == "gone":
        server.close()
    else:
        server.behaviour = behaviour
    assert not sink.learn_whether_to_stop()
    server.behaviour = "answer"
    sink.close(0)


def test_a_preempted_run_is_marked_so(server: WandbDouble, start: Callable[..., WandbSink]) -> None:
    sink = start()
    sink.mark_preempting()
    sink.close(1)
    assert server.state("trial_1") == "preempted"


def test_a_resumed_online_run_sends_what_the_server_did_not_get(
    server: WandbDouble, start: Callable[..., WandbSink], tmp_path: Path
) -> None:
    events = [batch(number) for number in range(12)]
    first = start(finish_timeout_s=1.0)
    for event in events[:5]:
        first.log(event)
    first.log(epoch(0))
    server.wait_until(lambda: len(server.rows("trial_1")) == 6)
    server.close()
    for event in events[5:9]:
        first.log(event)
    first.close(1)
    (folder,) = tmp_path.glob("wandb/run-*-trial_1")
    assert (folder / "unsent").exists()
    reset_client()  # the service of the first part dies with its process
    server.reopen()
    second = start(resumed=True)
    for event in [*events[:5], epoch(0), *events[5:]]:  # as a resumed trial does: all that it has, then what is new
        second.log(event)
    second.close(0)
    assert [row.get("batch/iteration") for row in server.rows("trial_1")] == [0, 1, 2, 3, 4, None, *range(5, 12)]


@pytest.mark.parametrize("behaviour", ["refuse_key", "error", "hang", "gone"])
def test_a_failing_server_costs_one_timeout_and_a_warning_and_no_row(
    behaviour: Any,
    start: Callable[..., WandbSink],
    server: WandbDouble,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.behaviour = behaviour
    if behaviour == "gone":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # refused: the discard port has no server
    first = start("trial_1", init_timeout_s=0.5)  # comes back although the server never answers
    second = start("trial_2", init_timeout_s=0.5)
    for sink in (first, second):
        for event in TWO_EPOCHS:
            sink.log(event)
        sink.close(0)

    assert (first.mode, second.mode) == ("offline", "offline")
    assert read_history(tmp_path) == 2 * [event.values for event in TWO_EPOCHS]
    (warning,) = warnings_of(caplog)  # the second did not try: it would have its own
    assert f"python -m sweep.sync {tmp_path}" in warning
    assert KEY not in warning


def test_a_server_that_fails_later_does_not_hold_up_the_end_of_a_trial(
    start: Callable[..., WandbSink], server: WandbDouble, caplog: pytest.LogCaptureFixture
) -> None:
    sink = start(finish_timeout_s=0.5)
    server.behaviour = "hang"
    for event in TWO_EPOCHS:
        sink.log(event)
    sink.close(0)  # comes back although the server never answers
    (warning,) = warnings_of(caplog)
    folder = Path(warning.rpartition("python -m sweep.sync ")[2])
    assert len(list(folder.glob("wandb/run-*/run-trial_1.wandb"))) == 1


def test_online_is_tried_again_after_a_while(
    start: Callable[..., WandbSink], server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "RETRY_ONLINE_AFTER_S", 0.0)
    server.behaviour = "refuse_key"
    start("trial_1").close(0)
    server.behaviour = "answer"
    sink = start("trial_2")
    sink.close(0)
    assert sink.mode == "online"


def test_a_dead_service_process_costs_rows_of_one_run_only(
    start: Callable[..., WandbSink], tmp_path: Path, caplog: pytest.LogCaptureFixture, fresh_client: None
) -> None:
    sink = start("trial_1", mode="offline")
    (service,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
    service.kill()
    service.wait(timeout=240)
    for event in TWO_EPOCHS:
        sink.log(event)
    sink.close(0)
    following = start("trial_2", mode="offline")
    following.log(batch(0))
    following.close(0)
    assert "misses rows" in warnings_of(caplog)[0]
    assert len(warnings_of(caplog)) == 2  # one for all its rows, one for its end
    (file,) = tmp_path.glob("wandb/offline-run-*/run-trial_2.wandb")
    assert [r["history"]["item"]["batch/iteration"] for r in records_of(file) if r["type"] == "history"] == [0]


def test_a_folder_that_cannot_be_written_does_not_stop_the_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    sink = WandbSink(RunIdentity("a", "n", "g", "p", None, tmp_path / "file"), {}, WandbSettings(mode="offline"))
    sink.log(batch(0))
    sink.close(0)
    assert "records nothing" in warnings_of(caplog)[0]


def test_the_key_is_in_no_file_and_no_log(
    start: Callable[..., WandbSink], server: WandbDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    start("trial_1").close(0)
    server.behaviour = "refuse_key"
    start("trial_2").close(0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert files
    assert KEY not in caplog.text


@pytest.mark.process
def test_two_processes_log_at_once(tmp_path: Path) -> None:
    trial = (
        "from pathlib import Path\n"
        "import sys\n"
        "from model.metrics import Level\n"
        "from model.sinks import Event\n"
        "from sweep.blocks import WandbSettings\n"
        "from sweep.wandb_run import RunIdentity\n"
        "from sweep.wandb_sink import WandbSink\n"
        "for part in range(3):\n"
        "    sink = WandbSink(RunIdentity(f'{sys.argv[1]}_{part}', 'n', 'g', 'p', None, Path()),"
        " {}, WandbSettings(mode='offline'))\n"
        "    for i in range(10):\n"
        "        sink.log(Event(Level.BATCH, {'batch/iteration': i}))\n"
        "    sink.close(0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("WANDB_SERVICE", None)
    processes = [
        subprocess.Popen([sys.executable, "-c", trial, name], env=environment, cwd=tmp_path) for name in ("a", "b")
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    rows = [len([r for r in records_of(file) if r["type"] == "history"]) for file in run_files(tmp_path)]
    assert rows == [10] * 6
