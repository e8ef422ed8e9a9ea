"""Ray Tune runs the trials: the only module that knows Ray (with searcher.py, its interface to our study).

Ray starts and restarts workers, places them, and stops trials early (ASHA). What is known of a trial is not kept in
Ray's state but in the study and the trial's folder, so a sweep goes on after any end of Ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

# read when ray is imported or Tune starts
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a trial with gpu: 0 sees no GPU
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our sinks log; Tune's would do it again
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # the study is the state; Tune's snapshots are not used
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # an interrupted trial reports no metric
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # error.txt has them
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours lets trials leave a checkpoint first

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from model.errors import ConfigError, UserError
from sweep.resources import Resources
from sweep.results import ResultsFolder
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, INTERRUPTED, REFUSED, StudySearcher
from sweep.spec import SweepSpec
from sweep.study import SweepStudy

if TYPE_CHECKING:
    from sweep.trial import TrialRun

logger = logging.getLogger(__name__)

ERROR_FILE = "error.txt"
WARNINGS = "trial_warnings"


class Watcher(Protocol):
    """Is told what happens; the terminal's progress is one."""

    def started(self, trial: str) -> None:
        """A trial began, or began again after a crash."""

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None:
        """A trial ended an epoch."""

    def ended(self, trial: str) -> None:
        """A trial ended in any way; the study knows how."""

    def warning(self, text: str) -> None:
        """Something that the user should read once."""


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

        own = {key: config[key] for key in ("trial", "values", "preset", "config")}
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
            "done": report.finished or report.interrupted or report.diverged is not None,
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


@dataclass(frozen=True)
class _Named:
    """A trial under our own name, which survives the driver; Ray draws a new id each time."""

    trial_id: str


class AshaKeepingPresets(AsyncHyperBandScheduler):
    """Ray's ASHA (Li et al. 2018) with two differences.

    Presets are never stopped: the sweep's gain is measured against them, and needs them trained to the end. And a
    diverged trial leaves no NaN among the values that decide on others.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not math.isfinite(result.get(self._metric, math.nan)):
            return str(TrialScheduler.CONTINUE)
        action = super().on_trial_result(tune_controller, _named(trial), result)
        keep = trial.config.get("preset") is not None and result[self._time_attr] < self._max_t
        return str(TrialScheduler.CONTINUE if keep else action)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if math.isfinite(result.get(self._metric, math.nan)):
            super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _named(trial))

    def replay(self, study: SweepStudy) -> None:
        """Learn what the study's trials reported, so that a resumed sweep decides as an uninterrupted one."""
        for number, values in study.intermediate_values().items():
            trial = _Named(study.trial_name(number))
            super().on_trial_add(None, trial)
            for epoch in sorted(values):
                super().on_trial_result(None, trial, {self._time_attr: epoch + 1, self._metric: values[epoch]})


def _named(trial: Any) -> _Named:
    return _Named(trial.config["trial"])


class _TuneCallback(tune.Callback):
    """Tune's events -> the watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher: Watcher | None = watcher
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_watcher": None, "_warned": set()}  # Tune pickles its callbacks; terminals cannot be

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        self._watcher.started(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        assert self._watcher
        for text in result.get(WARNINGS, ()):
            if text not in self._warned:
                self._warned.add(text)
                self._watcher.warning(text)
        if EPOCHS in result:
            self._watcher.epoch(trial.config["trial"], result[EPOCHS], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        self._watcher.ended(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        self._watcher.warning(f"the worker of trial {trial.config['trial']} died; the trial goes on in another")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        self._watcher.ended(trial.config["trial"])


def run_trials(
    spec: SweepSpec,
    folder: ResultsFolder,
    study: SweepStudy,
    sweep_uid: str,
    num_trials: int,
    watcher: Watcher,
    *,
    search: bool = True,
) -> bool:
    """Run `num_trials` more trials (unfinished ones included) to their ends; True where the user stopped it.

    Args:
        search: trials may be stopped early, and metric.target ends the search; else each trains to its end.

    Raises ConfigError where no node has the resources of one trial.
    """
    mode = "min" if spec.metric.goal == "minimize" else "max"
    searcher = StudySearcher(
        study,
        num_trials,
        metric=spec.metric.name,
        mode=mode,
        make_config=lambda values: study.space.to_config(spec.trainer, values),
        crash_reason=lambda number: _crash_reason(folder, study.trial_name(number)),
        target=spec.metric.target if search else None,
    )
    # in this order: ray.init puts a SIGTERM handler of its own in place of any other
    with _ray() as nodes, _stopping(searcher, folder.stop_file, watcher) as stopped:
        concurrent = max_concurrent(spec.resources, nodes)
        shared = {
            "sweep": spec.name,
            "sweep_uid": sweep_uid,
            "results": str(folder.path),
            "objective": spec.objective.model_dump(mode="json"),
            "wandb": spec.wandb.model_dump(mode="json"),
            "project": spec.project,
            "entity": spec.entity,
            "processes": spec.resources.num_processes,
        }
        resources = {"cpu": spec.resources.cpu, "gpu": spec.resources.gpu}
        tuner = tune.Tuner(
            tune.with_resources(SweepTrainable, resources),
            param_space={"shared": shared, "stop_file": str(folder.stop_file), "threads": spec.resources.threads},
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(spec, study, mode) if search else FIFOScheduler(),
                num_samples=num_trials,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(folder.path),
                verbose=0,
                callbacks=[_TuneCallback(watcher)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=spec.retries.max_failures),
            ),
        )
        tuner.fit()
    return stopped.is_set()


def max_concurrent(resources: Resources, nodes: list[dict[str, float]]) -> int:
    """Trials at the same time on nodes with these resources. Raises ConfigError where no node has room for one."""
    wanted = {"CPU": resources.cpu, "GPU": resources.gpu}
    most = 0
    for node in nodes:
        most += min(math.floor(node.get(name, 0.0) / asked + 1e-9) for name, asked in wanted.items() if asked > 0)
    if most == 0:
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
        raise ConfigError(
            f"resources: a trial asks for {resources.cpu:g} CPU and {resources.gpu:g} GPU, but the largest node that "
            f"Ray has here offers {largest['CPU']:g} CPU and {largest['GPU']:g} GPU; ask for at most that"
        )
    return most if resources.max_concurrent == "auto" else min(most, resources.max_concurrent)


def _scheduler(spec: SweepSpec, study: SweepStudy, mode: str) -> TrialScheduler:
    stop, epochs = spec.early_terminate, _max_epochs(spec)
    if stop is None or stop.first_rung >= epochs:
        return FIFOScheduler()
    scheduler = AshaKeepingPresets(
        time_attr=EPOCHS,
        metric=spec.metric.name,
        mode=mode,
        max_t=epochs,
        grace_period=stop.first_rung,
        reduction_factor=stop.eta,
    )
    scheduler.replay(study)
    return scheduler


def _max_epochs(spec: SweepSpec) -> int:
    searched = spec.space.parameters.get("epochs")
    if searched is not None and searched.count is not None:
        return int(max(searched.value_at(index) for index in range(searched.count)))
    return spec.space.to_config(spec.trainer, {}).epochs


@contextmanager
def _ray() -> Iterator[list[dict[str, float]]]:
    """A Ray of our own on loopback, or the one that a Ray job runs in; yields the resources of its nodes."""
    in_job = bool(os.environ.get("RAY_ADDRESS"))
    options: dict[str, Any] = (
        {"address": "auto"}
        if in_job
        else {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "object_store_memory": 200_000_000,  # trials exchange nothing through it
        }
    )
    with _own_process_group():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **options)
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextmanager
def _own_process_group() -> Iterator[None]:
    """Processes started within are of another group than ours.

    A SIGTERM to our whole group (`timeout`, `kill -- -PGID`, some schedulers) would end Ray before the trials could
    write their checkpoints. The group is made by a helper, since a group's leader cannot leave it for a new one.
    """
    before = os.getpgrp()
    with subprocess.Popen(["sleep", "600"], process_group=0) as helper:
        try:
            with suppress(OSError):  # a session's leader must stay; then Ray shares its group
                os.setpgid(0, helper.pid)
            yield
        finally:
            with suppress(OSError):
                os.setpgid(0, before)
            helper.kill()


@contextmanager
def _stopping(searcher: StudySearcher, stop_file: Path, watcher: Watcher) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM asks the trials to leave checkpoints and end; a second SIGINT ends at once."""
    stopped = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        searcher.stopping = True
        stop_file.touch()
        watcher.warning("stopping: trials write their checkpoints; once more ends at once")

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals reach the main thread only
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)


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


def _crash_reason(folder: ResultsFolder, trial: str) -> str:
    """Why a trial crashed: the last line of its traceback, where it left one."""
    try:
        text = (folder.trial_folder(trial) / ERROR_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return "its worker process died (killed, or out of memory)"
    return f"{text.splitlines()[-1]} (trials/{trial}/{ERROR_FILE})"
