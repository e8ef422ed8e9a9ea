"""A trial in a Ray worker: Ray's Trainable interface around `TrialRun`."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from model.errors import UserError
from model.metrics import OBJECTIVE_NAMES
from sweep.faults import storage_trouble
from sweep.ownership import TakenOverError
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, INTERRUPTED, PAUSED, REFUSED, TROUBLE

if TYPE_CHECKING:
    from sweep.trial import TrialRun

logger = logging.getLogger(__name__)

ERROR_FILE = "error.txt"
WARNINGS = "trial_warnings"  # key of a result: what the driver should tell the user
FINDINGS = "trial_findings"  # likewise: (text, severity) of what the diagnosis found in this trial
URL = "wandb_url"  # key of a result: the page of the trial's run
SAME_REQUEST_S = 3.0  # within which the driver, too, has got a SIGTERM that was sent to all


class WorkerTerminatedError(RuntimeError):
    """This worker alone is to end: its node is taken away, for example."""


class SweepTrainable(tune.Trainable):
    """A trial in a Ray worker. The worker is reused: its next trial comes by `reset_config`.

    The TrialRun is opened in the first `step`, so that whatever fails there is an error of that trial.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial; cheap, the imports aside."""
        import torch

        import sweep.trial  # noqa: F401  # heavy: once per worker, while no trial waits for it

        torch.set_num_threads(config["threads"])
        self._run: TrialRun | None = None
        self._warnings: list[str] = []
        self._url: str | None = None  # of the trial's W&B run, until the driver was told
        self._terminated = threading.Event()
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Close the trial before, which gets no `cleanup`, and take the next."""
        with _collected_warnings(self._warnings), _ending_when_late():
            try:
                self._close()
            except TakenOverError:
                raise
            except Exception as error:  # it is not the next trial's fault
                logger.warning("the end of trial %s was not recorded: %s", self._job.trial, error)
                self._run = None
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        from sweep.trial_job import TrialJob

        own = {key: config[key] for key in TrialJob.model_fields.keys() & config.keys()}
        self._job = TrialJob.model_validate({**config["shared"], **own})
        self._stop_file = Path(config["stop_file"])

    def step(self) -> dict[str, Any]:
        """One epoch."""
        from sweep.trial import TrialRun

        with _collected_warnings(self._warnings), _ending_when_late(), _noted(signal.SIGTERM, self._terminated):
            try:
                if self._run is None:
                    if self._stop_file.exists():
                        return {INTERRUPTED: True, "done": True}
                    (self._job.folder / ERROR_FILE).unlink(missing_ok=True)  # of an attempt before this one
                    self._run = TrialRun(self._job, should_stop=self._should_stop)
                    self._url = self._run.url
                report = self._run.run_epoch()
                if report.interrupted and self._terminated.is_set():
                    self._wait_for_the_driver_to_stop()
            except TakenOverError:
                raise
            except Exception as error:
                if (trouble := storage_trouble(error, self._job.folder)) is not None:
                    return {INTERRUPTED: True, TROUBLE: trouble, "done": True}
                if isinstance(error, UserError):
                    return {REFUSED: str(error), "done": True}
                self._job.folder.mkdir(parents=True, exist_ok=True)
                (self._job.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
                raise
        warnings, self._warnings = self._warnings, []
        # Tune keeps averages of every number it is told, for every trial: 25 KiB of the driver's memory
        told = (*self._job.metrics, *OBJECTIVE_NAMES)
        result: dict[str, Any] = {
            **{name: report.metrics[name] for name in told if name in report.metrics},
            EPOCHS: report.epochs,
            FINISHED: report.finished,
            DIVERGED: report.diverged,
            INTERRUPTED: report.interrupted,
            PAUSED: report.paused,
            "done": report.finished or report.interrupted or report.paused or report.diverged is not None,
        }
        if report.findings:
            result[FINDINGS] = report.findings
        if self._url is not None:
            result[URL], self._url = self._url, None
        return result | ({WARNINGS: warnings} if warnings else {})

    def _should_stop(self) -> bool:
        return self._terminated.is_set() or self._stop_file.exists()

    def _wait_for_the_driver_to_stop(self) -> None:
        """Some schedulers send SIGTERM to every process of a sweep. Raises WorkerTerminatedError where only this
        worker got it: the trial then goes on in another one, from the checkpoint that it has left."""
        give_up = time.monotonic() + SAME_REQUEST_S
        while not self._stop_file.exists():
            if time.monotonic() > give_up:
                raise WorkerTerminatedError("the trial's worker was sent SIGTERM; the trial left a checkpoint")
            time.sleep(0.05)

    def cleanup(self) -> None:
        """The worker ends."""
        with _ending_when_late():
            self._close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For Tune's own use of checkpoints; a trial that is resumed uses its folder's."""
        assert self._run is not None
        self._run.save(Path(checkpoint_dir) / "last.pt")

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the next model may have another size


@contextmanager
def _ending_when_late() -> Iterator[None]:
    """End this process where its trial was given to another one.

    At once: at an orderly end W&B's client would still close the run, which goes on elsewhere.
    """
    try:
        yield
    except TakenOverError:
        os._exit(1)


@contextmanager
def _noted(number: signal.Signals, came: threading.Event) -> Iterator[None]:
    """Within, the signal sets the event, where Ray would end the worker at once. In the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: came.set())
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _collected_warnings(texts: list[str]) -> Iterator[None]:
    """Warnings of our own loggers into `texts`, to be sent to the driver: a worker's terminal is nobody's."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler = Collect(level=logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("sweep", "model")]
    for log in loggers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for log in loggers:
            log.removeHandler(handler)
