"""sweep/report/watch.py: the page follows a sweep, and ends with it."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from reporting import COMPLETE, RUNNING, Ending, sweep_folder
from specs import make

from sweep.report.__main__ import main
from sweep.report.data import read_results
from sweep.report.watch import Clock, ended, signature, watch

LIMIT_S = 300
LIVE = "This page is live"
HOUR_S = 3600


@contextmanager
def driver() -> Iterator[int]:
    """The process number of something that lives for as long as the block."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def session(folder: Path, pid: int, host: str = platform.node(), before_s: float = 0) -> Path:
    """Write that this process drives the sweep, or drove it since `before_s` seconds."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - before_s))
    content = {"sessions": [{"pid": pid, "host": host, "started": started, "command": ["x"]}]}
    (folder / "provenance.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.process
def test_sweep_whose_driver_is_gone_has_ended_and_one_whose_driver_lives_has_not(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9,)))
    with driver() as pid:
        assert not ended(read_results(session(folder, pid)))
    assert ended(read_results(session(folder, pid)))


@pytest.mark.process
def test_younger_process_with_the_number_of_the_driver_is_another_one(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9,)))
    with driver() as pid:
        assert ended(read_results(session(folder, pid, before_s=HOUR_S)))


@pytest.mark.parametrize(
    ("outcomes", "planned", "expected"),
    [([COMPLETE, COMPLETE], 2, True), ([COMPLETE, RUNNING], 2, False), ([COMPLETE], 2, False)],
)
def test_sweep_of_another_machine_has_ended_when_all_its_trials_have(tmp_path, outcomes, planned, expected):
    endings = [Ending(outcome, (0.9,)) for outcome in outcomes]
    folder = sweep_folder(tmp_path / "r", *endings, spec=make(run_cap=planned))
    assert ended(read_results(session(folder, os.getpid(), host="elsewhere"))) is expected


def test_sweep_of_another_machine_that_is_to_be_confirmed_has_not_ended_before_that(tmp_path):
    spec = make(run_cap=1, confirm={"top_k": 1, "seeds": [1, 2]})
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.9,)), spec=spec)
    assert not ended(read_results(session(folder, os.getpid(), host="elsewhere")))


def test_report_that_is_written_is_no_change_and_a_new_row_is_one(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9,)))
    before = signature(folder)
    assert main([str(folder)]) == 0
    assert signature(folder) == before
    with (folder / "trials" / "0000" / "epoch.csv").open("a", encoding="utf-8") as file:
        file.write("x\n")
    assert signature(folder) != before


class Steps(Clock):
    """A clock that does something at each wait, and then lets an hour pass."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = [*steps]
        self._time = 0.0

    def now(self) -> float:
        return self._time

    def wait(self, seconds: float) -> None:
        self._time += HOUR_S
        self._steps.pop(0)()


def nothing() -> None:
    pass


@pytest.mark.process
def test_watch_of_a_sweep_that_has_ended_writes_its_last_page_after_a_moment_in_which_it_may_be_resumed(tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.9,)))
    with driver() as pid:
        pass
    said: list[str] = []
    watch(session(folder, pid), 1, said.append, Steps(nothing))
    assert LIVE not in (folder / "report.html").read_text(encoding="utf-8")
    assert "no process works on the sweep any more" in said[-1]


@pytest.mark.parametrize("way", ["the sweep ends", "Ctrl-C"])
@pytest.mark.process
def test_watched_page_is_live_until_the_watch_ends(tmp_path, way):
    folder = sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9,)), Ending(RUNNING, (0.8,)))
    page = folder / "report.html"
    with driver() as gone:
        pass

    def a_trial_ends() -> None:
        assert LIVE in page.read_text(encoding="utf-8")
        (folder / "trials.csv").write_text("trial,state,objective/value\n0000,complete,0.123\n", encoding="utf-8")

    def the_end() -> None:
        shown = page.read_text(encoding="utf-8")
        assert LIVE in shown
        assert "Trial 0000 is the only trial" in shown
        if way == "Ctrl-C":
            raise KeyboardInterrupt
        session(folder, gone)

    said: list[str] = []
    expected = pytest.raises(KeyboardInterrupt) if way == "Ctrl-C" else nullcontext()
    with expected:
        watch(session(folder, os.getpid()), 1, said.append, Steps(a_trial_ends, the_end))
    shown = page.read_text(encoding="utf-8")
    assert LIVE not in shown
    assert "Trial 0000 is the only trial" in shown
    assert any("1 of 16 trials have ended" in line for line in said)
    assert not list(folder.glob("*.tmp"))


@pytest.mark.process
def test_a_watch_that_is_terminated_leaves_a_page_that_no_longer_reloads_itself(tmp_path):
    folder = session(sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9,))), os.getpid())
    command = [sys.executable, "-m", "sweep.report", str(folder), "--watch", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert "trials have ended" in watcher.stdout.readline()  # the live page is written
        assert LIVE in (folder / "report.html").read_text(encoding="utf-8")
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(LIMIT_S) == 130
    assert LIVE not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["0", "0.5", "soon", "nan", "1e9"])
def test_watch_refuses_seconds_that_make_no_sense(tmp_path, capsys, text):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--watch", text])
    assert stopped.value.code == 2
    assert "give seconds from 1 to 86400" in capsys.readouterr().err


def test_watch_of_a_folder_without_a_sweep_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--watch"]) == 2
    assert "holds no sweep" in capsys.readouterr().err
