"""Whole sweeps in seconds: the sweep's own searcher, scheduler and study, with trials replayed from a table.

`simulate` is what sweep/tuner.py does with Ray's workers, with virtual ones; nothing of the search itself is imitated.
`run` is the part of Ray between searcher, scheduler and workers; it drives Ray's own searchers as well.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model.errors import UserError
from sweep.plan import first_trials
from sweep.replay import REPLAYED, Replay
from sweep.replay_table import PARAMETERS
from sweep.schedulers import STOP, make_scheduler
from sweep.searcher import EPOCHS, FINISHED, StudySearcher
from sweep.spec import SweepSpec
from sweep.stopping import StopRules
from sweep.study import Record, SweepStudy

Row = Mapping[str, Any]
Train = Callable[[dict[str, Any], int], Sequence[Row]]


class Searcher(Protocol):
    """What is used of Ray's Searcher."""

    def suggest(self, trial_id: str) -> Any:
        """The trial's config; no dict where there is none."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch ended, after which the trial goes on."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None) -> None:
        """The trial ended; without a result it was interrupted."""


class Scheduler(Protocol):
    """What is used of Ray's TrialScheduler."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial was made."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """An epoch ended that is not the trial's last: go on, or stop."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The trial ended."""


@dataclass(frozen=True)
class Ended:
    """A trial that ended: how many `epochs` it trained, and how many all trials together had trained by then."""

    number: int
    """In the order of starts, from 0."""
    config: dict[str, Any]
    epochs: int
    spent: int
    finished: bool
    """It trained to its end; else the scheduler stopped it."""
    last: Row
    """Its last epoch's metrics."""


@dataclass(frozen=True)
class SimulatedSweep:
    """What a simulated sweep did.

    Attributes:
        records: the study's trials, as of a real sweep.
        ended: trials in the order in which they ended.
        epochs: that were trained in all.
    """

    records: list[Record]
    ended: list[Ended]
    epochs: int


@dataclass(eq=False)
class _Trial:
    """What searchers and schedulers see of Ray's trial, and all the epochs that it would train."""

    trial_id: str
    config: dict[str, Any]
    rows: Sequence[Row]
    epochs: int = 0


def simulate(
    spec: SweepSpec, replay: Replay, folder: Path, seed: int, workers: int = 1, budget: int | None = None
) -> SimulatedSweep:
    """Run a spec's whole sweep on replayed trials; it is the same for the same arguments.

    Args:
        spec: as for a real sweep; of its trainer nothing counts but what the table is over, and epochs.
        replay: what trials are replayed from.
        folder: where the study's journal is written; none may be there.
        seed: of the trials' noise, and in place of search.seed.
        workers: trials at the same time, each an epoch per unit of time.
        budget: epochs after which nothing more is trained; without it the sweep ends with its run_cap.

    Raises UserError for a spec that the table cannot answer for.
    """
    check(spec, replay)
    study = SweepStudy(
        folder,
        spec.name,
        spec.space,
        sampler=spec.search.sampler or "random",
        seed=seed,
        startup_trials=spec.search.startup_trials,
        goals=[metric.goal for metric in spec.objectives],
        first=first_trials(spec),
    )
    searcher = StudySearcher(
        study,
        spec.num_trials,
        metrics=spec.objectives,
        make_config=lambda values: study.space.to_config(spec.trainer, values),
        crash_reason=lambda number: "",
        rules=StopRules(spec.search.stop, spec.objectives, spec.resources.gpu),
    )

    def train(config: dict[str, Any], number: int) -> Sequence[Row]:
        place = {name: config["config"][name] for name in PARAMETERS}
        return replay.trial(**place, settings=spec.objective, noise=noise_of(seed, number))

    ended = run(searcher, make_scheduler(spec, study), train, workers=workers, budget=budget)
    return SimulatedSweep(study.records(), ended, sum(record.epochs for record in study.records()))


def run(
    searcher: Searcher, scheduler: Scheduler, train: Train, *, workers: int = 1, budget: int | None = None
) -> list[Ended]:
    """Ask for trials and train them until there are none, in the order of calls that Tune has (its TuneController).

    Args:
        searcher, scheduler: of Ray or ours.
        train: a trial's config and number (from 0) -> its epochs' metrics.
        workers: trials at the same time.
        budget: epochs after which nothing more is trained; trials under way are interrupted.
    """
    ended: list[Ended] = []
    waiting: list[tuple[int, int, _Trial]] = []  # (time of its next epoch's end, number, trial)
    now = started = spent = 0
    asking = True
    while True:
        while asking and len(waiting) < workers and spent != budget:
            config = searcher.suggest(trial_id := f"{started:05d}")
            asking = isinstance(config, dict)
            if asking:
                trial = _Trial(trial_id, config, train(config, started))
                scheduler.on_trial_add(None, trial)
                heapq.heappush(waiting, (now + 1, started, trial))
                started += 1
        if not waiting:
            return ended
        now, number, trial = heapq.heappop(waiting)
        if spent == budget:
            searcher.on_trial_complete(trial.trial_id)
            continue
        row = trial.rows[trial.epochs]
        trial.epochs += 1
        spent += 1
        finished = trial.epochs == len(trial.rows)
        result = {**row, EPOCHS: trial.epochs, "training_iteration": trial.epochs, FINISHED: finished}
        if finished or scheduler.on_trial_result(None, trial, result) == STOP:
            scheduler.on_trial_complete(None, trial, result)
            searcher.on_trial_complete(trial.trial_id, result=result)
            ended.append(Ended(number, trial.config, trial.epochs, spent, finished, row))
        else:
            searcher.on_trial_result(trial.trial_id, result)
            heapq.heappush(waiting, (now + 1, number, trial))


def noise_of(seed: int, number: int) -> int:
    """Which noise a trial has: by the seed of the sweep and the trial's number."""
    return int(np.random.default_rng((seed, number)).integers(2**31))


def check(spec: SweepSpec, replay: Replay) -> None:
    """Raise UserError, with the spec's key, where trials of this spec cannot be replayed."""
    table, trainer = replay.table, spec.space.to_config(spec.trainer, {})
    if spec.search.pbt is not None or spec.search.warm_start:
        key = "search.pbt" if spec.search.pbt is not None else "search.warm_start"
        raise UserError(f"{key}: a replayed sweep has neither weights to copy nor earlier sweeps; leave it out")
    if unknown := [name for name in spec.parameters if name not in PARAMETERS]:
        raise UserError(f"parameters.{unknown[0]}: {table.path} has trials over {', '.join(PARAMETERS)} only; fix it")
    if unknown := [metric.name for metric in spec.objectives if metric.name not in REPLAYED]:
        raise UserError(f"metric {unknown[0]!r} is not replayed; use one of {', '.join(REPLAYED)}")
    if trainer.epochs != table.epochs:
        raise UserError(f"trainer.epochs = {trainer.epochs}, but the trials of {table.path} have {table.epochs}")
    if sum(trainer.weights) != 1:
        raise UserError(
            f"trainer.beta = {trainer.beta}: the trials of {table.path} have beta = 1 - alpha; leave it out"
        )
    for name in PARAMETERS:
        searched = spec.space.parameters.get(name)
        for value in searched.probes() if searched is not None else [getattr(trainer, name)]:
            if not replay.covers(name, value):
                low, high = replay.ends(name)
                raise UserError(f"{name} = {value:g}: the trials of {table.path} go from {low:g} to {high:g}")
