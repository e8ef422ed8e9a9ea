"""A trial in a Ray worker: Ray's Trainable interface around `TrialRun`."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from model.errors import UserError
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, INTERRUPTED, PAUSED, REFUSED

if TYPE_CHECKING:
    from sweep.trial import TrialRun

logger = logging.getLogger(__name__)

ERROR_FILE = "error.txt"
WARNINGS = "trial_warnings"  # key of a result: what the driver should tell the user


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
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Close the trial before, which gets no `cleanup`, and take the next."""
        with _collected_warnings(self._warnings):
            try:
                self._close()
            except Exception as error:  # it is not the next trial's fault
                logger.warning("the end of trial %s was not recorded: %s", self._job.trial, error)
                self._run = None
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        from sweep.trial import TrialJob

        own = {key: config[key] for key in TrialJob.model_fields.keys() & config.keys()}
        self._job = TrialJob.model_validate({**config["shared"], **own})
        self._stop_file = Path(config["stop_file"])

    def step(self) -> dict[str, Any]:
        """One epoch."""
        from sweep.trial import TrialRun

        with _collected_warnings(self._warnings):
            try:
                if self._run is None:
                    if self._stop_file.exists():
                        return {INTERRUPTED: True, "done": True}
                    (self._job.folder / ERROR_FILE).unlink(missing_ok=True)  # of an attempt before this one
                    self._run = TrialRun(self._job, should_stop=self._stop_file.exists)
                report = self._run.run_epoch()
            except UserError as error:
                return {REFUSED: str(error), "done": True}
            except Exception:
                self._job.folder.mkdir(parents=True, exist_ok=True)
                (self._job.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
                raise
        warnings, self._warnings = self._warnings, []
        result = {
            **report.metrics,
            EPOCHS: report.epochs,
            FINISHED: report.finished,
            DIVERGED: report.diverged,
            INTERRUPTED: report.interrupted,
            PAUSED: report.paused,
            "done": report.finished or report.interrupted or report.paused or report.diverged is not None,
        }
        return result | ({WARNINGS: warnings} if warnings else {})

    def cleanup(self) -> None:
        """The worker ends."""
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
