"""The study: which trials there are, what they were given, how they ended. Optuna's journal file is the one ledger.

A study is driven by ask and tell, from Ray or from anything else. It survives its driver: what a dead driver left
running is handed out again, with the same number, before anything new is asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from sweep.space import Space

JOURNAL = "study.journal"  # one line per event, appended: fast, and readable after a crash
DIVERGED = "diverged"  # name of the constraint that a diverged trial breaks

Values = dict[str, Any]


class Outcome(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    COMPLETE = "complete"  # trained for all epochs
    PRUNED = "pruned"  # stopped early by the scheduler
    DIVERGED = "diverged"  # NaN or infinite loss: no value, and the sampler keeps away
    FAILED = "failed"  # crashed, again after every retry


def trial_name(number: int, prefix: str = "") -> str:
    """The one id of a trial: its folder, its Ray directory and the end of its W&B id."""
    return f"{prefix}{number:04d}"


@dataclass(frozen=True)
class Suggestion:
    """A trial to run. `values` are trainer fields by dotted name; `preset` names the preset it came from."""

    number: int
    trial: str
    values: Values
    preset: str | None


@dataclass(frozen=True)
class Record:
    """A trial of the study. `value` is the last one reported (None before the first), also of a pruned trial."""

    number: int
    trial: str
    values: Values
    preset: str | None
    outcome: Outcome
    value: float | None
    epochs: int
    reason: str | None


class SweepStudy:
    """Suggests trials and keeps what became of them.

    Args:
        folder: the results folder; the journal is made in it or gone on with.
        name: name of the study.
        space: what is searched.
        sampler: "tpe" or "random".
        seed: with the trial's number it fixes the draw, so an interrupted search goes on as if it had not been.
        startup_trials: random trials before TPE models anything.
        direction: of the reported metric.
        first: (preset name or None, values) to try before the sampler is asked; the same each time.
        prefix: of the trials' ids, which tells them from those of another study in the same folder.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        *,
        sampler: Literal["tpe", "random"] = "tpe",
        seed: int = 0,
        startup_trials: int = 8,
        direction: Literal["minimize", "maximize"] = "minimize",
        first: Iterable[tuple[str | None, Values]] = (),
        prefix: str = "",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self._prefix = prefix
        self._sampler = sampler
        self._seed = seed
        self._startup_trials = startup_trials
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self._study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
        frozen = self._study.get_trials(deepcopy=False)
        for preset, values in list(first)[len(frozen) :]:  # an earlier driver may have been killed while it did this
            self._study.enqueue_trial(space.from_values(values), user_attrs={"preset": preset})
        self._asked = sum(trial.state != TrialState.WAITING for trial in frozen)
        self._unfinished = deque(trial for trial in frozen if trial.state == TrialState.RUNNING)
        self._running: dict[int, Trial] = {}

    def next(self) -> Suggestion:
        """The next trial: one that an earlier driver left unfinished, else a new one."""
        if self._unfinished:
            frozen = self._unfinished.popleft()
            self._study.sampler = self._make_sampler(frozen.number)
            trial = Trial(self._study, frozen._trial_id)
            for name, distribution in self.space.distributions.items():
                _suggest(trial, name, distribution)  # what it has stays; a driver killed within `ask` left less
        else:
            self._study.sampler = self._make_sampler(self._asked)
            trial = self._study.ask(self.space.distributions)
            self._asked += 1
        self._running[trial.number] = trial
        return Suggestion(
            number=trial.number,
            trial=self.trial_name(trial.number),
            values=self.space.to_values(trial.params),
            preset=trial.user_attrs.get("preset"),
        )

    def trial_name(self, number: int) -> str:
        """Id of the trial with this number."""
        return trial_name(number, self._prefix)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Keep the value after an epoch (from 0); one that is not finite, or was reported before, is left out."""
        trial = self._running[number]
        if math.isfinite(value) and epoch not in _reported(trial):
            trial.report(value, epoch)

    def finish(self, number: int, outcome: Outcome, reason: str | None = None) -> None:
        """End a trial: COMPLETE and PRUNED ones keep their last value, a diverged one counts as worse than any."""
        trial = self._running.pop(number)
        reported = _reported(trial)
        trial.set_user_attr("outcome", outcome.value)
        if reason is not None:
            trial.set_user_attr("reason", reason)
        if outcome is Outcome.COMPLETE:
            self._study.tell(trial, reported[max(reported)])
        elif outcome is Outcome.PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif outcome is Outcome.DIVERGED:
            # FAIL would be forgotten by the sampler, and PRUNED alone ranked by how far the trial came; an infeasible
            # trial is ranked below all others (Optuna 5: TPE splits infeasible trials off first)
            trial.set_constraint(DIVERGED, 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def release(self, number: int) -> None:
        """Leave a trial unfinished: a later driver hands it out again."""
        self._running.pop(number, None)

    @property
    def unfinished(self) -> int:
        """Trials of an earlier driver that `next` has still to hand out."""
        return len(self._unfinished)

    def records(self) -> list[Record]:
        """All trials that were ever started, by number."""
        frozen = self._study.get_trials(deepcopy=False)
        return [self._record(trial) for trial in frozen if trial.state != TrialState.WAITING]

    def record(self, trial: str) -> Record:
        """One trial, started before, by its id."""
        return self._record(self._study.get_trials(deepcopy=False)[int(trial.removeprefix(self._prefix))])

    def intermediate_values(self) -> dict[int, dict[int, float]]:
        """Reported values by trial number and epoch."""
        return {trial.number: dict(trial.intermediate_values) for trial in self._study.get_trials(deepcopy=False)}

    def _record(self, trial: FrozenTrial) -> Record:
        steps = trial.intermediate_values
        return Record(
            number=trial.number,
            trial=self.trial_name(trial.number),
            values=self.space.to_values(trial.params),
            preset=trial.user_attrs.get("preset"),
            outcome=Outcome(trial.user_attrs.get("outcome", Outcome.RUNNING)),
            value=steps[max(steps)] if steps else None,
            epochs=max(steps) + 1 if steps else 0,
            reason=trial.user_attrs.get("reason"),
        )

    def _make_sampler(self, number: int) -> BaseSampler:
        """A sampler for one suggestion: all it knows is in the study, and its draws depend on (seed, number) alone."""
        digest = hashlib.blake2b(f"{self._seed}:{number}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "big")
        if self._sampler == "random":
            return RandomSampler(seed=seed)
        return _KnownSpaceTPE(
            self.space.distributions,
            seed=seed,
            n_startup_trials=self._startup_trials,
            multivariate=True,
            constant_liar=True,
        )


class _KnownSpaceTPE(TPESampler):
    """TPE that is told its space instead of finding it out from all trials at every suggestion."""

    def __init__(self, distributions: dict[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._distributions = {name: d for name, d in distributions.items() if not d.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    elif isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)


def _reported(trial: Trial) -> dict[int, float]:
    frozen: FrozenTrial = trial.study._storage.get_trial(trial._trial_id)
    return frozen.intermediate_values


def best(records: Sequence[Record], direction: Literal["minimize", "maximize"]) -> Record | None:
    """The best trial that trained for all epochs. A pruned one is not comparable, however good its last value."""
    complete = [r for r in records if r.outcome is Outcome.COMPLETE and r.value is not None]
    sign = 1.0 if direction == "minimize" else -1.0
    return min(complete, key=lambda r: (sign * (r.value or 0.0), r.number), default=None)
