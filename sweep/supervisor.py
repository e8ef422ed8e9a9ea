"""Starts several W&B agents of a sweep, and starts again those that die. See sweep/agents.py."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sweep.agent_log import LogReader
from sweep.family import GRACE_S, Family, end_with_parent
from sweep.shared_service import SERVICE_STOP_S, WANDB, SharedService
from sweep.slots import SLOT

MAX_RESTARTS, RESTART_WINDOW_S = 3, 600.0  # of an agent: one that dies more often than that is not started again
RESTART_DELAY_S = 2.0  # before the first; four times as long before each of the next
SAME_SIGTERM_S = 10.0  # a second SIGTERM within is the same request
POLL_S = 0.3


class Place:
    """One of the agents, and those that follow it when it dies.

    Attributes:
        process: the agent, while it runs.
        ended_well: None until no agent is to be started here any more.
        over: the same, and no trial is left behind either.
    """

    def __init__(self, slot: int, folder: Path) -> None:
        self.slot = slot
        self.path = folder / f"agent-{slot}.log"
        self.log = LogReader(self.path)
        self.process: subprocess.Popen[bytes] | None = None
        self.ended_well: bool | None = None
        self.over = False
        self.start_at = 0.0
        self.deaths: list[float] = []

    def say(self, text: str) -> None:
        """A line on the terminal."""
        print(f"agent {self.slot}: {text}", flush=True)

    def start(self, command: list[str], environ: dict[str, str]) -> None:
        """Start the agent, with all its output in the log."""
        with self.path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**environ, SLOT: str(self.slot)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us, who pass it on
                preexec_fn=end_with_parent,  # there are no threads here, so it is safe
            )

    def next_start(self, now: float) -> float | None:
        """When the agent that died now is to be started again; None if it has died too often."""
        self.deaths = [death for death in self.deaths if now - death < RESTART_WINDOW_S]
        if len(self.deaths) >= MAX_RESTARTS:
            return None
        self.deaths.append(now)
        return now + RESTART_DELAY_S * 4 ** (len(self.deaths) - 1)


class Supervisor:
    """Runs `num` agents of a sweep until all have ended, or somebody asks them to stop.

    Args:
        sweep: [[ENTITY/]PROJECT/]SWEEP.
        num: agents.
        folder: gets agent-<slot>.log.
        environ: of the agents.
        count: runs of each agent; None: until the sweep ends.
    """

    def __init__(self, sweep: str, num: int, folder: Path, environ: dict[str, str], count: int | None = None) -> None:
        self._sweep = sweep
        self._count = count
        self._folder = folder
        self._places = [Place(slot, folder) for slot in range(num)]
        self._family = Family(environ)
        self._signals = 0
        self._stopping_since: float | None = None

    def run(self) -> int:
        """Returns the exit code: 0 all ended well, 1 not all, 130 stopped by a signal."""
        print(f"sweep {self._sweep}: {_plural(len(self._places), 'agent')}, logs in {self._folder}", flush=True)
        with self._catching_signals():
            service = SharedService(self._family)
            try:
                while not self._look(service):
                    time.sleep(POLL_S)
            finally:
                self._family.kill()  # after a second signal, or too long a wait; else there is none
                service.stop(limit_s=SERVICE_STOP_S if self._signals < 2 else 0)
        runs = _plural(sum(place.log.runs_ended for place in self._places), "run")
        ill = sum(not place.ended_well for place in self._places)
        if self._stopping_since is not None:
            print(f"stopped after {runs}", flush=True)
            return 130
        print(f"all agents have ended, after {runs}" + (f"; {ill} did not end well" if ill else ""), flush=True)
        return 1 if ill else 0

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        first = math.inf  # when SIGTERM came first

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal first
            now = time.monotonic()
            # Slurm may send SIGTERM to us, and to the script that passes it on to us
            if number != signal.SIGTERM or not 0 <= now - first < SAME_SIGTERM_S:
                self._signals += 1
            first = min(first, now)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _look(self, service: SharedService) -> bool:
        """Look once at everything; True when all is over, or what is left is to be killed."""
        now = time.monotonic()
        if self._stopping_since is None:
            if self._signals:
                self._stopping_since = now
                self._pass_on()
            else:
                service.keep_alive()
        elif self._signals > 1 or now > self._stopping_since + GRACE_S:
            return True
        for place in self._places:
            if not place.over:
                self._look_at(place, service.environ, now)
        return all(place.over for place in self._places)

    def _pass_on(self) -> None:
        """Agents pass SIGTERM on to their trials and wait for them."""
        print(f"stopping: trials write their checkpoints, {GRACE_S:.0f} s at most; once more kills them", flush=True)
        for place in self._places:
            if place.process is not None:
                place.process.terminate()

    def _look_at(self, place: Place, environ: dict[str, str], now: float) -> None:
        if place.process is not None:
            code = place.process.poll()  # before the log is read, so that its end is
            for line in place.log.news():
                place.say(line)
            if code is not None:
                place.process = None
                self._has_ended(place, code, now)
        elif not self._family.end(place.slot, now):
            return  # a trial still uses the place
        elif place.ended_well is not None or self._stopping_since is not None:
            place.over = True
        elif now >= place.start_at:
            self._start(place, environ)

    def _start(self, place: Place, environ: dict[str, str]) -> None:
        command = [*WANDB, "agent", "--forward-signals"]
        if self._count is not None:
            command += ["--count", str(self._count - place.log.runs_ended)]
        place.start([*command, self._sweep], environ)
        place.say("started again" if place.deaths else "started")

    def _has_ended(self, place: Place, code: int, now: float) -> None:
        log, runs = place.log, _plural(place.log.runs_ended, "run")
        how = f"killed by signal {-code}" if code < 0 else f"code {code}"
        why = f": {log.trouble}" if code > 0 and log.trouble else ""
        if self._stopping_since is not None:
            place.say(f"ended ({how}), {runs}")
        elif log.gave_up or (code > 0 and not log.heard):
            place.ended_well = False
            place.say(f"ended ({how}{why}), {runs}; see {place.path}")
        elif code == 0 or (self._count is not None and log.runs_ended >= self._count):
            place.ended_well = True
            place.say(f"ended ({how}), {runs}")
        elif (start_at := place.next_start(now)) is not None:
            place.start_at = start_at
            place.say(f"died ({how}{why}); it is started again in {start_at - now:.0f} s")
        else:
            place.ended_well = False
            often = f"{MAX_RESTARTS + 1} times in {RESTART_WINDOW_S / 60:.0f} minutes"
            place.say(f"died ({how}{why}), {often}, and is not started again; see {place.path}")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
