"""`python -m sweep.agents SWEEP -n 4`: several of W&B's own agents on one machine.

    scripts/agents.sh me/tactile/abcd1234 -n 4

Starts `wandb agent --forward-signals` processes for one sweep, each with GPUs and a log file of its own, and one W&B
service for all. Ctrl-C or SIGTERM asks their trials for checkpoints. Nothing is started again: that is the work of
systemd or Slurm (scripts/cluster/README.md), which the exit code tells whether to.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from model.errors import ConfigError, UserError
from sweep import processes
from sweep.blocks import WandbSettings
from sweep.devices import environments
from sweep.faults import MachineError
from sweep.halt import MACHINE_FAILED, STOPPED
from sweep.spec import load_spec
from sweep.wandb_config import trials_of
from sweep.wandb_server import check_online, config_on_server, sweep_path

MAX_AGENTS = 512  # more is a slip of the finger
GRACE_S = 90.0  # for the trials to write their checkpoints and hand their rows to W&B; then they are killed
SERVICE_STOP_S = 20.0  # for what W&B's service still sends
POLL_S = 0.5

# in an agent's log: that it gave up (with code 0), and errors; AlreadyJoinedError is harmless, after a run of W&B's own
_GAVE_UP = re.compile(r"Detected \d+ (?:consecutive )?failed runs.*|Sweep was deleted or agent was not found.*")
_ERROR = re.compile(r"^(?!\S*AlreadyJoined)(?:wandb: ERROR (?!Find)|[Ee]rror: |[\w.]+(?:Error|Exception): ).+", re.M)
_TAIL = 20_000  # bytes of a log


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.agents`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.agents",
        description="Run several W&B agents of one sweep on this machine.",
        epilog="example: scripts/agents.sh me/tactile/abcd1234 -n 4",
    )
    add = result.add_argument
    add("sweep", metavar="SWEEP", help="id of the W&B sweep: [[ENTITY/]PROJECT/]SWEEP")
    add("-n", "--num", default="auto", metavar="N", help="agents; auto (default): as many as fit the spec's resources")
    add("--count", metavar="N", help="each agent ends after N runs (default: when the sweep ends)")
    add("--spec", type=Path, help="sweep file, for its resources (default: the one in the sweep's command)")
    add("--logs", type=Path, metavar="DIR", help="log files (default: results/agents-<sweep>)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0 all agents ended well; 1 one gave up, since its runs fail; 2 bad input; 3 one died, or the server gave no answer:
    start it again; 130 stopped.
    """
    options = parser().parse_args(arguments)
    try:
        sweep = sweep_path(options.sweep)
        name = sweep.rpartition("/")[2]
        command = processes.wandb_command("agent", "--forward-signals", sweep)
        if options.count is not None:
            command[-1:-1] = ["--count", str(_whole(options.count, "--count"))]
        num = None if options.num == "auto" else _whole(options.num, "-n", MAX_AGENTS)
        check_online(WandbSettings())
        given = None if options.spec is None else load_spec(options.spec)
        trials = trials_of(config_on_server(sweep), name)
        spec = given or (trials and trials.spec)
        places = environments(num, spec.resources if spec else None)
        with _alone(options.logs or Path("results") / f"agents-{name}") as folder:
            print(f"sweep {sweep}: {len(places)} agents, logs in {folder}", flush=True)
            code = _run(command, places, folder)
        if trials is not None and trials.results.exists():
            print(f"trials: {trials.results}; report: python -m sweep.report {shlex.quote(str(trials.results))}")
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MACHINE_FAILED if isinstance(error, MachineError) else 2
    except KeyboardInterrupt:  # before there were agents
        return STOPPED


def _whole(text: str, option: str, most: int = 999_999) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or not 0 < int(text) <= most:
        raise ConfigError(f"{option} {text}: must be a whole number from 1 to {most}")
    return int(text)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The only one that writes its agents' logs to the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: agents of this sweep are running already and write their logs there; end them, or give another "
            "folder with --logs DIR"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}; choose another folder with --logs DIR") from None
    with lock:
        yield folder


class _Agent:
    """One of W&B's agents; `code` is 0 where it ended well, 1 where it gave up, 3 where it died."""

    def __init__(self, number: int, command: list[str], environ: dict[str, str], folder: Path) -> None:
        self.code: int | None = None
        self._number, self._path = number, folder / f"agent-{number}.log"
        with self._path.open("ab") as log:
            self._began = log.tell()
            self.process = processes.start(command, environ, log)
        print(f"agent {number}: started", flush=True)

    def runs(self) -> bool:
        """Whether it runs; says how it ended, once."""
        code = self.process.poll()
        if code is None or self.code is not None:
            return code is None
        log = self._path.read_bytes()[self._began :][-_TAIL:].decode("utf-8", "replace")
        gave_up = _GAVE_UP.findall(log)
        self.code = 1 if gave_up else MACHINE_FAILED if code else 0
        said = [f"killed by signal {-code}" if code < 0 else f"code {code}", *gave_up[:1]]
        if self.code:
            said += [*_ERROR.findall(log)[-1:], f"see {self._path}"]
        print(f"agent {self._number}: ended ({'; '.join(said)})", flush=True)
        return False


def _run(command: list[str], places: list[dict[str, str]], folder: Path) -> int:
    """Run the agents to their end, or until somebody asks to stop; returns the exit code."""
    requests = processes.StopRequests()
    processes.adopt_orphans()
    with processes.handling(requests.note):
        with processes.shared_service() as service:
            agents = [_Agent(number, command, place | service, folder) for number, place in enumerate(places)]
            _wait(agents, requests)
            processes.kill_below(
                spare_services=True
            )  # after a second signal, or too long a wait; else there is nothing
        give_up = time.monotonic() + (SERVICE_STOP_S if requests.count < 2 else 0)
        while processes.below() and time.monotonic() < give_up:
            time.sleep(0.05)
        processes.kill_below()
    codes = {agent.code or 0 for agent in agents}
    return STOPPED if requests.count else 1 if 1 in codes else max(codes)


def _wait(agents: list[_Agent], requests: processes.StopRequests) -> None:
    """Wait for the agents and the trials that they left behind; in the end not longer than GRACE_S."""
    give_up, passed_on, asked = math.inf, False, set[psutil.Process]()
    while True:
        running = [agent for agent in agents if agent.runs()]
        children = processes.below(services=False, direct=True) if len(running) < len(agents) else []
        left = {child for child in children if child.pid not in [agent.process.pid for agent in running]}
        if requests.count and not passed_on:
            print("stopping: trials write their checkpoints; once more kills them", flush=True)
            for agent in running:
                agent.process.terminate()  # which they pass on to their trials
        passed_on = requests.count > 0
        if passed_on or not running:
            give_up = min(give_up, time.monotonic() + GRACE_S)
        for process in left - asked:
            with suppress(psutil.Error):
                process.terminate()  # the trial of an agent that died
        asked |= left
        if not (running or left) or requests.count > 1 or time.monotonic() > give_up:
            return
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
