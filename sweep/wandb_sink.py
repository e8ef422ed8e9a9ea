"""A trial's rows in Weights & Biases.

W&B is a guest here: whatever happens to its server, its service process or the network, the trial goes on. A server
that does not take the run in `init_timeout_s` makes it an offline run, which `wandb sync` uploads later. wandb is
imported when the first run starts (0.4 s), so that a driver which only asks `resolve_mode` does not pay for it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.metrics import BATCH_STEP, EPOCH_STEP, Level
from model.sinks import Event, Sink
from sweep.blocks import WandbSettings
from sweep.wandb_client import GRACE_S, bounded, reset_client
from sweep.wandb_files import KINDS, OFFLINE, broken_stream, last_rows, unsent_marker
from sweep.wandb_mode import Mode, resolve_mode
from sweep.wandb_run import PICTURE_STEP, RunIdentity, started_run

RETRY_ONLINE_AFTER_S = 300.0  # after a failure, this long no trial of the process waits for the server again
OFFLINE_INIT_LIMIT_S = 40.0  # wandb itself waits 30 s for its service process to start
HELD_ROWS, HELD_S = 16, 2.0  # rows handed over together, and how long one waits for others
ALERT_TITLE = 63  # letters of an alert's title that W&B takes
ASK_LIMIT_S = 5.0  # for one question to the server; who is preempted has little time

STOPPED_QUERY = """
query RunStopped($entity: String, $project: String, $run: String!) {
    project(name: $project, entityName: $entity) { run(name: $run) { shouldStop stopped } }
}
"""

_logger = logging.getLogger("sweep.wandb")


class WandbSink(Sink):
    """One W&B run, a `Sink`. Batch and epoch events are history rows, the summary event goes to the run's summary.

    Rows are handed to wandb a few at a time, and at each epoch's end: what waits when the process is killed comes to
    W&B when the trial is resumed. Online, wandb's client sends what it has every 15 s, and where the server says that
    there is too much (HTTP 429) it waits and sends the same again: no row is lost. With `settings.log_every` = k only
    the updates whose batch/iteration is divisible by k have a row; epochs all have one.

    A picture is a row of its own, `pictures/<name>` beside `pictures/epoch`.

    Args:
        identity: the run.
        config: the trial's parameters, plain JSON values.
        settings: of the spec; a server that does not accept the run in `init_timeout_s` makes it an offline run.
        resumed: an earlier part of this run logged rows; those that W&B holds are not logged again. Which these are is
            asked of W&B's own records: a killed part may have left fewer than it was given.
        finish_timeout_s: how long `close` waits for the upload; the rest stays on disk for `wandb sync`.
        on_gpu: the trial trains there; on a CPU, W&B's system metrics would take too much of a short trial.

    Attributes:
        mode: online, offline or disabled: what the run became.
        lost: W&B's service process does not answer; rows are missing. Another sink, of a new process, can go on with
            the run (`resumed`) once this one is given up (`abandon`).
        asked_to_stop: W&B was told to stop this run: on its page, or by the sweep's own early termination. The sink
            itself goes on.

    Raises:
        ConfigError: a time limit that is not positive. Nothing else ever raises.
    """

    _offline_until_s = -math.inf  # of the process, on the clock of time.monotonic: the server failed of late

    def __init__(
        self,
        identity: RunIdentity,
        config: dict[str, Any],
        settings: WandbSettings,
        resumed: bool = False,
        finish_timeout_s: float = 30.0,
        on_gpu: bool = False,
    ) -> None:
        if not finish_timeout_s > 0:
            raise ConfigError(f"wandb: finish_timeout_s = {finish_timeout_s}; must be a positive number of seconds")
        self._identity = identity
        self._settings = settings
        self._on_gpu = on_gpu
        self._finish_timeout_s = finish_timeout_s
        self._held = (-1, -1)  # (batch/iteration, epoch) of the last rows that W&B holds of earlier parts
        self._epoch = 0  # of the last epoch event
        self._waiting: list[dict[str, float]] = []  # rows that were not handed to wandb yet
        self._waiting_since = 0.0
        self._warned_of: set[str] = set()
        self._run: Any = None
        self.asked_to_stop = False
        self.lost = False
        self.mode, reason = resolve_mode(settings.mode)
        if settings.mode == "online" and self.mode != "online":
            _logger.warning("W&B run %s is %s: %s", identity.id, self.mode, reason)
        if self.mode == "online" and time.monotonic() < WandbSink._offline_until_s:
            self.mode = "offline"
        if resumed and self.mode != "disabled":
            # of what an online part has on disk the server may lack some; it is asked when the run is open
            kinds = (OFFLINE,) if self.mode == "online" else KINDS
            self._held = last_rows(identity.folder, identity.id, kinds)
        if self.mode == "online":
            self._start_online(config)
        if self.mode == "offline":
            self._start_offline(config)

    def log(self, event: Event) -> None:
        """Take one event. A failure is warned of once and never raised."""
        if event.level is Level.EPOCH:
            self._epoch = int(event.values[EPOCH_STEP])
        if self._run is None or self._is_repeated(event) or not self._settings.has_row(event):
            return
        if event.level is Level.SUMMARY:
            self._hand_over()
            with self._warned_once("rows"):
                self._run.summary.update(dict(event.values))
            return
        now = time.monotonic()
        if not self._waiting:
            self._waiting_since = now
        self._waiting.append(dict(event.values))
        # between two updates wandb's code is cold in the caches: a row by itself takes the trainer three times as long
        late = now - self._waiting_since > HELD_S or len(self._waiting) >= HELD_ROWS
        if late or event.level is Level.EPOCH:
            self._hand_over()

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            with self._warned_once("rows"):
                try:
                    self._run.log(row)  # without a step: every call is a row of its own
                except Exception:
                    self.lost = True
                    raise

    def picture(self, name: str, image: NDArray[np.uint8]) -> None:
        """Upload an image [H, W, 3] as `pictures/<name>` of the last epoch. A failure is warned of and never raised."""
        if self._run is None:
            return
        self._hand_over()
        with self._warned_once("pictures"):
            import wandb

            self._run.log({f"pictures/{name}": wandb.Image(image, file_type="png"), PICTURE_STEP: self._epoch})

    @property
    def url(self) -> str | None:
        """The run's page; None of a run that is not online."""
        return self._run.url if self.mode == "online" and self._run is not None else None

    def learn_whether_to_stop(self) -> bool:
        """Ask the server whether this run is to be stopped, in ASK_LIMIT_S at most; sets and returns `asked_to_stop`.

        wandb tells by itself, but up to 30 s later than its agent sends SIGTERM to the trial, and a process that is
        preempted gets the same signal. False where the server does not say.
        """
        if not self.asked_to_stop and self.mode == "online" and self._run is not None:
            with suppress(Exception):
                self.asked_to_stop = bounded(self._stopped_on_server, ASK_LIMIT_S)
        return self.asked_to_stop

    def _stopped_on_server(self) -> bool:
        import wandb

        variables = {"entity": self._run.entity, "project": self._run.project, "run": self._run.id}
        answer = wandb.Api()._service_api.execute_graphql(STOPPED_QUERY, variables=variables)
        run = answer["project"]["run"]
        return bool(run["shouldStop"] or run["stopped"])

    def note_divergence(self, metrics: Sequence[str], reason: str) -> None:
        """These metrics are NaN from here on, no longer those of the last sound epoch; `diverged` says why.

        W&B, and who searches behind its agents, would else take it for a value that the run has. A failure is warned of
        and never raised.
        """
        if self._run is not None:
            self._hand_over()  # not behind the NaN
            with self._warned_once("that it diverged"):
                self._run.log(dict.fromkeys(metrics, math.nan))
                self._run.summary.update({"diverged": reason})

    def mark_preempting(self) -> None:
        """Tell W&B that this process is being taken away: a sweep hands the run out again after an exit code above 0.

        A failure is warned of and never raised.
        """
        if self._run is not None:
            with self._warned_once("that it was preempted"):
                self._run.mark_preempting()

    def alert(self, title: str, text: str, critical: bool) -> None:
        """Send an alert; of an offline run, `wandb sync` sends it later. A failure is warned of and never raised."""
        if self._run is not None:
            with self._warned_once("alerts"):
                self._run.alert(title[:ALERT_TITLE], text, level="ERROR" if critical else "WARN")

    @contextmanager
    def _warned_once(self, lost: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if lost not in self._warned_of:
                self._warned_of.add(lost)
                _warn(f"W&B run %s misses {lost} (%s). The trial goes on.", self._identity, error)

    def close(self, exit_code: int) -> None:
        """End the run; waits at most `finish_timeout_s` (and `GRACE_S` where wandb itself hangs)."""
        if self._run is not None:
            self._hand_over()
        run, self._run = self._run, None
        if run is None:
            return
        try:
            bounded(lambda: run.finish(exit_code=exit_code), self._finish_timeout_s + GRACE_S)
            if self.mode == "online" and (lost := broken_stream(Path(run.dir).parent)):
                raise RuntimeError(lost)
        except Exception as error:
            with suppress(OSError):
                if self.mode == "online":
                    unsent_marker(Path(run.dir).parent).touch()
            folder = self._identity.folder
            _warn(
                "W&B run %s is not complete (%s). Upload the rest: python -m sweep.sync %s",
                self._identity,
                error,
                folder,
            )
            # W&B's service may try an alert again for a quarter of an hour, and this process would wait for its end
            reset_client(kill=True)

    def abandon(self) -> None:
        """Give the run up without a word, and with it W&B's service process of this process."""
        self._run, self._waiting = None, []
        reset_client()

    def _is_repeated(self, event: Event) -> bool:
        if event.level is Level.SUMMARY:
            return False
        iteration, epoch = self._held
        if event.level is Level.BATCH:
            return event.values[BATCH_STEP] <= iteration
        return event.values[EPOCH_STEP] <= epoch

    def _start_online(self, config: dict[str, Any]) -> None:
        try:
            self._run = bounded(lambda: self._init("online", config), self._settings.init_timeout_s + GRACE_S)
        except Exception as error:
            self.mode = "offline"
            WandbSink._offline_until_s = time.monotonic() + RETRY_ONLINE_AFTER_S
            folder = self._identity.folder
            _warn(
                "W&B run %s goes offline (%s). Upload it later: python -m sweep.sync %s", self._identity, error, folder
            )
            reset_client()  # the failed run holds its id, and a second init with that id would never return

        else:
            with suppress(Exception):  # also rows that a part on another machine sent
                summary = self._run.summary
                sent = (summary.get(BATCH_STEP, -1), summary.get(EPOCH_STEP, -1))
                self._held = (max(self._held[0], int(sent[0])), max(self._held[1], int(sent[1])))

    def _start_offline(self, config: dict[str, Any]) -> None:
        def start() -> Any:
            return bounded(lambda: self._init("offline", config), OFFLINE_INIT_LIMIT_S)

        try:
            try:
                self._run = start()
            except Exception:
                reset_client()  # the service process may have died under an earlier trial
                self._run = start()
        except Exception as error:
            _warn("W&B records nothing of run %s (%s). The trial goes on.", self._identity, error)

    def _init(self, mode: Mode, config: dict[str, Any]) -> Any:
        return started_run(
            self._identity,
            mode,
            config,
            limits_s=(self._settings.init_timeout_s, self._finish_timeout_s),
            on_stop=self._note_stop,
            system_metrics=mode == "online" and self._on_gpu and self._settings.system_metrics,
        )

    def _note_stop(self) -> None:
        # wandb's default interrupts the process, which may hold other trials' work
        self.asked_to_stop = True


def _warn(text: str, identity: RunIdentity, error: Exception, *details: object) -> None:
    brief = " ".join(str(error).split())[:300] or type(error).__name__
    _logger.warning(text, identity.id, brief, *details)
