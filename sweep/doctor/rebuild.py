"""A study's trials from what the other books tell of them: for a study file that was lost, or lost some of its events.

What the study itself still knows of a trial that ended stays. Rows, values and states come from the trials' folders and
from trials.csv, so they are those that the study was told, to the last bit. Not restored is what only the study knew:
the state of cmaes, nsgaii and nsgaiii (they begin their model anew from the trials), the time that drivers spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.doctor.journal import outcome_of
from sweep.outcome import Outcome
from sweep.sampler_view import CONSTRAINTS, DIVERGED
from sweep.samplers import make_sampler
from sweep.space import Space
from sweep.study import Values

STATES = {
    Outcome.RUNNING: TrialState.RUNNING,
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.DIVERGED: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True)
class Evidence:
    """What the books beside the study tell of a trial.

    Attributes:
        values: of the searched parameters; None where no book has them.
        steps: the reported metrics by epoch, of those whose values are finite.
        modified: when its files were last written to, as POSIX time.
    """

    values: Values | None = None
    preset: str | None = None
    outcome: Outcome = Outcome.RUNNING
    reason: str | None = None
    seconds: float = 0.0
    steps: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    final_values: Values | None = None
    modified: float = 0.0


def rebuilt(
    known: Sequence[FrozenTrial],
    evidence: Mapping[int, Evidence],
    space: Space,
    first: Sequence[tuple[str | None, Values]] = (),
    several: bool = False,
) -> list[FrozenTrial]:
    """The trials of a study, by number, up to the last one that was begun.

    Where the study's file and the other books differ about a trial, the others are right: after lost lines a trial may
    have what is another one's. A trial that nobody knows more of than its number was begun: it is drawn again.

    Args:
        known: what the study has of them, by number.
        evidence: of the other books, by number.
        first: what the sweep begins with, as the study was given it.
        several: it optimises several metrics.
    """
    begun = [trial.number for trial in known if trial.state != TrialState.WAITING or trial.params]
    count = max([*begun, *evidence], default=-1) + 1
    trials = []
    for number in range(count):
        there = known[number] if number < len(known) else _unknown()
        told = evidence.get(number, Evidence())
        preset, enqueued = first[number] if number < len(first) else (told.preset, None)
        trials.append(_trial(number, there, told, preset, enqueued, space, several))
    return trials


def _unknown() -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.RUNNING)
    trial.datetime_start = None
    return trial


def fits(trial: FrozenTrial, space: Space) -> bool:
    """Whether all values of a trial are ones that the study could have given."""
    return len(_sound_params(trial, space)) == len(trial.params)


def _sound_params(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    sound = {}
    for name, value in trial.params.items():
        distribution = space.distributions.get(name)
        with suppress(ValueError, TypeError):
            if distribution is not None and distribution._contains(distribution.to_internal_repr(value)):
                sound[name] = value
    return sound


def _trial(
    number: int,
    there: FrozenTrial,
    told: Evidence,
    preset: str | None,
    enqueued: Values | None,
    space: Space,
    several: bool,
) -> FrozenTrial:
    params = _sound_params(there, space)
    if told.values is not None:
        params |= space.from_values(told.values)
    outcome = told.outcome if told.outcome is not Outcome.RUNNING else outcome_of(there)
    attributes: dict[str, Any] = dict(there.user_attrs)
    attributes.pop("outcome", None)
    steps = dict(there.intermediate_values)
    if told.steps and several:
        attributes["last"] = [max(told.steps), list(told.steps[max(told.steps)])]
    elif told.steps:
        steps = {epoch: values[0] for epoch, values in sorted(told.steps.items())}
    last = list(attributes["last"][1]) if "last" in attributes else [steps[max(steps)]] if steps else []
    if preset is not None or enqueued is not None:
        attributes["preset"] = preset
    for name, value in (("reason", told.reason), ("final_values", told.final_values)):
        if value is not None:
            attributes[name] = value
    attributes.setdefault("seconds", told.seconds)
    values = last or there.values if outcome is Outcome.COMPLETE else None
    if outcome is Outcome.COMPLETE and not values:
        outcome, attributes["reason"] = Outcome.FAILED, "its value was lost with the study's file"
    if outcome is not Outcome.RUNNING:
        attributes["outcome"] = outcome.value
    system = {name: value for name, value in there.system_attrs.items() if not name.startswith(CONSTRAINTS)}
    if enqueued is not None:
        system["fixed_params"] = space.from_values(enqueued)
    frozen = optuna.trial.create_trial(
        state=STATES[outcome],
        values=values,
        params=params,
        distributions={name: space.distributions[name] for name in params},
        user_attrs=attributes,
        system_attrs=system,
        intermediate_values=steps,
        constraints={DIVERGED: 1.0} if outcome is Outcome.DIVERGED else None,
    )
    when = datetime.fromtimestamp(told.modified)
    frozen.number = number
    frozen.datetime_start = there.datetime_start or when
    frozen.datetime_complete = None if outcome is Outcome.RUNNING else there.datetime_complete or when
    return frozen


def points_used(space: Space, seed: int, startup_trials: int, count: int) -> dict[str, Any]:
    """The attributes of a study whose quasi-random sequence has given `count` points: Optuna counts them there."""
    sampler: Any = make_sampler("qmc", space.distributions, seed=seed, number=0, startup_trials=startup_trials)
    study = optuna.create_study()
    for _ in range(count):
        sampler._find_sample_id(study, sampler._distributions)
    attributes: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)
    return attributes
