"""The trials of a results folder as a study of Optuna, for its evaluators. Pure.

It is made of what the folder shows, not read from study.journal: folders of W&B's agents and imported ones have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from model.metrics import EPOCH_STEP
from model.sinks import Row
from sweep.outcome import Outcome
from sweep.report.base import thin
from sweep.report.data import SweepResults, TrialResult
from sweep.sampler_view import DIVERGED, as_complete

TRIAL = "trial"
MAX_STUDIED = 2000  # trials of a study: Optuna copies each, and more change no picture
STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.DIVERGED: TrialState.PRUNED,
}


def as_study(results: SweepResults) -> optuna.Study:
    """The trials that tell something of the space, by the (first) metric: the smaller, the better, whatever its goal.

    Trials that were stopped early or diverged are in it as samplers see them (sweep/sampler_view.py): with what the
    first would have come to, and as bad as the worst. Of more than MAX_STUDIED trials it has an even choice. Optuna
    numbers them anew: each one's attribute TRIAL is its name in the sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    distributions = results.spec.space.distributions
    trials = [trial for trial in results.trials if trial.record.outcome in STATES]
    found = (_frozen(results, trial, distributions) for trial in thin(trials, MAX_STUDIED))
    frozen = [made for made in found if made is not None]
    study.add_trials(t for t in as_complete(frozen, [StudyDirection.MINIMIZE]) if t.state is TrialState.COMPLETE)
    return study


def values_by_epoch(results: SweepResults, trial: TrialResult) -> dict[int, float]:
    """The (first) metric by epochs done, where it is finite."""
    found = ((int(row[EPOCH_STEP]) + 1, metric_of(row, results)) for row in trial.epochs if EPOCH_STEP in row)
    return {epochs: value for epochs, value in found if value is not None and math.isfinite(value)}


def metric_of(row: Row, results: SweepResults) -> float | None:
    """The (first) metric as it stood after an epoch."""
    name = results.spec.metric.name
    return row.get("epoch/best_loss_so_far" if name == "summary/best_loss" else name)


def _frozen(
    results: SweepResults, trial: TrialResult, distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial | None:
    """None for a trial that tells nothing: it crashed, is under way, or its values are not of the space."""
    record, space = trial.record, results.spec.space
    sign = results.spec.metric.sign
    steps = {epochs - 1: sign * value for epochs, value in values_by_epoch(results, trial).items()}
    known = {
        Outcome.COMPLETE: record.value is not None,
        Outcome.PRUNED: bool(steps),
        Outcome.DIVERGED: True,
    }
    if not known.get(record.outcome):
        return None
    try:
        made = optuna.trial.create_trial(
            state=STATES[record.outcome],
            values=[sign * (record.value or 0.0)] if record.outcome is Outcome.COMPLETE else None,
            params=space.from_values(record.values),
            distributions={name: distributions[name] for name in record.values},
            user_attrs={TRIAL: trial.name},
            intermediate_values={} if record.outcome is Outcome.DIVERGED else steps,
            constraints={DIVERGED: 1.0} if record.outcome is Outcome.DIVERGED else None,
        )
    except (ValueError, OverflowError):
        return None
    made.number = record.number
    return made
