"""Other people's tools on what a sweep leaves, as the README starts them: optuna-dashboard, wandb leet, TensorBoard."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from past_sweeps import Past, past_sweep
from sweeping import tiny_spec

from model import metrics
from model.metrics import Level
from model.sinks import Event
from sweep.blocks import WandbSettings
from sweep.outcome import Outcome
from sweep.study import JOURNAL, SweepStudy
from sweep.tensorboard import main as tensorboard_command
from sweep.wandb_client import reset_client
from sweep.wandb_run import RunIdentity
from sweep.wandb_sink import WandbSink

PROGRAMS = Path(sys.executable).parent
START_LIMIT_S = 300.0
VALUES = {"alpha": 0.5, "base_lr": 0.03}
STATES = {  # of our trials -> in Optuna's words on its dashboard
    Outcome.COMPLETE: "Complete",
    Outcome.PRUNED: "Pruned",
    Outcome.DIVERGED: "Pruned",
    Outcome.FAILED: "Fail",
    Outcome.RUNNING: "Running",
}


@contextmanager
def serving(words: list[str], folder: Path) -> Iterator[Callable[..., Any]]:
    """A program that serves JSON on a port of loopback, the last of its words; gives a function that asks it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen([*words, str(port)], stdout=output, stderr=subprocess.STDOUT)

    def ask(path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        give_up = time.monotonic() + START_LIMIT_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read())
            except OSError:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    try:
        yield ask
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.process
def test_optuna_dashboard_shows_every_trial_of_the_search_and_of_its_confirmation(tmp_path):
    spec = tiny_spec()
    for name in ("tiny", "tiny.confirm"):
        study = SweepStudy(tmp_path, name, spec.space, sampler="random", startup_trials=1)
        for outcome in STATES:
            number = study.next().number
            study.report(number, 0, 0.5 + number)
            if outcome is not Outcome.RUNNING:
                study.finish(number, outcome)
    words = [str(PROGRAMS / "optuna-dashboard"), str(tmp_path / JOURNAL), "--host", "127.0.0.1", "--port"]
    with serving(words, tmp_path) as ask:
        studies = {study["study_name"]: study["study_id"] for study in ask("/api/studies")["study_summaries"]}
        assert set(studies) == {"tiny", "tiny.confirm"}
        for study_id in studies.values():
            trials = ask(f"/api/studies/{study_id}")["trials"]
            assert [trial["state"] for trial in trials] == list(STATES.values())
            assert trials[0]["values"] == [0.5]
            assert {param["name"] for param in trials[0]["params"]} == {"alpha", "base_lr"}


@pytest.mark.process
def test_tensorboard_serves_the_curves_and_compares_the_trials_by_their_parameters(tmp_path):
    results = past_sweep(tmp_path / "r", tiny_spec(), Past(VALUES), Past({"alpha": 0.2, "base_lr": 0.1}))
    assert tensorboard_command([str(results)]) == 0
    logdir = str(results / "tensorboard")
    with serving([str(PROGRAMS / "tensorboard"), "--logdir", logdir, "--host", "127.0.0.1", "--port"], tmp_path) as ask:
        give_up = time.monotonic() + START_LIMIT_S
        while not {"0000", "0001"} <= set(ask("/data/runs")) and time.monotonic() < give_up:
            time.sleep(0.1)  # it reads the folder after it has begun to serve
        curve = ask("/data/plugin/scalars/scalars?run=0001&tag=batch%2Floss_total")
        assert [step for _, step, _ in curve] == list(range(12))
        metric = {"metric": {"group": "", "tag": "objective/value"}}
        wanted = {"allowedStatuses": ["STATUS_SUCCESS"], "colParams": [{"hparam": "alpha"}, metric]}
        groups = ask("/data/plugin/hparams/session_groups", {**wanted, "startIndex": 0, "sliceSize": 9})
        shown = {group["name"]: group for group in groups["sessionGroups"]}
        assert {name: group["hparams"] for name, group in shown.items()} == {
            "0000": VALUES,
            "0001": {"alpha": 0.2, "base_lr": 0.1},
        }
        assert shown["0000"]["metricValues"][0]["name"]["tag"] == "objective/value"


@pytest.mark.process
def test_wandb_leet_shows_offline_runs_in_a_terminal_and_leaves_them_as_they_are(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sink = WandbSink(
        RunIdentity("uid-0000", "tiny-0000", "tiny", "p", None, tmp_path / "r"), {}, WandbSettings(mode="offline")
    )
    for step in range(5):
        sink.log(Event(Level.BATCH, dict.fromkeys(metrics.BATCH_NAMES, 0.5) | {"batch/iteration": step}))
    sink.close(0)
    reset_client()
    before = _files(tmp_path / "r")
    # panels come by name, and the first ones are seen, long names cut
    words = [str(PROGRAMS / "wandb"), "leet", "run", str(tmp_path / "r" / "wandb")]
    status, screen = _in_terminal(words, until=b"batch/loss_dynamic", then=b"q")
    assert b"batch/loss_dynamic" in screen
    assert b"tiny-0000" in screen
    assert status == 0
    after = _files(tmp_path / "r")
    assert {name: after.get(name) for name in before} == before  # it adds .wandb-leet.json, its own


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def _in_terminal(words: list[str], until: bytes, then: bytes) -> tuple[int, bytes]:
    """(exit status, all that it wrote) of a program in a pseudo terminal of 160 x 50, which gets these keys then."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(words[0], words)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    screen = b""
    give_up = time.monotonic() + START_LIMIT_S
    pressed = False
    try:
        while time.monotonic() < give_up:
            if not pressed and until in screen:
                os.write(terminal, then)
                pressed = True
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    part = os.read(terminal, 65536)
                except OSError:  # Linux's word for a terminal whose program has ended
                    break
                if not part:
                    break
                screen += part
    finally:
        if time.monotonic() >= give_up:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), screen
