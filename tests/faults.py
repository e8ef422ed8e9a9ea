"""What the fault tests share: sweeps in processes of their own, and what must be there when they were broken."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from model import metrics
from model.sinks import read_csv
from sweep.study import JOURNAL
from tests.offline import records_of
from tests.sweeping import TINY_TRAINER, tiny_content, trial_folders

LIMIT_S = 240  # for something to happen
SWEEP_S = 900  # for a whole sweep, on a loaded machine
# one trial after the other, so that the same seed gives the same sweep; long enough to be disturbed
SERIAL: dict[str, Any] = {"resources": {"max_concurrent": 1}, "run_cap": 3, "trainer": {**TINY_TRAINER, "epochs": 30}}
# long enough that a fast machine does not end it before it is disturbed
LONG: dict[str, Any] = {**SERIAL, "trainer": {**SERIAL["trainer"], "epochs": 60}}
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # after a kill they end by themselves, a minute later
TIMES = ("seconds", "summary/total_time_seconds")  # of what is recorded, all that is not the same twice

Study = dict[str, Any]


def write_spec(folder: Path, **changes: Any) -> Path:
    """A spec file of `tiny_content`."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content(**changes)), encoding="utf-8")
    return path


class Driver:
    """`python -m sweep.run` in a process group of its own, and all processes that it ever had below it."""

    def __init__(
        self,
        spec: Path,
        results: Path,
        *options: str,
        env: dict[str, str] | None = None,
        module: str = "sweep.run",
    ) -> None:
        self.results = results
        command = [sys.executable, "-m", module, str(spec), "--results", str(results), *options]
        self._output = results.with_name(f"{results.name}.out").open("w+b")
        self.process = subprocess.Popen(
            command, stdout=self._output, stderr=subprocess.STDOUT, process_group=0, env=os.environ | (env or {})
        )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def printed(self) -> str:
        """What it has said until now, in one line: rich breaks lines at 80 columns."""
        self._output.seek(0)
        return " ".join(self._output.read().decode().split())

    def below(self) -> list[psutil.Process]:
        """Its children, and theirs."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen |= {process.pid: process for process in found}
        return found

    def named(self, text: str) -> list[psutil.Process]:
        """Those of them whose command has this in its first word."""
        return [process for process in self.below() if text in _command(process)]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for it; fails where the driver ends first."""
        give_up = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}: {self.printed}"
            assert time.monotonic() < give_up, f"waited {LIMIT_S} s for {what}: {self.printed}"
            time.sleep(0.05)

    def until_epoch(self, trial: str, epoch: int) -> None:
        """Wait until a trial has so many epochs."""
        file = self.results / "trials" / trial / "epoch.csv"
        self.until(lambda: file.exists() and len(read_csv(file)) >= epoch, f"epoch {epoch} of trial {trial}")
        self.below()

    def until_rows(self, more: int) -> None:
        """Wait until the sweep has so many rows of updates more than now, and note its processes."""
        before = num_rows(self.results)
        self.until(lambda: num_rows(self.results) >= before + more, f"{more} rows more")
        self.below()

    def ended(self, limit_s: float = LIMIT_S) -> int:
        """Wait for its end; returns the exit code."""
        give_up = time.monotonic() + limit_s
        while self.process.poll() is None and time.monotonic() < give_up:
            self.below()
            time.sleep(0.1)
        assert self.process.poll() is not None, f"it has not ended in {limit_s} s: {self.printed}"
        return int(self.process.returncode)

    def left_over(self, limit_s: float = 30.0) -> list[str]:
        """Which of its processes are still there after a while."""
        give_up = time.monotonic() + limit_s
        while (alive := self._alive_and_no_agent()) and time.monotonic() < give_up:
            time.sleep(0.1)
        return [f"{process.pid} {_command(process)}" for process in alive]

    def _alive_and_no_agent(self) -> list[psutil.Process]:
        # asked anew each time: an agent that has just started bears another name
        return [p for p in self._seen.values() if _alive(p) and _command(p) not in RAY_AGENTS]

    def close(self) -> None:
        """End whatever is left."""
        self.below()
        for process in self._seen.values():
            if _alive(process):
                process.kill()
        self.process.kill()
        self.process.wait()
        self._output.close()


@contextmanager
def driver(
    spec: Path, results: Path, *options: str, env: dict[str, str] | None = None, module: str = "sweep.run"
) -> Iterator[Driver]:
    """A driver; nothing of it is left at the end."""
    started = Driver(spec, results, *options, env=env, module=module)
    try:
        yield started
    finally:
        started.close()


def _command(process: psutil.Process) -> str:
    try:
        return str((process.cmdline() or [""])[0])
    except psutil.Error:
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # its new parent reaps an orphan
    except psutil.Error:
        return False


def stop(process: psutil.Process) -> None:
    """SIGSTOP, and wait until it holds."""
    process.send_signal(signal.SIGSTOP)
    give_up = time.monotonic() + 10
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < give_up
        time.sleep(0.01)


# --- what must be there afterwards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What a sweep has that does not depend on the time that it took."""

    rows: dict[str, tuple[bytes, bytes]]
    study: list[Study]
    table: list[dict[str, str]]

    @classmethod
    def of(cls, results: Path) -> Kept:
        """Of a results folder."""
        return cls(rows_of(results), study_of(results), table_of(results))


def num_rows(results: Path) -> int:
    """Rows of updates of all trials, and a header each."""
    return sum(file.read_bytes().count(b"\n") for file in results.glob("trials/*/batch.csv"))


def rows_of(results: Path) -> dict[str, tuple[bytes, bytes]]:
    """batch.csv and epoch.csv by trial."""
    return {f.name: ((f / "batch.csv").read_bytes(), (f / "epoch.csv").read_bytes()) for f in trial_folders(results)}


def study_of(results: Path) -> list[Study]:
    """All trials of all studies in the journal."""
    storage = JournalStorage(JournalFileBackend(str(results / JOURNAL)))
    return [
        {
            "study": name,
            "number": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "values": trial.values,
            "reported": trial.intermediate_values,
            "told": {key: value for key, value in trial.user_attrs.items() if key != "seconds"},
        }
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    ]


def table_of(results: Path, name: str = "trials.csv") -> list[dict[str, str]]:
    """The rows of trials.csv, without times."""
    with (results / name).open(newline="", encoding="utf-8") as file:
        return [{key: cell for key, cell in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def assert_wandb_has_every_row_once(results: Path) -> None:
    """All parts of each trial's W&B run together."""
    for folder in trial_folders(results):
        files = sorted(results.glob(f"wandb/offline-run-*/run-*-{folder.name}.wandb"))
        items = [r["history"]["item"] for file in files for r in records_of(file) if r["type"] == "history"]
        # no picture, and not what a diverged run says beside its rows: that its metric is NaN
        rows = [item for item in items if "batch/loss_total" in item or "epoch/train_loss" in item]
        history = [{name: _number(value) for name, value in row.items() if not name.startswith("_")} for row in rows]
        for step, name in ((metrics.BATCH_STEP, "batch.csv"), (metrics.EPOCH_STEP, "epoch.csv")):
            logged = sorted((row for row in history if step in row), key=lambda row: int(row[step]))
            assert logged == [{key: _number(cell) for key, cell in row.items()} for row in read_csv(folder / name)], (
                folder
            )


def _number(value: float | str) -> float | str:
    """W&B's file has the texts NaN and Infinity, and NaN differs from itself."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def assert_no_leftovers(results: Path) -> None:
    """No lock is held, and no file of a part that was killed is there."""
    patterns = (".stop", "*.tmp", ".owner", ".hang", f"{JOURNAL}.*", ".paused")
    found = [path for pattern in patterns for path in results.rglob(pattern)]
    left = [path for path in found if not {"ray", "damaged"} & {*path.parts}]
    assert not left, f"left behind: {left}"
    with FileLock(results / ".driver.lock", timeout=0):
        pass
