"""The page while the sweep runs: written anew when the folder has changed, until the sweep ends."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from sweep.processes import runs_on
from sweep.report.data import SweepResults, read_results
from sweep.report.page import drawn_sections, write_page, write_report
from sweep.study import Outcome

WATCHED = ("spec.yaml", "trials.csv", "confirm.csv", "confirm.json", "provenance.json", "best.yaml")
LEAST_S = 1.0  # between two looks
GRACE_S = 5.0  # a sweep that is just being resumed has not entered its process yet
SHARE = 0.2  # of the time that may go into making the page: of a large sweep it takes long
CLOCK_SLACK_S = 5.0  # provenance.json tells whole seconds, and a session's process began before it


class Clock:
    """The machine's time."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


Signature = dict[str, tuple[int, int]]


def watch(folder: Path, every_s: float, say: Callable[[str], None], clock: Clock | None = None) -> None:
    """Keep report.html of a running sweep up to date; returns when the sweep has ended.

    The last page, also that after a KeyboardInterrupt, no longer reloads itself.

    Args:
        every_s: seconds between two looks at the folder, and between two reloads of the page.
        say: takes a line for each page.
        clock: what tells the time and waits; the machine's if None.

    Raises:
        UserError: as `read_results`.
    """
    clock = clock or Clock()
    seen: Signature | None = None
    started = clock.now()
    said = ""
    try:
        while True:
            began = clock.now()
            there = signature(folder)
            if there != seen:
                results = read_results(folder)
                said = _write(results, every_s, say, said)
                seen = there
            if ended(results):
                if clock.now() - started > GRACE_S:
                    break
                clock.wait(LEAST_S)
                continue
            spent = clock.now() - began
            clock.wait(max(every_s - spent, spent / SHARE - spent, LEAST_S))
    except KeyboardInterrupt:
        write_report(folder)
        raise
    write_report(folder)
    say(f"no process works on the sweep any more; {folder / 'report.html'} tells how it ended")


def signature(folder: Path) -> Signature:
    """Which files the page is made of, with their times and sizes."""
    found = {}
    for path in _sources(folder):
        try:
            status = path.stat()
        except OSError:
            continue
        found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def ended(results: SweepResults) -> bool:
    """Whether no process works on the sweep any more, as far as can be known from here.

    On this machine its driver is looked for; of a sweep on another one, all trials and confirmation runs must have
    ended. Trials that agents run one by one may always get another.
    """
    if results.single:
        return False
    session = _last_session(results)
    if session.get("host") == platform.node() and isinstance(session.get("pid"), int):
        return not _runs(session["pid"], session.get("started"))
    running = sum(trial.record.outcome is Outcome.RUNNING for trial in results.trials)
    if running or len(results.trials) < results.spec.num_trials:
        return False
    return results.spec.confirm is None or (results.conclusion is not None and results.conclusion.runs_left == 0)


def _sources(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in WATCHED)
    yield from sorted((folder / "trials").glob("*/epoch.csv"))


def _write(results: SweepResults, every_s: float, say: Callable[[str], None], said: str) -> str:
    """Write the live page, and say so where more trials have ended; returns the line. Of a full disk it says so."""
    done = sum(trial.record.outcome is not Outcome.RUNNING for trial in results.trials)
    page = results.folder / "report.html"
    line = f"{page}: {done} of {results.spec.num_trials} trials have ended"
    try:
        write_page(results, drawn_sections(results), every_s)
    except OSError as error:
        line = f"{page} cannot be written ({error.strerror}); it is tried again when the sweep goes on"
    if line != said:
        say(line)
    return line


def _last_session(results: SweepResults) -> dict[str, Any]:
    sessions = results.provenance.get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions else {}
    return last if isinstance(last, dict) else {}


def _runs(pid: int, started: object) -> bool:
    """Whether the process of a session is alive: a younger process that has its number is another one."""
    try:
        process = psutil.Process(pid)
        since = datetime.strptime(str(started), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        return runs_on(process) and process.create_time() <= since + CLOCK_SLACK_S
    except (psutil.Error, ValueError, OverflowError):
        return False
