"""Which process a trial's folder belongs to: the one that opened it last. One that comes late writes nothing more.

A worker may be stopped, or cut off from the network, for so long that its trial is given to another one, and then go
on. The rows of its CSV files go to files that were replaced since; everything else is written after a look here.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from model.errors import UserError
from model.sinks import write_json

OWNER = ".owner"  # in the trial's folder, while a process trains the trial (or was killed while it did)
LOOK_EVERY_S = 0.2  # rows come faster than it is worth to read a file


class TakenOverError(UserError):
    """Another process has taken the trial over, or its folder was removed. This one must end without another word."""


class Ownership:
    """A process's claim to a trial's folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / OWNER
        self._token = uuid.uuid4().hex
        self._looked = 0.0

    def take(self) -> None:
        """Make the folder ours; whoever had it finds that out at its next `check`."""
        process = psutil.Process()
        content = {
            "token": self._token,
            "host": platform.node(),
            "pid": process.pid,
            "pid_since": process.create_time(),  # a process number is used again
        }
        write_json(self._file, content)
        self._looked = time.monotonic()

    def check(self, now: bool = True) -> None:
        """Raise TakenOverError where the folder is no longer ours.

        Args:
            now: look at the file in any case, not only LOOK_EVERY_S after the last look. (A process that was stopped
                finds its clock ahead, and looks.)
        """
        if now or time.monotonic() - self._looked > LOOK_EVERY_S:
            if self._there() != self._token:
                raise TakenOverError(f"{self._file.parent}: another process has taken this trial over; this one ends")
            self._looked = time.monotonic()

    def release(self) -> None:
        """The folder is nobody's, where it was ours."""
        if self._there() == self._token:
            self._file.unlink(missing_ok=True)

    def _there(self) -> object:
        return _read(self._file).get("token")


@dataclass(frozen=True)
class Owner:
    """The process that owns a trial's folder, of this machine."""

    pid: int
    process: psutil.Process


def local_owner(folder: Path) -> Owner | None:
    """The process that owns a trial's folder, where it is one of this machine and alive."""
    content = _read(folder / OWNER)
    if content.get("host") != platform.node() or not isinstance(pid := content.get("pid"), int) or pid == os.getpid():
        return None
    try:
        process = psutil.Process(pid)
        return Owner(pid, process) if process.create_time() == content.get("pid_since") else None
    except psutil.Error:
        return None


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
