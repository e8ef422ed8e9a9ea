"""One W&B service process for all agents of a machine."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import suppress

import psutil

from sweep.family import Family, output_of, runs_on
from sweep.slots import SERVICE

WANDB = [sys.executable, "-m", "wandb"]
SERVICE_START_S = 60.0
SERVICE_STOP_S = 20.0  # for what the shared W&B service still sends at its end
MAX_SERVICES = 3  # one that dies more often is not started again
SERVICE_IDLE = "2m"  # nobody may be left to end it; then it ends by itself after so long without clients


class SharedService:
    """One W&B service for all agents and their trials, `wandb beta core start`; without it, each starts its own."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._process: psutil.Process | None = None
        self._token = ""
        self._starts = 0
        self.keep_alive()

    @property
    def environ(self) -> dict[str, str]:
        """What an agent is started with, so that it and its trials use the service."""
        own = {"WANDB_SERVICE": self._token, SERVICE: self._token} if self._token else {}
        return self._family.environ | own

    def keep_alive(self) -> None:
        """Start it where it does not run. Agents of one that died end with an error, and get the next one then."""
        if self._starts and (self._process is None or runs_on(self._process)):
            return
        self._token, self._process = "", None
        self._starts += 1
        if self._starts > MAX_SERVICES:
            print("note: the shared W&B service died again; now each trial starts its own", flush=True)
            return
        if self._starts > 1:
            print("note: the shared W&B service died; another one is started", flush=True)
        done = self._command("start", "--idle-timeout", SERVICE_IDLE)
        token = re.search(r"^\d+-\d+-\S+$", done.stdout, re.MULTILINE)
        self._process = next((process for process, slot in self._family.members().items() if not slot), None)
        if token is not None and self._process is not None:
            self._token = token[0]
        else:
            self.stop(limit_s=0)
            why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            print(f"note: no shared W&B service ({why}); each trial starts its own", flush=True)

    def stop(self, limit_s: float = SERVICE_STOP_S) -> None:
        """End it, after what it still sends in `limit_s`."""
        process, self._process = self._process, None
        if process is None:
            return
        give_up = time.monotonic() + limit_s
        if limit_s > 0 and runs_on(process):
            self._command("stop")
        while runs_on(process) and time.monotonic() < give_up:
            time.sleep(0.05)
        with suppress(psutil.Error):
            process.kill()

    def _command(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*WANDB, "beta", "core", *words]
        try:
            return output_of(command, self.environ, SERVICE_START_S)
        except (OSError, subprocess.SubprocessError) as error:
            return subprocess.CompletedProcess(command, 1, "", str(error))
