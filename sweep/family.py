"""All processes that one supervisor of agents has started, however deep, and how they are started and ended."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress

import psutil

from sweep.slots import SLOT

MARK = "TACTILE_SWEEP_AGENTS"  # in the environment of everything that one supervisor started, however deep
GRACE_S = 90.0  # for a trial to write its checkpoint and hand its rows to W&B; then it is killed

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Family:
    """All processes with our mark in their environment, however deep: the trial of a dead agent has lost its parent.

    Attributes:
        environ: what a process is started with that shall belong to it.
    """

    def __init__(self, environ: dict[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self.environ = {**environ, MARK: self._mark}
        self._asked: set[psutil.Process] = set()
        self._left_since: dict[int, float] = {}

    def members(self) -> dict[psutil.Process, str]:
        """The processes, each with its slot; that of the shared W&B service is empty."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # another user's, or gone, or dead and not yet buried
                environ = process.environ()
                if environ.get(MARK) == self._mark:
                    found[process] = environ.get(SLOT, "")
        return found

    def end(self, slot: int, now: float) -> bool:
        """Ask the trials of a place without an agent to end, kill those that do not; True when none is left."""
        left = [process for process, of in self.members().items() if of == str(slot)]
        if not left:
            self._left_since.pop(slot, None)
            return True
        too_late = now - self._left_since.setdefault(slot, now) > GRACE_S
        parents = {process.pid for process in left}
        for process in left:
            with suppress(psutil.Error):
                if too_late:
                    process.kill()
                # a trial ends its own processes, and its W&B service ends when it has sent what the trial left
                elif process not in self._asked and process.ppid() not in parents and process.name() != "wandb-core":
                    self._asked.add(process)
                    process.terminate()
        return False

    def kill(self) -> None:
        """Kill the processes of all places."""
        while left := [process for process, slot in self.members().items() if slot]:
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)


def output_of(command: list[str], environ: dict[str, str], limit_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def end_with_parent() -> None:
    """In a child: SIGTERM when the supervisor dies, even by kill -9. An agent's trial then leaves a checkpoint."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def runs_on(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
