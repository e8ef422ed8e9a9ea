"""What a sampler sees of a study: trials of earlier sweeps as well, and no outcome that it would not understand.

Of Optuna's samplers only TPE knows pruned and infeasible trials. Others look at complete ones alone: told nothing else,
they would suggest again and again what was stopped early or diverged. To these, a trial that was stopped early has the
value that it would have ended with if it had gone on falling as the complete ones did, and a diverged one is as bad as
the worst. Of very many trials a model sees the best ones and an even choice of the others, since its time grows with
their number (a Gaussian process's with the cube of it). The study itself keeps what is true.
"""

from __future__ import annotations

import copy
import heapq
import statistics
from collections.abc import Container, Sequence
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

DIVERGED = "diverged"  # name of the constraint that a diverged trial breaks
CONSTRAINTS = "constraints"  # system attributes that begin so are Optuna's constraints
SEEN_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
BEST_SEEN = 50  # of each metric, however many trials there are; TPE calls at most 25 good


class SamplerView(Study):
    """A study as a sampler reads it for one suggestion; what it writes goes to the study itself.

    Args:
        study: the true one.
        prior: finished trials of earlier sweeps, in terms of this study.
        complete_only: the sampler understands complete trials alone.
        most: how many finished trials it sees; all where None.
    """

    def __init__(
        self, study: Study, prior: Sequence[FrozenTrial] = (), *, complete_only: bool, most: int | None = None
    ) -> None:
        self.__dict__.update(study.__dict__)  # the same storage, id and caches
        self._prior = list(prior)
        self._complete_only = complete_only
        self._most = most
        self._seen: list[FrozenTrial] | None = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """What samplers call; nobody changes what they get, so nothing is copied."""
        if self._seen is None:  # a view serves one suggestion, which asks several times
            self._seen = self._prior + super()._get_trials(deepcopy=False, states=None, use_cache=use_cache)
            if self._most is not None and len(self._seen) > self._most:
                self._seen = thinned(self._seen, self._most, self.directions)
            if self._complete_only:
                self._seen = as_complete(self._seen, self.directions)
        return self._seen if states is None else [trial for trial in self._seen if trial.state in states]


def thinned(trials: Sequence[FrozenTrial], most: int, directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """At most so many finished trials, in their order: the BEST_SEEN of each metric, an even choice of the others; and
    all that are under way."""
    states = [trial.state for trial in trials]
    complete = [(trial.values, place) for place, trial in enumerate(trials) if states[place] == TrialState.COMPLETE]
    kept = {place for place, state in enumerate(states) if state == TrialState.RUNNING}
    for metric, direction in enumerate(directions):
        best_of = heapq.nsmallest if direction == StudyDirection.MINIMIZE else heapq.nlargest
        kept.update(place for _, place in best_of(BEST_SEEN, complete, key=lambda pair: pair[0][metric]))
    others = [place for place, state in enumerate(states) if state in SEEN_ENDED and place not in kept]
    room = max(min(most - len(kept), len(others)), 0)
    kept.update(others[place * len(others) // room] for place in range(room))
    return [trials[place] for place in sorted(kept)]


def as_complete(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials with those that were stopped early or diverged as complete ones; others as they are."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    known = {trial.number: list(trial.values) for trial in complete}
    changes: dict[int, float] = {}
    best = [_best([trial.values[0] for trial in complete], directions[0])] if complete else []
    for trial in trials:
        if trial.state == TrialState.PRUNED and trial.intermediate_values and not is_diverged(trial):
            epoch = max(trial.intermediate_values)
            if epoch not in changes:
                changes[epoch] = usual_change(complete, epoch)
            # never better than what a trial really came to
            guessed = [trial.intermediate_values[epoch] + changes[epoch], *best]
            known[trial.number] = [_worst(guessed, directions[0])]
    worst = [
        _worst([values[place] for values in known.values()], direction) for place, direction in enumerate(directions)
    ]
    return [
        _completed(trial, known.get(trial.number, worst)) if trial.state == TrialState.PRUNED else trial
        for trial in trials
    ]


def _best(values: Sequence[float], direction: StudyDirection) -> float:
    return (min if direction == StudyDirection.MINIMIZE else max)(values)


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
