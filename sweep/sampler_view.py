"""What a sampler sees of a study: trials of earlier sweeps as well, and no outcome that it would not understand.

Of Optuna's samplers only TPE knows pruned and infeasible trials. Others look at complete ones alone: told nothing else,
they would suggest again and again what was stopped early or diverged. To these, a trial that was stopped early has the
value that it would have ended with if it had gone on falling as the complete ones did, and a diverged one is as bad as
the worst. The study itself keeps what is true.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Container, Sequence
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

DIVERGED = "diverged"  # name of the constraint that a diverged trial breaks
CONSTRAINTS = "constraints"  # system attributes that begin so are Optuna's constraints


class SamplerView(Study):
    """A study as samplers read it; what they write goes to the study itself.

    Args:
        study: the true one.
        prior: finished trials of earlier sweeps, in terms of this study.
        complete_only: the sampler understands complete trials alone.
    """

    def __init__(self, study: Study, prior: Sequence[FrozenTrial] = (), *, complete_only: bool) -> None:
        self.__dict__.update(study.__dict__)  # the same storage, id and caches
        self._prior = list(prior)
        self._complete_only = complete_only

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """What samplers call; nobody changes what they get, so nothing is copied."""
        if not self._complete_only:  # Optuna's own filter by state is faster
            trials: list[FrozenTrial] = super()._get_trials(deepcopy=False, states=states, use_cache=use_cache)
            prior = self._prior if states is None else [trial for trial in self._prior if trial.state in states]
            return prior + trials if prior else trials
        trials = self._prior + super()._get_trials(deepcopy=False, states=None, use_cache=use_cache)
        seen = as_complete(trials, self.directions)
        return seen if states is None else [trial for trial in seen if trial.state in states]


def as_complete(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials with those that were stopped early or diverged as complete ones; others as they are."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    known = {trial.number: list(trial.values) for trial in complete}
    changes: dict[int, float] = {}
    for trial in trials:
        if trial.state == TrialState.PRUNED and trial.intermediate_values and not is_diverged(trial):
            epoch = max(trial.intermediate_values)
            if epoch not in changes:
                changes[epoch] = usual_change(complete, epoch)
            known[trial.number] = [trial.intermediate_values[epoch] + changes[epoch]]
    worst = [
        (max if direction == StudyDirection.MINIMIZE else min)(
            (values[place] for values in known.values()), default=0.0
        )
        for place, direction in enumerate(directions)
    ]
    return [
        _completed(trial, known.get(trial.number, worst)) if trial.state == TrialState.PRUNED else trial
        for trial in trials
    ]


def _worst(values: Sequence[float], direction: StudyDirection) -> float:
    return (max if direction == StudyDirection.MINIMIZE else min)(values, default=0.0)


def usual_change(complete: Sequence[FrozenTrial], epoch: int) -> float:
    """Median of what complete trials gained or lost between the end of this epoch and their own; 0 without any."""
    changes = [
        trial.values[0] - trial.intermediate_values[epoch] for trial in complete if epoch in trial.intermediate_values
    ]
    return statistics.median(changes) if changes else 0.0


def is_diverged(trial: FrozenTrial) -> bool:
    """Whether it ended with NaN or an infinite loss."""
    return trial.constraints.get(DIVERGED, 0.0) > 0


def _completed(trial: FrozenTrial, values: list[float]) -> FrozenTrial:
    seen = copy.copy(trial)
    attributes: dict[str, Any] = trial.system_attrs
    seen.system_attrs = {key: value for key, value in attributes.items() if not key.startswith(CONSTRAINTS)}
    seen.state = TrialState.COMPLETE
    seen.values = values
    return seen
