"""What Ray and its workers print goes to RESULTS/logs, not to the terminal.

logs/driver.log        what libraries of the driver print, all sessions after one another
logs/ray               while the sweep runs: a link to Ray's own folder of logs on this machine
logs/ray-TIME/         afterwards: the ends of those files. worker-*.out is what trials printed
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

FOLDER, DRIVER, RAY = "logs", "driver.log", "ray"
KEPT = ("worker-*", "raylet.*", "gcs_server.*", "monitor.*", "python-core-*")  # of Ray's files
OF_JOB = ("worker-*-{job}-*", "python-core-driver-{job}*")  # of a shared Ray's: those of one job
MOST_BYTES, MOST_FILES = 1_000_000, 200  # of each of them its end; the latest files


class Logs:
    """The folder `logs` of a sweep's results. Nothing here fails a sweep: its disk may be full or gone."""

    def __init__(self, results: Path) -> None:
        self.folder = results / FOLDER
        self._link = self.folder / RAY
        self._theirs: Path | None = None
        self._patterns: tuple[str, ...] = KEPT
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self.caught: TextIO | None = None
        """Where what libraries of the driver print goes; None where it is let through."""

    def follow(self, theirs: Path | None, job: str | None = None) -> None:
        """Ray runs: its folder of logs is shown as `logs/ray`, and its loggers in the driver are caught.

        Args:
            theirs: None where there is none on this machine.
            job: Ray's id of this sweep in a cluster that others may use too: what their jobs printed is not copied.
        """
        self._patterns = KEPT if job is None else tuple(pattern.format(job=job) for pattern in OF_JOB)
        for name in list(logging.root.manager.loggerDict) if self.caught is not None else ():
            for handler in logging.getLogger(name).handlers if name.partition(".")[0] == "ray" else ():
                if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                    before = handler.setStream(self.caught)
                    if before is not None:  # else it was caught already: several loggers may share a handler
                        self._handlers.append((handler, before))
        self._theirs = theirs
        if theirs is not None:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._link.unlink(missing_ok=True)  # of a driver that was killed
                self._link.symlink_to(theirs, target_is_directory=True)

    def let_go(self) -> None:
        """Ray's loggers write to where they wrote before."""
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()

    def keep(self) -> None:
        """Copy what Ray's folder holds now in place of the link to it."""
        with suppress(OSError):
            self._link.unlink(missing_ok=True)
        if self._theirs is None:
            return
        place = self.folder / f"{RAY}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        with suppress(OSError):
            files = [file for pattern in self._patterns for file in self._theirs.glob(pattern) if file.stat().st_size]
            newest = sorted(files, key=lambda file: file.stat().st_mtime)[-MOST_FILES:]
            for file in newest:
                place.mkdir(parents=True, exist_ok=True)
                (place / file.name).write_bytes(_end_of(file))


class _Unfailing(FileIO):
    """A file that loses what its disk has no room for: neither a logger nor the closing of a log may fail a sweep."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def kept(results: Path, verbose: bool) -> Iterator[Logs]:
    """Within, what libraries print goes to logs/driver.log; at the end Ray's own logs are copied.

    Our own words come through: `sys.stderr` stays what it was. File descriptor 2, to which Ray's C++ parts write, and
    the handlers of Ray's loggers do not.

    Args:
        verbose: let everything through.
    """
    logs = Logs(results)
    try:
        with nullcontext() if verbose else _caught(logs):
            yield logs
    finally:
        logs.keep()


@contextmanager
def _caught(logs: Logs) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            logs.folder.mkdir(parents=True, exist_ok=True)
            file = BufferedWriter(_Unfailing(logs.folder / DRIVER, "a"))
            logs.caught = stack.enter_context(TextIOWrapper(file, encoding="utf-8", errors="replace"))
            terminal = os.dup(2)
        except OSError:  # no room for a log, or no descriptor 2
            logs.caught = None
        else:
            stack.callback(os.close, terminal)
            stack.enter_context(_stderr_past_descriptor_2(terminal))
            os.dup2(logs.caught.fileno(), 2)
            stack.callback(os.dup2, terminal, 2)
        try:
            yield
        finally:
            logs.let_go()


@contextmanager
def _stderr_past_descriptor_2(terminal: int) -> Iterator[None]:
    """Within, Python's own words to stderr still go where descriptor 2 led, now `terminal`."""
    before = sys.stderr
    if before is not sys.__stderr__ or before is None:  # somebody else has it: rich's live view, a test
        yield
        return
    with open(terminal, "w", buffering=1, encoding=before.encoding, errors="backslashreplace", closefd=False) as ours:
        before.flush()
        sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = before
            for handler in _stream_handlers():  # made within, they would write to a closed file
                if handler.stream is ours:
                    handler.setStream(before)


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    for logger in (logging.root, *loggers):
        yield from (handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))


def _end_of(file: Path) -> bytes:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - MOST_BYTES))
        return content.read()
