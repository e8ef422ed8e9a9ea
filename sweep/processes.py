"""Child processes: W&B's own commands, and how none of them is left behind."""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

SERVICE = "TACTILE_SWEEP_WANDB_SERVICE"  # tells trials which service they share; W&B's agent hides its own variable
SERVICE_NAME = "wandb-core"  # the name of its process
_SERVICE_START_S = 60.0
_SERVICE_IDLE = "2m"  # where nobody is left to end it, it ends after so long without clients

SAME_SIGTERM_S = 10.0  # a second SIGTERM within is the same request

# of a process: what the kernel sends it when its parent dies, and whether orphans below it become its children
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def wandb_command(*words: str) -> list[str]:
    """`wandb WORDS` of this Python."""
    return [sys.executable, "-m", "wandb", *words]


def with_own_python(environ: dict[str, str]) -> dict[str, str]:
    """W&B's agents start trials with the `python` of PATH: this one, also where its environment is not activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    return {**environ, "PATH": path}


def start(command: list[str], environ: dict[str, str], log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a command that gets SIGTERM when this process dies, even by kill -9 (Linux).

    It is in a session of its own: Ctrl-C in a terminal goes to us alone, and from us to it, once.
    """
    return subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # no lock of another thread is asked for in it
    )


def _end_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """From now on a process below this one that loses its parent becomes a child of this one (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def runs_on(process: psutil.Process) -> bool:
    """Whether it has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def below(services: bool = True, direct: bool = False) -> list[psutil.Process]:
    """The processes that this one and its children have started and that run; with `direct`, its children alone.

    Args:
        services: also those of W&B, which send what is left and end by themselves.
    """
    found = []
    for process in psutil.Process().children(recursive=not direct):
        with suppress(psutil.Error):
            if runs_on(process) and (services or process.name() != SERVICE_NAME):
                found.append(process)
    return found


def kill_below(spare_services: bool = False) -> None:
    """Kill them, and those that they leave."""
    while left := below(services=not spare_services):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


class StopRequests:
    """How often somebody asked to stop: Slurm may send SIGTERM to us, and to the script that passes it on to us."""

    def __init__(self) -> None:
        self.count = 0
        self._terminated_s = -math.inf

    def note(self, number: int, frame: FrameType | None) -> None:
        """A handler of signals."""
        now = time.monotonic()
        if number != signal.SIGTERM or now - self._terminated_s > SAME_SIGTERM_S:
            self.count += 1
        if number == signal.SIGTERM and self._terminated_s < 0:
            self._terminated_s = now


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within, `handler` gets SIGINT, SIGTERM and SIGHUP; the last one not where it is ignored, as nohup sets it."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def shared_service() -> Iterator[dict[str, str]]:
    """One W&B service for all agents and their trials: what they need in their environment.

    Where it does not start, or has died, each trial starts its own.
    """
    done = _core("start", "--idle-timeout", _SERVICE_IDLE)
    token = re.search(r"^\d+-\d+-\S+$", done.stdout, re.MULTILINE)
    if token is None:
        why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        print(f"note: no shared W&B service ({why}); each trial starts its own", flush=True)
        yield {}
        return
    environ = {"WANDB_SERVICE": token[0], SERVICE: token[0]}
    try:
        yield environ
    finally:
        _core("stop", **environ)


def _core(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = wandb_command("beta", "core", *words)
    clean = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    try:
        return subprocess.run(
            command,
            env=clean | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SERVICE_START_S,
            start_new_session=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
