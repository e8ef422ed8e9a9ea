"""Ray Tune runs the trials. Beside this module, only its parts know Ray: searcher, schedulers and trainable.

Ray starts and restarts workers, places them, and stops trials early. What is known of a trial is not kept in Ray's
state but in the study and the trial's folder, so a sweep goes on after any end of Ray.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

# read when ray is imported or Tune starts
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a trial with gpu: 0 sees no GPU
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our sinks log; Tune's would do it again
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # the study is the state; Tune's snapshots are not used
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # an interrupted trial reports no metric
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # error.txt has them
# of deaths that we tell of in a line, Ray tells in 20
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Raylet is terminated|A worker died|The autoscaler failed")
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours lets trials leave a checkpoint first

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from model.errors import ConfigError
from sweep import preflight
from sweep.cluster import Cluster, fits, ray_cluster
from sweep.faults import MachineError, out_of_memory, storage_trouble
from sweep.halt import GO_ON, Halt, Overdue
from sweep.logs import kept
from sweep.memory import is_wanted
from sweep.memory_task import check_memory
from sweep.population import PopulationSearcher
from sweep.resources import Resources
from sweep.results import ResultsFolder
from sweep.schedulers import make_scheduler
from sweep.searcher import EPOCHS, PAUSED, StudySearcher
from sweep.spec import SweepSpec
from sweep.stopping import StopRules
from sweep.study import SweepStudy
from sweep.trainable import ERROR_FILE, FINDINGS, URL, WARNINGS, SweepTrainable
from sweep.watchdog import STACKS, StoppedProcesses, take_stacks

# of Tune's own snapshots, which nobody needs, it prints a traceback where the disk is full
logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)

LOOK_EVERY_S = 2.0  # how often the driver looks for processes of trials that are stopped


class Watcher(Protocol):
    """Is told what happens; the terminal's progress is one."""

    def started(self, trial: str) -> None:
        """A trial began, or began again after a crash."""

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None:
        """A trial ended an epoch."""

    def ended(self, trial: str) -> None:
        """A trial ended in any way; the study knows how."""

    def finding(self, trial: str, text: str, severity: str) -> None:
        """The diagnosis found something in a trial; `severity` is one of sweep.limits.Severity."""

    def online(self, url: str) -> None:
        """A trial's W&B run is online, at this page."""

    def warning(self, text: str) -> None:
        """Something that the user should read once."""


class _TuneCallback(tune.Callback):
    """Tune's events -> the watcher, whose own files may be on a full disk; and a look at the trials' processes."""

    def __init__(self, watcher: Watcher, halt: Halt, folder: ResultsFolder, hang_s: float | None) -> None:
        self._watcher: Watcher | None = watcher
        self._halt = halt
        self._folder = folder
        self._stopped_processes = StoppedProcesses(hang_s)
        self._looked = 0.0
        self._warned: set[str] = set()
        self._paused: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_watcher": None, "_warned": set(), "_paused": set()}  # Tune pickles its callbacks; terminals cannot be

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._halt.check()
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self._looked = time.monotonic()
            running = [trial.config["trial"] for trial in trials if trial.status == Trial.RUNNING]
            self._stopped_processes.look(map(self._folder.trial_folder, running))

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
        if URL in result:
            self._watcher.online(result[URL])
        for text, severity in result.get(FINDINGS, ()):
            self._watcher.finding(trial.config["trial"], text, severity)
        if EPOCHS in result:
            self._watcher.epoch(trial.config["trial"], result[EPOCHS], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        trial.metric_analysis.clear()  # averages of every number that was told, 10 KiB of each trial: nobody asks
        trial.metric_n_steps.clear()
        if trial.last_result.get(PAUSED):
            self._paused.add(trial.config["trial"])
        else:
            self._ended(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self._watcher
        name = trial.config["trial"]
        hung = take_stacks(self._folder.trial_folder(name))
        what = f"hung and was ended (trials/{name}/{STACKS})" if hung else "died"
        self._watcher.warning(f"the worker of trial {name} {what}; the trial goes on in another")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial.config["trial"])

    def _ended(self, trial: str) -> None:
        assert self._watcher
        with self._halt.on_full_disk():
            self._watcher.ended(trial)


@dataclass(frozen=True)
class Search:
    """What an engine drives to its end.

    Attributes:
        trainable: runs a trial, an epoch a step.
        shared: what the config of every trial holds beside what the searcher suggests.
        searcher, scheduler: which trial comes next, and which one stops early.
        callback: is told what happens.
        num_trials: -1 where only the searcher knows.
        concurrent: trials at a time.
    """

    spec: SweepSpec
    folder: ResultsFolder
    trainable: type[tune.Trainable]
    shared: dict[str, Any]
    searcher: StudySearcher
    scheduler: TrialScheduler
    callback: tune.Callback
    num_trials: int
    concurrent: int


class Engine(Protocol):
    """What trials run on."""

    def opened(self, verbose: bool) -> AbstractContextManager[Cluster]:
        """The machines, within."""

    def check_memory(self, spec: SweepSpec, concurrent: int, stopped: Callable[[], bool]) -> str | None:
        """As sweep.memory_task.check_memory."""

    def fit(self, search: Search) -> None:
        """Run the search to its end."""


class RayTune:
    """The engine of sweeps."""

    def opened(self, verbose: bool) -> AbstractContextManager[Cluster]:
        return ray_cluster(verbose)

    def check_memory(self, spec: SweepSpec, concurrent: int, stopped: Callable[[], bool]) -> str | None:
        return check_memory(spec, concurrent, stopped)

    def fit(self, search: Search) -> None:
        resources = search.spec.resources
        tune.Tuner(
            tune.with_resources(search.trainable, {"cpu": resources.cpu, "gpu": resources.gpu}),
            param_space=search.shared,
            tune_config=tune.TuneConfig(
                search_alg=search.searcher,
                scheduler=search.scheduler,
                num_samples=search.num_trials,
                max_concurrent_trials=search.concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(search.folder.path),
                verbose=0,
                callbacks=[search.callback],
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=search.spec.retries.max_failures),
            ),
        ).fit()


ENGINE: Engine = RayTune()
"""The one that `run_trials` uses where no other is given."""


def run_trials(
    spec: SweepSpec,
    folder: ResultsFolder,
    study: SweepStudy,
    sweep_uid: str,
    num_trials: int,
    watcher: Watcher,
    *,
    search: bool = True,
    remote: str | None = None,
    verbose: bool = False,
    trainable: type[tune.Trainable] = SweepTrainable,
    engine: Engine | None = None,
) -> bool:
    """Run `num_trials` more trials (unfinished ones included) to their ends; True where the user stopped it.

    Args:
        search: trials may be stopped early, and search.stop may end the search; else each trains to its end.
        remote: URL that the folder is the local copy of.
        verbose: print what Ray and its workers say, which else goes to the folder's logs.
        trainable: what runs a trial in a worker.
        engine: what runs the workers; None means ENGINE.

    Raises:
        ConfigError: no node has the resources of one trial, or nodes are not fit for the sweep.
        MachineError: the disk is full, or Ray has died; what was under way is left for a later driver.
    """
    engine = engine or ENGINE
    population = search and spec.search.pbt is not None
    searcher = _searcher(spec, folder, study, num_trials, search)

    def hand_out_no_more() -> None:
        searcher.stopping = True

    halt = Halt(folder.stop_file, watcher.warning, hand_out_no_more)
    searcher.on_trouble, searcher.machine_failed = halt.fail, halt.ray_died
    # in this order: ray.init puts a SIGTERM handler of its own in place of any other
    with (
        halt.guarding(),
        kept(folder.path, verbose) as logs,
        engine.opened(verbose) as cluster,
        halt.signals(),
        halt.watching_ray(cluster.address),
    ):
        logs.follow(cluster.logs, cluster.job)
        concurrent = max_concurrent(spec.resources, [node.resources for node in cluster.nodes])
        if cluster.address is not None:
            watcher.warning(cluster.summary)
        preflight.check(
            spec,
            folder,
            cluster,
            num_trials=num_trials,
            concurrent=min(concurrent, num_trials),
            warn=watcher.warning,
            remote=remote,
            stopped=lambda: halt.asked,
        )
        if search and is_wanted(spec.resources):
            on_one_node = max(fits(spec.resources, node.resources) for node in cluster.nodes)
            if text := engine.check_memory(spec, min(concurrent, num_trials, on_one_node), lambda: halt.asked):
                watcher.warning(text)
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
            "hang_s": spec.retries.hang_s,
            "remote": remote,
        }
        try:
            engine.fit(
                Search(
                    spec=spec,
                    folder=folder,
                    trainable=trainable,
                    shared={"shared": shared, "stop_file": str(folder.stop_file), "threads": spec.resources.threads},
                    searcher=searcher,
                    scheduler=make_scheduler(spec, study) if search else FIFOScheduler(),
                    callback=_TuneCallback(watcher, halt, folder, spec.retries.hang_s),
                    num_trials=-1 if population else num_trials,  # parts of trials; the searcher knows when it is over
                    concurrent=concurrent,
                )
            )
        except Overdue:
            pass
        except Exception as error:
            if not halt.ray_died() and halt.trouble is None:
                if (trouble := storage_trouble(error, folder.path)) is None:
                    raise
                halt.fail(trouble)
    if halt.trouble is not None:
        raise MachineError(f"{halt.trouble}; {GO_ON}")
    if searcher.ended_by is not None:
        watcher.warning(f"no new trials: {searcher.ended_by}")
    return halt.asked


def _searcher(
    spec: SweepSpec, folder: ResultsFolder, study: SweepStudy, num_trials: int, search: bool
) -> StudySearcher:
    def crash_reason(number: int) -> str:
        return _crash_reason(folder, study.trial_name(number), spec.retries.hang_s)

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
    most = sum(fits(resources, node) for node in nodes)
    if most == 0:
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
        raise ConfigError(
            f"resources: a trial asks for {resources.cpu:g} CPU and {resources.gpu:g} GPU, but the largest node that "
            f"Ray has here offers {largest['CPU']:g} CPU and {largest['GPU']:g} GPU; ask for at most that"
        )
    return most if resources.max_concurrent == "auto" else min(most, resources.max_concurrent)


def _crash_reason(folder: ResultsFolder, trial: str, hang_s: float | None) -> str:
    """Why a trial crashed: that it hung, or the last line of its traceback, where it left one."""
    if take_stacks(folder.trial_folder(trial)):
        return f"it hung: no batch for {hang_s:g} s (retries.hang_s); where it stood: trials/{trial}/{STACKS}"
    try:
        text = (folder.trial_folder(trial) / ERROR_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return "its worker process died (killed, or out of memory)"
    return f"{out_of_memory(text) or text.splitlines()[-1]} (trials/{trial}/{ERROR_FILE})"
