"""How a sweep ends before its trials do: a signal asks for it, the disk is full, or Ray itself has died.

In each case the trials are asked to leave a checkpoint. Who does not in ASKED_S is ended, and where Ray no longer
answers, this process ends itself: IDLE_S after the last trial has ended, and nobody waits for longer than LAST_S.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from sweep.faults import storage_trouble

ASKED_S, LAST_S = 20.0, 27.0  # Slurm and Kubernetes kill what has not ended in 30 s
IDLE_S = 10.0  # for Ray to let go of trials that have ended; it does so within a second, or not for a minute
LOOK_EVERY_S, LIST_EVERY_S = 0.5, 5.0
HEAD_SILENT_S, HEAD_GONE_S = 15.0, 50.0  # after 60 s Ray ends a driver without a word that helps
CONNECT_S = 3.0
SAME_REQUEST_S = 10.0  # SIGTERM again within this time is the same request: some schedulers send it by several ways
MACHINE_FAILED, STOPPED = 3, 130  # exit codes
RAY_PROCESSES = ("raylet", "gcs_server")
WORKER = "ray::"  # how the names of Ray's processes begin, and of those that train nothing:
NO_TRIAL = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")
GO_ON = "all that finished is kept; go on with the same command and --resume"


class Overdue(Exception):
    """The trials were asked to end and did not."""


def _below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Machine:
    """What a halt sees of its machine, and does to it."""

    now: Callable[[], float] = time.monotonic
    """A clock, in seconds."""
    below: Callable[[], list[psutil.Process]] = _below
    """The processes that this one has started, and theirs."""
    answers: Callable[[str], bool] = _answers
    """Whether somebody listens at HOST:PORT."""
    end: Callable[[int], NoReturn] = os._exit
    """Ends this process at once, with this exit code."""


class Halt:
    """The end of a sweep before its trials', for whatever reason.

    Args:
        stop_file: tells the trials, wherever they run, to leave a checkpoint and end.
        say: takes a line for the user.
        hand_out_no_more: is called at once.
        machine: what tests put in the place of clock and processes.

    Attributes:
        asked: the user asked for it.
        trouble: what failed; None where nothing did.
    """

    def __init__(
        self,
        stop_file: Path,
        say: Callable[[str], None],
        hand_out_no_more: Callable[[], None],
        machine: Machine | None = None,
    ) -> None:
        self.asked = False
        self.trouble: str | None = None
        self._stop_file = stop_file
        self._say = say
        self._hand_out_no_more = hand_out_no_more
        self._machine = machine or Machine()
        self._since: float | None = None
        self._last_signal = (0, 0.0)
        self._ray: dict[str, psutil.Process] = {}
        self._nobody_left_at: float | None = None  # Ray has died, and no trial trains any more
        self._idle_at: float | None = None  # an end was asked for, and no trial trains any more
        self._children: list[psutil.Process] = []
        self._head: str | None = None
        self._head_seen, self._head_missed = 0.0, False
        self._listed = -math.inf
        self._ended = threading.Event()

    def fail(self, trouble: str) -> None:
        """End the sweep because of this; what is told later is a consequence."""
        if self.trouble is None:
            self.trouble = trouble
            self._say(f"{trouble}. Ending; trials write their checkpoints where they can")
            self._begin()

    @contextmanager
    def on_full_disk(self) -> Iterator[None]:
        """Within, what a file system refuses ends the sweep and is not raised; other errors are."""
        try:
            yield
        except OSError as error:
            trouble = storage_trouble(error, self._stop_file.parent)
            if trouble is None:
                raise
            self.fail(trouble)

    def check(self) -> None:
        """Raise Overdue where the trials have had their time; called from time to time in the main thread."""
        if self._waited() > ASKED_S or self._nobody_left_at is not None:
            raise Overdue

    def ray_died(self) -> bool:
        """Whether a process that Ray cannot do without has died; it is told, unless the sweep is ending anyway."""
        dead = next((name for name, process in self._ray.items() if not _alive(process)), None)
        if dead is not None and not self.asked:
            self.fail(f"Ray's process {dead} has died (killed, or out of memory)")
        return dead is not None

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Within, end this process where an end that was asked for does not come, and see Ray's processes die.

        Put it around Ray's own end, which waits for processes that may be dead.
        """
        guard = threading.Thread(target=self._guard, name="halt", daemon=True)
        guard.start()
        try:
            yield
        finally:
            self._ended.set()
            guard.join()
            self._stop_file.unlink(missing_ok=True)

    @contextmanager
    def watching_ray(self, head: str | None = None) -> Iterator[None]:
        """Within, Ray's processes that this process has started are watched, or the head of a cluster, HOST:PORT."""
        self._head, self._head_seen = head, self._machine.now()
        self._children = self._machine.below()
        self._ray = {child.name(): child for child in self._children if child.name() in RAY_PROCESSES}
        try:
            yield
        finally:
            self._ray, self._head = {}, None  # they are ended now

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Within, SIGINT and SIGTERM ask the trials to end; a second one ends at once (KeyboardInterrupt)."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        (last, at), now = self._last_signal, self._machine.now()
        if self.asked:
            if number == signal.SIGTERM == last and now - at < SAME_REQUEST_S:
                return
            raise KeyboardInterrupt
        self.asked, self._last_signal = True, (number, now)
        self._begin()
        self._say("stopping: trials write their checkpoints; once more ends at once")

    def _begin(self) -> None:
        self._hand_out_no_more()
        if self._since is None:
            self._since = self._machine.now()
        with suppress(OSError):  # on a full disk the trials notice by themselves
            self._stop_file.touch()

    def _waited(self) -> float:
        return 0.0 if self._since is None else self._machine.now() - self._since

    def _guard(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """Look at Ray's processes, and end this process where an end is overdue; `guarding` does so all the time."""
        now = self._machine.now()
        if self.ray_died():
            self._begin()
            if self._nobody_left_at is None and not self._trials_after_rays_death():
                self._nobody_left_at = now
        elif now - self._listed > LIST_EVERY_S:
            self._listed = now
            # not when they are needed: the children of a process that has died are nobody's
            self._children = self._machine.below()
            self._look_at_head()
        # of a cluster that was joined, the trials are nobody's children here
        if self._since is None or not self._ray or any(map(_is_trial, self._children)):
            self._idle_at = None
        elif self._idle_at is None:
            self._idle_at = now
        stuck = self._nobody_left_at is not None and now - self._nobody_left_at > LAST_S - ASKED_S
        idle = self._idle_at is not None and now - self._idle_at > IDLE_S
        if stuck or idle or self._waited() > LAST_S:
            self._end_hard()

    def _look_at_head(self) -> None:
        """End this process where the head of the cluster is gone for good: nothing can be asked of Ray any more."""
        if (head := self._head) is None:
            return
        if self._machine.answers(head):
            if self._head_missed:
                self._say(f"the head of the Ray cluster, {head}, answers again")
            self._head_seen, self._head_missed = self._machine.now(), False
            return
        silent_s = self._machine.now() - self._head_seen
        if silent_s > HEAD_SILENT_S and not self._head_missed:
            self._head_missed = True
            self._say(f"the head of the Ray cluster, {head}, does not answer; waiting {HEAD_GONE_S:.0f} s for it")
        if silent_s > HEAD_GONE_S:
            self.trouble = self.trouble or f"the head of the Ray cluster, {head}, is gone"
            self._end_hard()

    def _trials_after_rays_death(self) -> bool:
        """End what is of no use without Ray; whether there are trials, which still write their checkpoints."""
        for child in self._children:
            if _name(child).startswith(NO_TRIAL):
                with suppress(psutil.Error):  # else they tell the user 30 lines of Ray's own log
                    child.kill()
        return any(map(_is_trial, self._children))

    def _end_hard(self) -> NoReturn:
        for child in self._children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(self._children, timeout=2)
        with suppress(OSError):
            self._stop_file.unlink(missing_ok=True)
        text = f"error: {self.trouble}; {GO_ON}" if self.trouble else f"stopped; {GO_ON}"
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        with suppress(OSError):
            print(f"{show_cursor}{text}", file=sys.stderr, flush=True)
        self._machine.end(MACHINE_FAILED if self.trouble else STOPPED)


def _is_trial(process: psutil.Process) -> bool:
    name = _name(process)
    return name.startswith(WORKER) and not name.startswith(NO_TRIAL) and _alive(process)


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
