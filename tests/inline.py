"""Sweeps in one process, without Ray: the engine that drives the real searcher, scheduler, trainable and callback.

    done = sweep(spec, results, "--resume")  # `python -m sweep.run SPEC --results RESULTS --resume`, in this process
    assert done.code == 0, done.out + done.err

What Ray would do, this loop does in the same order (ray/tune/execution/tune_controller.py): a searcher that is asked
while there is room, actors that are reused, a scheduler's word after each epoch, a trial that is tried again after a
crash. Trials that run at the same time take turns, an epoch each. With `max_concurrent: 1` a sweep is the one that Ray
runs, to the last bit: tests/test_on_ray.py holds the two side by side.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune import Trainable
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import TrialScheduler

from sweep import trial as trial_module
from sweep import tuner
from sweep.cluster import Cluster, Node
from sweep.memory import check_fit
from sweep.probe import measure_peak, memory_task
from sweep.spec import SweepSpec
from sweep.tuner import Search

Epoch = Callable[[str, int], None]


@dataclass
class InlineTrial:
    """What schedulers and callbacks see of a trial of Ray's."""

    trial_id: str
    config: dict[str, Any]
    status: str = Trial.PENDING
    last_result: dict[str, Any] = field(default_factory=dict)
    metric_analysis: dict[str, Any] = field(default_factory=dict)
    metric_n_steps: dict[str, Any] = field(default_factory=dict)
    failures: int = 0
    actor: Trainable | None = None


@dataclass(frozen=True)
class _Storage:
    """Where a trainable may leave files: Ray's directory of the trial, in the results folder."""

    trial_working_directory: str

    @property
    def trial_fs_path(self) -> str:
        return self.trial_working_directory

    def persist_artifacts(self) -> None:
        """They are where they belong."""


class Inline:
    """An engine for `sweep.tuner.run_trials`.

    Args:
        cpus, gpus: what this machine is said to have; with `max_concurrent` they say how many trials take turns.
        before_epoch: is told the name of a trial and the epochs it has, before each of its steps. What it raises,
            the worker raises: an `Exception` is a crash of the trial, anything else the end of the driver.
    """

    def __init__(self, cpus: float = 1.0, gpus: float = 0.0, before_epoch: Epoch | None = None) -> None:
        self.node = Node("inline", "this process", {"CPU": cpus, "GPU": gpus})
        self.before_epoch = before_epoch
        self.actors_made = 0
        self.order: list[str] = []  # trials by their first starts and those after crashes

    def opened(self, verbose: bool) -> AbstractContextManager[Cluster]:
        return nullcontext(Cluster((self.node,), None))

    def check_memory(self, spec: SweepSpec, concurrent: int, stopped: Callable[[], bool]) -> str | None:
        return check_fit(spec, measure_peak(memory_task(spec)), concurrent)

    def fit(self, search: Search) -> None:
        _Loop(self, search).run()


class _Loop:
    """One search."""

    def __init__(self, engine: Inline, search: Search) -> None:
        self._engine, self._search = engine, search
        self._trials: list[InlineTrial] = []
        self._pending: list[InlineTrial] = []  # crashed ones, to be tried again
        self._idle: list[Trainable] = []
        self._told_all = False  # the searcher has no more trials
        self._asked = 0
        self._iteration = 0

    def run(self) -> None:
        """To the end, or to the first thing that is raised; what is open then stays as a kill would leave it."""
        threads = torch.get_num_threads()  # trainables set their own
        try:
            while self._fill() or self._running():
                self._call("on_step_begin")
                for trial in self._running():
                    self._step(trial)
                self._iteration += 1
            for actor in self._idle:
                actor.stop()
        finally:
            torch.set_num_threads(threads)

    def _running(self) -> list[InlineTrial]:
        return [trial for trial in self._trials if trial.status == Trial.RUNNING]

    def _fill(self) -> bool:
        """Start trials while there is room; whether one was started."""
        before = len(self._engine.order)
        while len(self._running()) < self._search.concurrent and (trial := self._next()) is not None:
            self._start(trial)
        return len(self._engine.order) > before

    def _next(self) -> InlineTrial | None:
        if self._pending:
            return self._pending.pop(0)
        if self._told_all or self._asked == self._search.num_trials:
            return None
        trial_id = f"inline_{self._asked:05d}"
        suggestion: Any = self._search.searcher.suggest(trial_id)
        if suggestion is None:  # not now
            return None
        if not isinstance(suggestion, dict):
            self._told_all = True
            return None
        self._asked += 1
        trial = InlineTrial(trial_id, copy.deepcopy({**self._search.shared, **suggestion}))
        self._trials.append(trial)
        self._search.scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        return trial

    def _start(self, trial: InlineTrial) -> None:
        self._engine.order.append(trial.config["trial"])
        folder = self._search.folder.path / "ray" / trial.config["trial"]
        config, storage = copy.deepcopy(trial.config), _Storage(str(folder))
        trial.status = Trial.RUNNING
        if self._idle:
            trial.actor = self._idle.pop()
            assert trial.actor.reset(config, storage=storage)
        else:
            self._engine.actors_made += 1
            trial.actor = self._search.trainable(config, storage)  # type: ignore[arg-type]
        self._call("on_trial_start", trial=trial)

    def _step(self, trial: InlineTrial) -> None:
        assert trial.actor is not None
        try:
            if self._engine.before_epoch is not None:
                self._engine.before_epoch(trial.config["trial"], trial.last_result.get("epochs_done", 0))
            result = trial.actor.train()
        except Exception:
            self._failed(trial)
            return
        result.update(trial_id=trial.trial_id)
        decision = TrialScheduler.STOP
        if not result[DONE]:
            decision = self._search.scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        if decision == TrialScheduler.STOP:
            result.update(done=True)
        else:
            self._search.searcher.on_trial_result(trial.trial_id, result)
        self._call("on_trial_result", trial=trial, result=result)
        trial.last_result = result
        if decision == TrialScheduler.STOP:
            self._complete(trial)

    def _complete(self, trial: InlineTrial) -> None:
        trial.status = Trial.TERMINATED
        self._search.scheduler.on_trial_complete(None, trial, trial.last_result)  # type: ignore[arg-type]
        self._search.searcher.on_trial_complete(trial.trial_id, result=trial.last_result)
        self._call("on_trial_complete", trial=trial)
        assert trial.actor is not None
        self._idle.append(trial.actor)
        trial.actor = None

    def _failed(self, trial: InlineTrial) -> None:
        trial.failures += 1
        trial.actor = None  # Ray's worker dies with its trial
        most = self._search.spec.retries.max_failures
        if most < 0 or trial.failures <= most:
            trial.status = Trial.PENDING
            self._pending.append(trial)
            self._call("on_trial_recover", trial=trial)
            return
        trial.status = Trial.ERROR
        self._search.scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
        self._search.searcher.on_trial_complete(trial.trial_id, error=True)
        self._call("on_trial_error", trial=trial)

    def _call(self, event: str, **about: Any) -> None:
        getattr(self._search.callback, event)(iteration=self._iteration, trials=self._trials, **about)


@contextmanager
def inline_runner(engine: Inline | None = None) -> Iterator[Inline]:
    """Within, `run_trials`, and with it `sweep.run`, run their trials in this process."""
    engine = engine or Inline()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "ENGINE", engine)  # the seam that production names for it
        patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
        before = Path.cwd()
        yield engine
        os.chdir(before)


@dataclass(frozen=True)
class Ran:
    """What `python -m sweep.run` left: its exit code and what it printed."""

    code: int
    out: str
    err: str
    engine: Inline


def run_inline(spec: Path, results: Path, *options: str, engine: Inline | None = None) -> int:
    """`python -m sweep.run SPEC --results RESULTS OPTIONS` in this process; returns the exit code."""
    # it imports neither Ray nor torch; whoever only reads this module's names waits for less
    from sweep.run import main

    with inline_runner(engine):
        return main([str(spec), "--results", str(results), *options])


def sweep(spec: Path, results: Path, *options: str, engine: Inline | None = None) -> Ran:
    """`run_inline` with all that it left."""
    out, err, used = io.StringIO(), io.StringIO(), engine or Inline()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_inline(spec, results, *options, engine=used)
    return Ran(code, out.getvalue(), err.getvalue(), used)


@contextmanager
def looking_at_each_update() -> Iterator[None]:
    """Within, trials look after every update whether they shall stop: many end before production would look once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module, "LOOK_EVERY_S", 0.0)
        yield
