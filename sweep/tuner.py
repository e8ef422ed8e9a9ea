"""Ray Tune runs the trials. Beside this module, only its parts know Ray: searcher, schedulers and trainable.

Ray starts and restarts workers, places them, and stops trials early. What is known of a trial is not kept in Ray's
state but in the study and the trial's folder, so a sweep goes on after any end of Ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

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
from ray.tune.schedulers import FIFOScheduler

from model.errors import ConfigError
from sweep.population import PopulationSearcher
from sweep.resources import Resources
from sweep.results import ResultsFolder
from sweep.schedulers import make_scheduler
from sweep.searcher import EPOCHS, PAUSED, StudySearcher
from sweep.spec import SweepSpec
from sweep.stopping import StopRules
from sweep.study import SweepStudy
from sweep.trainable import ERROR_FILE, WARNINGS, SweepTrainable


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


class _TuneCallback(tune.Callback):
    """Tune's events -> the watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher: Watcher | None = watcher
        self._warned: set[str] = set()
        self._paused: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_watcher": None, "_warned": set(), "_paused": set()}  # Tune pickles its callbacks; terminals cannot be

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        if trial.config["trial"] not in self._paused:
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
        if trial.last_result.get(PAUSED):
            self._paused.add(trial.config["trial"])
        else:
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
        search: trials may be stopped early, and search.stop may end the search; else each trains to its end.

    Raises ConfigError where no node has the resources of one trial.
    """
    population = search and spec.search.pbt is not None
    searcher = _searcher(spec, folder, study, num_trials, search)
    # in this order: ray.init puts a SIGTERM handler of its own in place of any other
    with _ray() as nodes, _stopping(searcher, folder.stop_file, watcher) as stopped:
        concurrent = max_concurrent(spec.resources, nodes)
        shared = {
            "sweep": spec.name,
            "sweep_uid": sweep_uid,
            "results": str(folder.path),
            "objective": spec.objective.model_dump(mode="json"),
            "metrics": [metric.name for metric in spec.objectives],
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
                scheduler=make_scheduler(spec, study) if search else FIFOScheduler(),
                num_samples=-1 if population else num_trials,  # parts of trials; the searcher knows when it is over
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
    if searcher.ended_by is not None:
        watcher.warning(f"no new trials: {searcher.ended_by}")
    return stopped.is_set()


def _searcher(
    spec: SweepSpec, folder: ResultsFolder, study: SweepStudy, num_trials: int, search: bool
) -> StudySearcher:
    def crash_reason(number: int) -> str:
        return _crash_reason(folder, study.trial_name(number))

    if search and spec.search.pbt is not None:
        return PopulationSearcher(spec, folder.path, study, num_trials, crash_reason)
    return StudySearcher(
        study,
        num_trials,
        metrics=spec.objectives,
        make_config=lambda values: study.space.to_config(spec.trainer, values),
        crash_reason=crash_reason,
        rules=StopRules(spec.search.stop, spec.objectives, spec.resources.gpu) if search else None,
    )


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


def _crash_reason(folder: ResultsFolder, trial: str) -> str:
    """Why a trial crashed: the last line of its traceback, where it left one."""
    try:
        text = (folder.trial_folder(trial) / ERROR_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return "its worker process died (killed, or out of memory)"
    return f"{text.splitlines()[-1]} (trials/{trial}/{ERROR_FILE})"
