"""A study's trials from what the other books tell of them: for a study file that was lost, or lost some of its events.

What the study itself still knows of a trial that ended stays. Rows, values and states come from the trials' folders and
from trials.csv, so they are those that the study was told, to the last bit. Not restored is what only the study knew:
the state of cmaes, nsgaii and nsgaiii (they begin their model anew from the trials), the time that drivers spent.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.journal import outcome_of
from sweep.outcome import Outcome
from sweep.sampler_view import DIVERGED
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

    A trial that nobody knows more of than its number is one that was begun: the sampler draws its values again.

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
        there = known[number] if number < len(known) else None
        told = evidence.get(number, Evidence())
        # not of the study's file, where it is known otherwise: after lost lines a trial may have another one's
        preset, enqueued = first[number] if number < len(first) else (told.preset, None)
        trials.append(_trial(number, there, told, preset, enqueued, space, several))
    return trials


def _trial(
    number: int,
    there: FrozenTrial | None,
    told: Evidence,
    preset: str | None,
    enqueued: Values | None,
    space: Space,
    several: bool,
) -> FrozenTrial:
    before = {} if there is None else dict(there.user_attrs)
    params = {} if there is None else dict(there.params)
    if told.values is not None:
        params = {**space.from_values(told.values), **params}
    steps = {} if there is None else dict(there.intermediate_values)
    outcome = Outcome.RUNNING if there is None else outcome_of(there)
    if outcome is Outcome.RUNNING:
        outcome = told.outcome
    if not several:
        steps = {epoch: values[0] for epoch, values in sorted(told.steps.items())} | steps
    attributes: dict[str, Any] = dict(before)
    if preset is not None or enqueued is not None:
        attributes["preset"] = preset
    if outcome is not Outcome.RUNNING:
        attributes["outcome"] = outcome.value
    if several and "last" not in attributes and told.steps:
        attributes["last"] = [max(told.steps), list(told.steps[max(told.steps)])]
    for name in ("reason", "seconds", "final_values"):
        if name not in attributes and (value := getattr(told, name)) not in (None, 0.0):
            attributes[name] = value
    system = {} if there is None else copy.deepcopy(there.system_attrs)
    if enqueued is not None:
        system["fixed_params"] = space.from_values(enqueued)
    last = list(attributes["last"][1]) if "last" in attributes else [steps[max(steps)]] if steps else []
    values = None if there is None else there.values
    if outcome is Outcome.COMPLETE and not values:
        values = last
        if not values:  # nobody has its value any more
            outcome = Outcome.FAILED
            attributes |= {"outcome": outcome.value, "reason": "its value was lost with the study's file"}
    frozen = optuna.trial.create_trial(
        state=STATES[outcome],
        values=values if outcome is not Outcome.FAILED and outcome is not Outcome.RUNNING else None,
        params=params,
        distributions={name: _of(there, name) or space.distributions[name] for name in params},
        user_attrs=attributes,
        system_attrs=system,
        intermediate_values=steps,
        constraints={DIVERGED: 1.0} if outcome is Outcome.DIVERGED and DIVERGED not in _constraints(there) else None,
    )
    ended = datetime.fromtimestamp(told.modified)
    frozen.number = number
    frozen.datetime_start = (there.datetime_start if there is not None else None) or ended
    if outcome is not Outcome.RUNNING:
        frozen.datetime_complete = (there.datetime_complete if there is not None else None) or ended
    return frozen


def _of(there: FrozenTrial | None, name: str) -> Any:
    return None if there is None else there.distributions.get(name)


def _constraints(there: FrozenTrial | None) -> Mapping[str, float]:
    return {} if there is None else there.constraints


def points_used(space: Space, seed: int, startup_trials: int, count: int) -> dict[str, Any]:
    """The attributes of a study whose quasi-random sequence has given `count` points: Optuna counts them there."""
    sampler: Any = make_sampler("qmc", space.distributions, seed=seed, number=0, startup_trials=startup_trials)
    study = optuna.create_study()
    for _ in range(count):
        sampler._find_sample_id(study, sampler._distributions)
    attributes: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)
    return attributes
