"""Real W&B agents and `python -m sweep.agent` in a folder of their own, against the double of the server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from wandb_double import WandbDouble

from model.sinks import read_csv
from sweep.spec import load_spec
from sweep.wandb_client import reset_client
from sweep.wandb_config import wandb_sweep_config
from tests.sweeping import tiny_content

REPOSITORY = Path(__file__).resolve().parents[1]
KEY = "5ecre7" * 6 + "abcd"  # 40 characters, as keys have, and found nowhere else
SITE = Path(__file__).parent / "agents_site"
LIMIT_S = 300.0  # of anything that is waited for: the machine may be busy


@dataclass(frozen=True)
class Called:
    """What a command in this process returned and printed."""

    code: int
    out: str
    err: str


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

    def call(self, main: Callable[[list[str]], int], *words: str | Path, **environment: str) -> Called:
        """A command in this process, in the folder and with the environment of the place."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("WANDB")]:
                patch.delenv(name)
            for name, value in {"CUDA_VISIBLE_DEVICES": "", **self.environment, **environment}.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            reset_client()  # wandb reads the environment once
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    code = main([str(word) for word in words])
            finally:
                reset_client()
        return Called(code, out.getvalue(), err.getvalue())

    def register(self, spec: Path, *configs: dict[str, Any], scheduler: bool = False, **changes: Any) -> str:
        """Put a sweep of our trial on the server, nothing checked or decoded before; returns its id.

        Args:
            configs: what it hands out, if not random configs.
            scheduler: the form for `wandb sweep-scheduler`.
            changes: of the W&B config.
        """
        if configs:
            self.double.hand_out(configs)
        config = {
            **wandb_sweep_config(load_spec(spec), Path(spec.name), scheduler=scheduler, folder=self.folder),
            **changes,
        }
        answer = self.double.on_UpsertSweep({"config": yaml.safe_dump(config)})
        sweep_id: str = answer["upsertSweep"]["sweep"]["name"]
        return sweep_id

    def started_commands(self) -> list[str]:
        """The command lines of all processes that were started below those of this place, in order."""
        path = Path(self.environment["STARTED"])
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

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
        return self.start("-m", "wandb", "agent", *options, self.double.sweeps[sweep_id].path, log=log)

    def results(self, sweep_id: str, name: str = "tiny") -> Path:
        """The results folder of a sweep's trials."""
        return self.folder / "results" / f"{name}-{sweep_id}"

    def output(self) -> str:
        """All logs, for messages of failed tests."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in self.folder.glob("*.log"))

    def family(self) -> list[psutil.Process]:
        """All processes of the place, however they lost their parents: they have its server in their environment."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # another user's, or ended
                if process.environ().get("WANDB_BASE_URL") == self.double.url:
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill what still runs: agents, and what they started."""
        while left := self.family():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            for child in self.started:
                child.wait()


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
            "PYTHONPATH": f"{SITE}{os.pathsep}{REPOSITORY}",
            "STARTED": str(folder / "started"),
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
