"""The study: which trials there are, what they were given, how they ended. Optuna's journal file is the one ledger.

A study is driven by ask and tell, from Ray or from anything else. It survives its driver: what a dead driver left
running is handed out again, with the same number, before anything new is asked for.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from sweep.blocks import Sampler
from sweep.outcome import Outcome
from sweep.sampler_view import DIVERGED
from sweep.samplers import make_sampler
from sweep.space import Space

if TYPE_CHECKING:
    from sweep.warm_start import Prior

__all__ = ["Outcome", "Record", "Suggestion", "SweepStudy", "best"]

JOURNAL = "study.journal"  # one line per event, appended: fast, and readable after a crash
SEARCH_SECONDS = "search_seconds"  # attribute of the study: time that its drivers spent

Values = dict[str, Any]
Goal = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Suggestion:
    """A trial to run. `values` are trainer fields by dotted name; `preset` names the preset it came from."""

    number: int
    trial: str
    values: Values
    preset: str | None


@dataclass(frozen=True)
class Record:
    """A trial of the study, under its one id: its folder, its Ray directory and the end of its W&B id.

    Attributes:
        value: the (first) metric as it was last reported, also of a pruned trial; None before the first report.
        objectives: all metrics as they were last reported.
        seconds: what its workers spent on it.
        final_values: those it ended with, where they changed while it trained; `values` are those it began with.
    """

    number: int
    trial: str
    values: Values
    preset: str | None
    outcome: Outcome
    value: float | None
    epochs: int
    reason: str | None
    objectives: tuple[float, ...] = ()
    seconds: float = 0.0
    final_values: Values | None = None


class SweepStudy:
    """Suggests trials and keeps what became of them.

    Args:
        folder: the results folder; the journal is made in it or gone on with.
        name: name of the study.
        space: what is searched.
        sampler: by its name in a spec.
        seed: with the trial's number it fixes the draw, so an interrupted search goes on as if it had not been.
        startup_trials: random trials before a model takes over.
        goals: of the reported metrics; several make a multi-objective study.
        first: (preset name or None, values) to try before the sampler is asked; the same each time.
        prior: trials of earlier sweeps, for the sampler to know; they are no trials of this study.
        prefix: of the trials' ids, which tells them from those of another study in the same folder.

    Raises:
        ValueError: the study in the journal has other goals.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        *,
        sampler: Sampler = "auto",
        seed: int = 0,
        startup_trials: int = 8,
        goals: Sequence[Goal] = ("minimize",),
        first: Iterable[tuple[str | None, Values]] = (),
        prior: Sequence[Prior] = (),
        prefix: str = "",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self.space = space
        self._prefix = prefix
        self._sampler: Sampler = sampler
        self._seed = seed
        self._startup_trials = startup_trials
        self._several = len(goals) > 1
        self._prior = [frozen_prior(place, trial, space, self._several) for place, trial in enumerate(prior)]
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        self._study = optuna.create_study(study_name=name, storage=storage, directions=goals, load_if_exists=True)
        if [direction.name.lower() for direction in self._study.directions] != list(goals):
            there = ", ".join(direction.name.lower() for direction in self._study.directions)
            raise ValueError(f"its goals are {there}; the spec's are {', '.join(goals)}")
        frozen = self._study.get_trials(deepcopy=False)
        for preset, values in list(first)[len(frozen) :]:  # an earlier driver may have been killed while it did this
            self.enqueue(preset, values)
        self._asked = sum(trial.state != TrialState.WAITING for trial in frozen)
        self._unfinished = deque(trial for trial in frozen if trial.state == TrialState.RUNNING)
        self._running: dict[int, Trial] = {}
        self._spent_before: float = self._study.user_attrs.get(SEARCH_SECONDS, 0.0)
        self._started = time.monotonic()

    def enqueue(self, preset: str | None, values: Values) -> None:
        """Put a trial in line before the sampler's own; the sampler draws what `values` leave open."""
        self._study.enqueue_trial(self.space.from_values(values), user_attrs={"preset": preset})

    @property
    def waiting(self) -> int:
        """Trials in line that were not handed out yet."""
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

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

    def take_up(self, number: int) -> None:
        """Take a trial that an earlier driver left unfinished out of what `next` hands out: its end is told next."""
        frozen = next(trial for trial in self._unfinished if trial.number == number)
        self._unfinished.remove(frozen)
        self._running[number] = Trial(self._study, frozen._trial_id)

    def trial_name(self, number: int) -> str:
        """Id of the trial with this number."""
        return f"{self._prefix}{number:04d}"

    def report(self, number: int, epoch: int, *values: float) -> None:
        """Keep the values after an epoch (from 0); ones that are not finite, or were reported before, are left out."""
        trial = self._running[number]
        if not all(map(math.isfinite, values)):
            return
        if self._several:  # Optuna keeps the values of epochs for one metric only
            trial.set_user_attr("last", [epoch, list(values)])
        elif epoch not in _reported(trial):
            trial.report(values[0], epoch)

    def finish(self, number: int, outcome: Outcome, reason: str | None = None, seconds: float = 0.0) -> Record:
        """End a trial: COMPLETE and PRUNED ones keep their last values, a diverged one counts as worse than any."""
        trial = self._running.pop(number)
        trial.set_user_attr("outcome", outcome.value)
        if reason is not None:
            trial.set_user_attr("reason", reason)
        self._add_seconds(trial, seconds)
        self._study.set_user_attr(SEARCH_SECONDS, self.search_s)
        if outcome is Outcome.COMPLETE:
            _, values = last_reported(self._frozen(trial))
            self._study.tell(trial, list(values))
        elif outcome is Outcome.PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif outcome is Outcome.DIVERGED:
            # FAIL would be forgotten by the sampler, and PRUNED alone ranked by how far the trial came; an infeasible
            # trial is ranked below all others (Optuna 5: TPE splits infeasible trials off first)
            trial.set_constraint(DIVERGED, 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)
        return self._record(self._frozen(trial))

    def set_final_values(self, number: int, values: Values) -> None:
        """Keep the values that a running trial has come to, where they are no longer those it began with."""
        self._running[number].set_user_attr("final_values", values)

    def release(self, number: int, seconds: float = 0.0) -> None:
        """Leave a trial unfinished: a later driver hands it out again."""
        trial = self._running.pop(number, None)
        if trial is not None:
            self._add_seconds(trial, seconds)
            self._study.set_user_attr(SEARCH_SECONDS, self.search_s)

    @property
    def search_s(self) -> float:
        """Seconds that drivers spent on this study; of one that was killed, until a trial last ended."""
        return self._spent_before + time.monotonic() - self._started

    @property
    def unfinished(self) -> int:
        """Trials of an earlier driver that `next` has still to hand out."""
        return len(self._unfinished)

    def records(self) -> list[Record]:
        """All trials that were ever started, by number."""
        frozen = self._study.get_trials(deepcopy=False)
        return [self._record(trial) for trial in frozen if trial.state != TrialState.WAITING]

    def ended(self) -> list[Record]:
        """Trials that ended, in the order in which they did."""
        finished = [trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]
        return [self._record(trial) for trial in sorted(finished, key=lambda trial: trial.datetime_complete)]

    def record(self, trial: str) -> Record:
        """One trial, started before, by its id."""
        return self._record(self._study.get_trials(deepcopy=False)[int(trial.removeprefix(self._prefix))])

    def intermediate_values(self) -> dict[int, dict[int, float]]:
        """Reported values by trial number and epoch."""
        return {trial.number: dict(trial.intermediate_values) for trial in self._study.get_trials(deepcopy=False)}

    def _record(self, trial: FrozenTrial) -> Record:
        return record_of(trial, self.trial_name(trial.number), self.space)

    def _make_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return make_sampler(
            self._sampler,
            self.space.distributions,
            seed=self._seed,
            number=number,
            startup_trials=self._startup_trials,
            num_metrics=len(self._study.directions),
            prior=self._prior,
        )

    def _frozen(self, trial: Trial) -> FrozenTrial:
        frozen: FrozenTrial = self._study._storage.get_trial(trial._trial_id)
        return frozen

    def _add_seconds(self, trial: Trial, seconds: float) -> None:
        trial.set_user_attr("seconds", self._frozen(trial).user_attrs.get("seconds", 0.0) + seconds)


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


def record_of(trial: FrozenTrial, name: str, space: Space) -> Record:
    """A trial of a study, begun before, whose id is `name`."""
    epoch, values = last_reported(trial)
    # a driver killed while it handed the trial out noted less than was in line
    params = trial.params if trial.state.is_finished() else trial.system_attrs.get("fixed_params", {}) | trial.params
    return Record(
        number=trial.number,
        trial=name,
        values=space.to_values(params),
        preset=trial.user_attrs.get("preset"),
        outcome=Outcome(trial.user_attrs["outcome"]) if trial.state.is_finished() else Outcome.RUNNING,
        value=values[0] if values else None,
        epochs=epoch + 1,
        reason=trial.user_attrs.get("reason"),
        objectives=values,
        seconds=trial.user_attrs.get("seconds", 0.0),
        final_values=trial.user_attrs.get("final_values"),
    )


def last_reported(trial: FrozenTrial) -> tuple[int, tuple[float, ...]]:
    """(epoch from 0, values) as last reported; (-1, ()) before."""
    if "last" in trial.user_attrs:
        epoch, values = trial.user_attrs["last"]
        return epoch, tuple(values)
    steps = trial.intermediate_values
    return (max(steps), (steps[max(steps)],)) if steps else (-1, ())


def frozen_prior(place: int, trial: Prior, space: Space, several: bool) -> FrozenTrial:
    """A trial of an earlier sweep as samplers see it; its negative number is none of this study's."""
    complete = trial.outcome is Outcome.COMPLETE
    frozen = optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        values=list(trial.steps[max(trial.steps)]) if complete else None,
        params=space.from_values(trial.values),
        distributions=space.distributions,
        intermediate_values={} if several else {epoch: values[0] for epoch, values in trial.steps.items()},
        constraints={DIVERGED: 1.0} if trial.outcome is Outcome.DIVERGED else None,
    )
    frozen.number = frozen._trial_id = -1 - place
    return frozen


def best(records: Sequence[Record], direction: Goal) -> Record | None:
    """The best trial that trained for all epochs. A pruned one is not comparable, however good its last value."""
    complete = [r for r in records if r.outcome is Outcome.COMPLETE and r.value is not None]
    sign = 1.0 if direction == "minimize" else -1.0
    return min(complete, key=lambda r: (sign * (r.value or 0.0), r.number), default=None)
