"""One trial: a config, its sinks, its objective. Ray, W&B agents and a plain loop drive it alike, epoch by epoch.

A trial's folder is the truth about it: a trial that is opened again, by whomever, goes on from the checkpoint there.

`python -m sweep.trial SPEC --alpha=0.3` runs one trial by hand or for a W&B agent: see sweep/single.py.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below, which take seconds: signals are caught there
    import sys

    from sweep.single import main

    sys.exit(main())

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from model.checkpoint import (
    CheckpointError,
    forget_previous,
    has_checkpoint,
    resume_from,
    save_checkpoint,
)
from model.config import TrainConfig
from model.data.clips import Clips, load_clips
from model.data.config import DataConfig
from model.device import pick_device, pick_precision
from model.folder import LAST
from model.metrics import Level
from model.sinks import CsvSink, Event, History, Row, Sink, remove_scratch, sound_rows, write_text
from model.team import Team
from model.trainer import NonFiniteLossError, Trainer
from sweep.adoption import adopt_copy
from sweep.diagnosis_live import LiveDiagnosis
from sweep.diagnosis_told import read_told, write_told
from sweep.limits import Severity
from sweep.mirror import TrialMirror
from sweep.objective import Objective
from sweep.ownership import Ownership, TakenOverError
from sweep.trial_job import EpochReport, TrialJob
from sweep.wandb_run import RunIdentity
from sweep.wandb_sink import WandbSink
from sweep.watchdog import Watchdog

SAVE_EVERY_S = 60.0  # a killed trial loses at most about a minute of training
PAUSED = ".paused"  # in the trial's folder while it waits for its next part: all its rows were handed to the sinks
LOOK_EVERY_S = 0.5  # how often a trial looks whether it should stop
END_LIMIT_S, STOP_LIMIT_S = 600.0, 12.0  # how long a trial that ended, or is stopped, waits for a store to take files
MAX_RENEWALS = 3  # of the service process of W&B, in one part of a trial

logger = logging.getLogger(__name__)


class TrialRun:
    """A trial under way. Call `run_epoch` until its report says that it ended, then (or earlier) `close`.

    Args:
        job: the trial.
        should_stop: asked about every LOOK_EVERY_S seconds; True ends the trial with a checkpoint, also mid-epoch.
        obeys_wandb: W&B may stop this trial, and starts it again after it was interrupted: it is one that W&B's agent
            started, or that runs by itself. Trials of our own sweeps are stopped where the sweep runs.
    """

    def __init__(
        self, job: TrialJob, should_stop: Callable[[], bool] = lambda: False, obeys_wandb: bool = False
    ) -> None:
        self.job = job
        self._should_stop = should_stop
        self._obeys_wandb = obeys_wandb
        self._checkpoint = job.folder / LAST
        self._owner = Ownership(job.folder)
        self._watchdog = Watchdog(job.hang_s, job.folder)
        self._mirror = _mirror(job)
        clips = _clips(job.config.data)
        self._team = Team(job.processes, pick_device(job.config).type)
        try:
            with self._team.explaining(), self._watchdog.watching():
                self._open(clips)
        except BaseException:
            self._let_go()
            raise

    def _open(self, clips: Clips) -> None:
        job = self.job
        self._owner.take()
        remove_scratch(job.folder, self._checkpoint.parent)
        if self._mirror is not None:
            with self._watchdog.paused():  # the store's client has time limits of its own
                self._mirror.fetch(lambda text: _is_config(text, job.config))
        has_rows = (job.folder / "batch.csv").exists()
        pause = job.folder / PAUSED
        whole = pause.exists()
        pause.unlink(missing_ok=True)  # a part that is killed leaves none
        if (note := adopt_copy(self._checkpoint, job.config)) is not None:
            logger.warning("trial %s keeps its own weights: %s", job.trial, note)
        self._trainer, kept = self._resumed(clips)
        self._trainer.batches.on_batch = self._watchdog.alive
        self._objective = Objective.replay(kept.epoch, kept.batch, job.objective)
        for row in kept.batch:
            if row["batch/epoch"] >= self._trainer.epoch:
                self._objective.add_batch(row)
        self._diagnosis = LiveDiagnosis(job.config, read_told(job.folder))
        self._diagnosis.replay(kept.epoch, kept.batch)
        schedule = "".join(f"# {change}\n" for change in job.changes)
        text = config_text(job.config, f"trial {job.trial} of sweep {job.sweep}")
        write_text(job.folder / "config.yaml", schedule + text)
        self._owner.check()
        csv = CsvSink(job.folder, keep_batches=len(kept.batch), keep_epochs=len(kept.epoch))
        self._wandb = self._opened_wandb(resumed=has_rows and not whole)
        # a killed part may have left rows in the CSV files that never came to W&B; to ask W&B takes seconds
        for event in kept.events() if not whole else ():
            self._wandb.log(event)
        self._sinks: list[Sink] = [csv, self._wandb]
        self._last_row = kept.epoch[-1] if kept.epoch else None
        self._save_clock, self._look_clock = _Clock(SAVE_EVERY_S), _Clock(LOOK_EVERY_S)
        self._saved_update = self._trainer.update
        self._ended = False
        self._warned_of_stop = False
        self._renewals = 0

    def _opened_wandb(self, resumed: bool) -> WandbSink:
        job = self.job
        with self._watchdog.paused():  # it keeps time limits of its own
            return WandbSink(
                RunIdentity(
                    id=job.wandb_run or f"{job.sweep_uid}-{job.trial}",
                    name=f"{job.sweep}-{job.trial}",
                    group=job.sweep,
                    project=job.project,
                    entity=job.entity,
                    folder=job.results,
                    tags=(job.preset,) if job.preset else (),
                    sweep_id=job.wandb_sweep,
                ),
                self._wandb_config(),
                job.wandb,
                resumed=resumed,
                on_gpu=self._trainer.device.type == "cuda",
            )

    def _renew_wandb(self) -> None:
        """W&B's service process has died: another one is given what that one did not write down."""
        self._renewals += 1
        self._wandb.abandon()
        self._wandb = self._opened_wandb(resumed=True)
        self._sinks[-1] = self._wandb
        for event in self._rows_there().events():
            self._wandb.log(event)
        logger.warning("trial %s: W&B's service process had died; another one was given the rows", self.job.trial)

    @property
    def url(self) -> str | None:
        """The page of the trial's W&B run, where it is online."""
        return self._wandb.url

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return self._trainer.epoch

    def run_epoch(self) -> EpochReport:
        """Train to the end of the current epoch; closes the trial where that was the last one, or it diverged.

        Of a trial that was finished (or had come to `until`) before it was opened, the last epoch is reported again.
        """
        if (self._trainer.finished or self._at_pause) and self._last_row is not None:
            return self._report(self._last_row)
        try:
            with self._team.explaining(), self._watchdog.watching():
                return self._train_epoch()
        except TakenOverError:
            self._ended = True
            self._let_go()
            raise
        except NonFiniteLossError as error:
            findings = self._tell()
            last = f"; the last good checkpoint is {self._checkpoint}" if has_checkpoint(self._checkpoint) else ""
            report = EpochReport(
                epochs=self._trainer.epoch,
                metrics={"objective/value": math.nan},
                diverged=f"{error}{last}",
                findings=findings,
            )
            self._wandb.note_divergence(self.job.metrics, str(error))
            self.close(exit_code=1)
            return report
        except Exception:
            self._close_sinks(exit_code=1)
            raise

    def _train_epoch(self) -> EpochReport:
        for event in self._trainer.run_epoch():
            if event.level is Level.EPOCH:
                return self._end_epoch(event)
            self._objective.add_batch(event.values)
            self._diagnosis.add_batch(event.values)
            self._log(event)
            if self._objective.diverged is not None:
                continue  # the trainer ends it; the last checkpoint stays one of sound weights
            if self._look_clock.due() and (end := self._asked_to_end()) is not None:
                return end
            if self._save_clock.due():
                self._save()
        raise AssertionError("an epoch ends with its event")

    def _asked_to_end(self) -> EpochReport | None:
        """Ends the trial where somebody asks for it; None where nobody does."""
        interrupted = self._should_stop()
        if self._obeys_wandb and (self._wandb.asked_to_stop or (interrupted and self._wandb.learn_whether_to_stop())):
            self.close(exit_code=0)
            return EpochReport(epochs=self._trainer.epoch, metrics=self._metrics(self._last_row or {}), stopped=True)
        if self._wandb.asked_to_stop and not self._warned_of_stop:
            self._warned_of_stop = True
            logger.warning("W&B asked to stop trial %s: ignored; stop it where the sweep runs", self.job.trial)
        if not interrupted:
            return None
        self._save()
        if self._obeys_wandb:
            self._wandb.mark_preempting()
        self._close_sinks(exit_code=1)
        if self._mirror is not None:
            self._mirror.settle(STOP_LIMIT_S)
        return EpochReport(epochs=self._trainer.epoch, metrics={}, interrupted=True)

    def close(self, exit_code: int = 0) -> None:
        """End the trial's record, with its summary; also of a trial that the scheduler stopped. Safe to call twice."""
        if self._ended:
            return
        self._owner.check()
        self._team.close()
        if exit_code == 0:
            self._save()
            forget_previous(self._checkpoint)
        self._log(self._trainer.summary())
        self._close_sinks(exit_code)
        if self._mirror is not None:
            self._mirror.saved(self._trainer.update, ended=True)
            self._mirror.settle(END_LIMIT_S)

    def save(self, path: Path) -> None:
        """Write everything that the rest of the trial depends on."""
        save_checkpoint(path, self._trainer.state_dict())

    def _end_epoch(self, event: Event) -> EpochReport:
        row = dict(event.values) | self._objective.end_epoch(event.values)
        self._last_row = row
        self._diagnosis.add_epoch(row)
        self._log(Event(Level.EPOCH, row))
        if self._trainer.finished and self._objective.diverged is None and self.job.config.pictures:
            picture = self._trainer.picture()
            for sink in self._sinks:
                sink.picture("reconstruction", picture)
        return self._report(row)

    def _report(self, row: Row) -> EpochReport:
        """What the epoch's row says of the trial; ends the trial, or saves a checkpoint where one is due."""
        finished, diverged = self._trainer.finished, self._objective.diverged
        findings = self._tell()  # before the sinks are closed
        paused = self._at_pause and not finished and diverged is None
        if diverged:
            self._wandb.note_divergence(self.job.metrics, diverged)
        if finished or diverged:
            self.close(exit_code=1 if diverged else 0)
        elif paused:
            self._save()
            self._close_sinks(exit_code=0)
            (self.job.folder / PAUSED).touch()
        elif self._save_clock.due():
            self._save()
        return EpochReport(
            epochs=self._trainer.epoch,
            metrics=self._metrics(row),
            finished=finished,
            diverged=diverged,
            findings=findings,
            paused=paused,
        )

    def _tell(self) -> tuple[tuple[str, str], ...]:
        """What the diagnosis says for the first time, alerts sent: text and severity of each finding."""
        if not (new := self._diagnosis.news()):
            return ()
        self._owner.check()
        # before the alerts: whoever is killed in between says one less, never one twice
        write_told(self.job.folder, self._diagnosis.told)
        for found in new:
            if self.job.wandb.alerts and found.severity is not Severity.INFO:
                about = f"trial {self.job.trial} of sweep {self.job.sweep}: {found.text}"
                critical = found.severity is Severity.CRITICAL
                self._wandb.alert(f"trial {self.job.trial}: {found.rule} ({found.severity})", about, critical)
        return tuple((found.text, found.severity.value) for found in new)

    @staticmethod
    def _metrics(row: Row) -> dict[str, float]:
        # as it would stand if this were the last epoch: a sweep may minimise it
        best = {"summary/best_loss": row["epoch/best_loss_so_far"]} if row else {}
        return dict(row) | best

    @property
    def _at_pause(self) -> bool:
        return self.job.until is not None and self._trainer.epoch >= self.job.until

    def _resumed(self, clips: Clips) -> tuple[Trainer, History]:
        """A trainer that goes on from the folder's checkpoint, or a fresh one; and the folder's rows up to there."""
        folder = self.job.folder
        kept = self._rows_there()

        def going_on(state: dict[str, Any]) -> Trainer:
            trainer = self._team.trainer(self.job.config, clips, state)
            if len(kept.batch) < trainer.reported or len(kept.epoch) < trainer.epoch:
                raise CheckpointError(f"{folder}: the CSV files hold fewer rows than the checkpoint knows of")
            return trainer

        trainer = None
        if has_checkpoint(self._checkpoint):
            try:
                trainer, note = resume_from(self._checkpoint, going_on)
                if note is not None:
                    logger.warning("trial %s: %s", self.job.trial, note)
            except CheckpointError as error:
                logger.warning("trial %s starts afresh: %s", self.job.trial, error)
        if trainer is None:
            trainer = self._team.trainer(self.job.config, clips)
        del kept.batch[trainer.reported :], kept.epoch[trainer.epoch :]
        return trainer, kept

    def _rows_there(self) -> History:
        """The rows in the folder; of a damaged file those before the damage: the checkpoint may need no others."""
        folder = self.job.folder
        return History(batch=[*sound_rows(folder / "batch.csv")], epoch=[*sound_rows(folder / "epoch.csv")])

    def _wandb_config(self) -> dict[str, Any]:
        job = self.job
        return {
            **job.config.model_dump(mode="json"),
            **job.values,
            "resolved_device": str(self._trainer.device),
            "resolved_precision": pick_precision(job.config, self._trainer.device),
            "effective_mask_ratio": job.config.effective_mask_ratio,
            "beta": job.config.weights[1],
            "objective": job.objective.model_dump(mode="json"),
            "sweep": job.sweep,
            "trial": job.trial,
            "preset": job.preset,
        }

    def _save(self) -> None:
        # broken weights never take the place of sound ones
        if self._saved_update != self._trainer.update and self._trainer.sound:
            save_checkpoint(
                self._checkpoint, self._trainer.state_dict(), keep_previous=True, last_look=self._owner.check
            )
            self._saved_update = self._trainer.update
            if self._mirror is not None:
                self._mirror.saved(self._trainer.update)

    def _log(self, event: Event) -> None:
        self._owner.check(now=event.level is not Level.BATCH)
        for sink in self._sinks:
            sink.log(event)
        if self._wandb.lost and self._renewals < MAX_RENEWALS:
            self._renew_wandb()

    def _close_sinks(self, exit_code: int) -> None:
        self._owner.check()
        self._ended = True
        self._watchdog.close()  # the sinks have time limits of their own
        for sink in self._sinks:
            sink.close(exit_code)
        self._let_go()

    def _let_go(self) -> None:
        """End all that would outlive the trial in this process; the folder is free for another one."""
        self._watchdog.close()
        self._team.close()
        with suppress(OSError):
            self._owner.release()


class _Clock:
    """Tells when `every_s` seconds have passed since it last said so."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True


def config_text(config: TrainConfig, about: str) -> str:
    """A config as YAML that `python -m model.train` takes, with the effective mask ratio in its head."""
    head = (
        f"# {about}; train it with: python -m model.train THIS_FILE\n"
        f"# {config.num_masked} of {config.num_patches} patches are masked: {config.effective_mask_ratio:.6g}\n"
    )
    return head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _mirror(job: TrialJob) -> TrialMirror | None:
    if job.remote is None:
        return None
    return TrialMirror(job.remote, job.results, job.trial, job.wandb_run or f"{job.sweep_uid}-{job.trial}")


def _is_config(text: str, config: TrainConfig) -> bool:
    """Whether a config.yaml is of this config."""
    try:
        return bool(yaml.safe_load(text) == config.model_dump(mode="json"))
    except yaml.YAMLError:
        return False


@lru_cache(maxsize=4)
def _clips(data: DataConfig) -> Clips:
    """Opened once per process, not once per trial."""
    return load_clips(data)
