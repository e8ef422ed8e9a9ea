"""Real W&B agents and `python -m sweep.agent` in a folder of their own, against the double of the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from wandb_double import WandbDouble

from model.sinks import read_csv
from tests.sweeping import tiny_content

REPOSITORY = Path(__file__).resolve().parents[1]
KEY = "5ecre7" * 6 + "abcd"  # 40 characters, as keys have, and found nowhere else
LIMIT_S = 150.0  # of anything that is waited for: the machine may be busy

# W&B's agent waits 5 s between two heartbeats; nothing else of it is changed
AGENT = "from wandb.wandb_agent import Agent; Agent.POLL_INTERVAL = 0.3; from wandb.cli.cli import cli; cli()"

# 200 epochs of 1 update, some seconds: time for what happens in the middle of a run, and few enough rows to keep all
LONG: dict[str, Any] = {
    "data": {
        "image_size": 32,
        "eval_clips": 40,
        "clips_per_epoch": 8,
        "synthetic": {"sequences": 12, "frames": 8},
    },
    "encoder": {"width": 96, "depth": 2, "heads": 2, "patch_size": 4},
    "decoder": {"width": 96, "depth": 1, "heads": 2},
    "epochs": 200,
    "batch_size": 8,
    "base_lr": 0.03,
    "device": "cpu",
}


@dataclass
class Place:
    """A folder in which agents work.

    Attributes:
        environment: of every process that is started: the double is the server, a known key, a home of its own.
    """

    folder: Path
    double: WandbDouble
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def write_spec(self, name: str = "tiny", **changes: Any) -> Path:
        """A spec file; `changes` replace blocks of `tiny_content`. Its W&B mode is auto: online."""
        content = tiny_content(name=name, **{"wandb": {"mode": "auto"}, **changes})
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` in the folder, to its end."""
        return subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def create(self, spec: Path, *options: str) -> str:
        """Register a sweep by `python -m sweep.agent SPEC --create`; returns its id."""
        known = set(self.double.sweeps)
        done = self.run("-m", "sweep.agent", spec.name, "--create", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        (new,) = set(self.double.sweeps) - known
        return new

    def start(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        """`python ARGUMENTS` in the folder, in a group of its own; its output goes to the file `log`."""
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.started.append(process)
        return process

    def start_agent(self, sweep_id: str, *options: str, log: str = "agent.log") -> subprocess.Popen[bytes]:
        """A real `wandb agent`, with shorter waits between its heartbeats."""
        path = self.double.sweeps[sweep_id].path
        return self.start("-c", AGENT, "agent", *options, path, log=log)

    def results(self, sweep_id: str, name: str = "tiny") -> Path:
        """The results folder of a sweep's trials."""
        return self.folder / "results" / f"{name}-{sweep_id}"

    def output(self) -> str:
        """All logs, for messages of failed tests."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in self.folder.glob("*.log"))

    def end(self) -> None:
        """Kill what still runs: agents, and the trials that they started."""
        for process in self.started:
            for pid in [process.pid, *descendants(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@contextmanager
def place_of(folder: Path, store: Path, double: WandbDouble) -> Iterator[Place]:
    """A `Place` in a new folder `work` of `folder`; whatever was started is ended."""
    (folder / "work").mkdir(parents=True)
    (folder / "home").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    place = Place(
        folder / "work",
        double,
        clean
        | {
            "HOME": str(folder / "home"),
            "PYTHONPATH": str(REPOSITORY),
            "TACTILE_SWEEP_STORE": str(store),
            "WANDB_BASE_URL": double.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # rows are sent so often; by default every 15 s
        },
    )
    # the agent starts `python`: the one of these tests
    place.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), place.environment["PATH"]])
    try:
        yield place
    finally:
        place.end()


def wait_until(condition: Callable[[], Any], what: str, place: Place | None = None, limit_s: float = LIMIT_S) -> Any:
    """Poll until the condition holds; returns its value."""
    give_up = time.monotonic() + limit_s
    while not (value := condition()):
        detail = place.output() if place is not None and time.monotonic() > give_up else ""
        assert time.monotonic() < give_up, f"not in {limit_s:.0f} s: {what}\n{detail}"
        time.sleep(0.05)
    return value


def ended(process: subprocess.Popen[bytes], place: Place, limit_s: float = LIMIT_S) -> int:
    """Wait for a process; returns its exit code."""
    wait_until(lambda: process.poll() is not None, "the process has ended", place, limit_s)
    return process.wait()


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and those that they started."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def trial_of(results: Path, run_id: str) -> Path:
    """The folder of the trial that a W&B run trained."""
    runs = yaml.safe_load((results / "runs.json").read_text(encoding="utf-8"))
    return results / "trials" / runs[run_id]


def split_rows(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of W&B -> (of updates, of epochs); pictures are left out."""
    plain = [row for row in rows if not any(name.startswith("pictures/") for name in row)]
    return [row for row in plain if "epoch" not in row], [row for row in plain if "epoch" in row]


def csv_rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a trial's CSV files: (of updates, of epochs)."""
    return read_csv(folder / "batch.csv"), read_csv(folder / "epoch.csv")
