"""Ends a trial that hangs. A process ends itself from outside Python; one that is stopped is ended by the driver.

faulthandler counts in a thread of its own, in C: it works where Python's lock is never given back, as in a call to a
GPU or a file server that does not return. It leaves the stacks of all threads behind.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from sweep.ownership import local_owner

STACKS = "hang.txt"  # in the trial's folder: where its process stood when it was ended
OPEN_STACKS = ".hang"  # while the trial trains: empty until then
ARM_EVERY_S = 1.0  # arming starts a thread, 0.1 ms


class Watchdog:
    """Ends this process where `alive` is not called for `limit_s` while it watches. There is one at a time.

    Args:
        limit_s: None never ends it.
        folder: of the trial.
    """

    def __init__(self, limit_s: float | None, folder: Path) -> None:
        self._limit_s = limit_s
        self._path = folder / OPEN_STACKS
        self._file: IO[bytes] | None = None
        self._watching = False
        self._armed = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch within: the time between two parts of a trial, when it waits for the driver, does not count."""
        self._watching = True
        self._arm()
        try:
            yield
        finally:
            self._watching = False
            faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, something keeps a time limit of its own."""
        faulthandler.cancel_dump_traceback_later()
        watching, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = watching
            if watching:
                self._arm()

    def alive(self) -> None:
        """The trial goes on: count anew."""
        if self._watching and time.monotonic() - self._armed > ARM_EVERY_S:
            self._arm()

    def close(self) -> None:
        """The trial has ended."""
        self._watching = False
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)

    def _arm(self) -> None:
        if self._limit_s is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            take_stacks(self._path.parent)  # of the attempt before
            self._file = self._path.open("wb")
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)


def take_stacks(folder: Path) -> bool:
    """Whether the last process of a trial was ended because it hung; where it stood is in STACKS then."""
    left = folder / OPEN_STACKS
    with suppress(OSError):
        if left.stat().st_size:
            left.replace(folder / STACKS)
            return True
    return False  # an empty one stays: another process may have the trial already


class StoppedProcesses:
    """Ends processes of trials that are stopped (SIGSTOP, a frozen container): those cannot end themselves.

    Only processes of this machine are seen.

    Args:
        limit_s: how long one may be stopped; None never ends any.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._since: dict[psutil.Process, float] = {}

    def look(self, folders: Iterable[Path]) -> None:
        """Look at the processes of these trials; call it every few seconds."""
        if self._limit_s is None:
            return
        before, self._since, now = self._since, {}, time.monotonic()
        for folder in folders:
            owner = local_owner(folder)
            with suppress(psutil.Error):
                if owner is None or owner.process.status() != psutil.STATUS_STOPPED:
                    continue
                since = self._since[owner.process] = before.get(owner.process, now)
                if now - since >= self._limit_s:
                    with suppress(OSError):
                        text = f"Process {owner.pid} was stopped by a signal for {now - since:.0f} s, and was ended.\n"
                        (folder / OPEN_STACKS).write_text(text, encoding="utf-8")
                    owner.process.kill()
