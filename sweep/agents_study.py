"""The study behind W&B's agents: a spec's search as `wandb sweep-scheduler` drives it, by ask and tell.

Its trials and their sampler are those of sweep/study.py. It lives in memory, is fed by W&B's client through
sweep/wandb_scheduler.py, and takes on the runs that the sweep has already when the scheduler starts again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from model.errors import ConfigError
from sweep.blocks import MetricSettings
from sweep.outcome import Outcome
from sweep.plan import first_trials
from sweep.pruning import EPOCHS, PRESET, make_pruner
from sweep.sampler_view import DIVERGED
from sweep.samplers import make_sampler
from sweep.spec import SweepSpec
from sweep.stopping import StopRules
from sweep.study import frozen_prior
from sweep.warm_start import USES_PRIOR, WarmStart

SAMPLED = 20  # rows of a run's history that W&B's client asks for

Values = dict[str, Any]

# below Optuna's own logger, whose lines W&B's client shows
logger = logging.getLogger("optuna.tactile_sweep")


class AgentsStudy(Study):
    """The study of a spec as W&B's optimizer drives it: `ask`, values after epochs, `tell`, and `enqueue_trial` for a
    run that the sweep had before the scheduler started.

    Args:
        spec: of the sweep.
        warm: what earlier sweeps give.

    Attributes:
        space: what is searched.
        can_end_early: the spec has a rule that may end the search before its run_cap.
    """

    def __init__(self, spec: SweepSpec, warm: WarmStart) -> None:
        self.space = spec.space
        self._spec = spec
        self._metrics: tuple[MetricSettings, ...] = spec.objectives
        self._first = deque((preset, spec.space.from_values(values)) for preset, values in first_trials(spec, warm))
        prior = [frozen_prior(place, trial, spec.space, self._several) for place, trial in enumerate(warm.prior)]
        storage = InMemoryStorage()
        storage.create_new_study([StudyDirection[metric.goal.upper()] for metric in self._metrics], spec.name)
        super().__init__(spec.name, storage, SamplerOfTrials(self, spec, prior), make_pruner(spec))
        self._adopted: deque[bool] = deque()  # runs in line that were there before: whether all was chosen for them
        self._ready: AgentsTrial | None = None
        self._rules = StopRules(spec.search.stop, self._metrics, spec.resources.gpu)
        self._began = time.monotonic()
        self._said = False
        stop = spec.search.stop
        self.can_end_early = any(metric.target is not None for metric in self._metrics) or any(
            rule is not None for rule in (stop.time_budget_s, stop.accelerator_hours, stop.plateau)
        )

    @property
    def _several(self) -> bool:
        return len(self._metrics) > 1

    # --- asking

    def ask(self, fixed_distributions: dict[str, BaseDistribution] | None = None) -> AgentsTrial:
        """The next trial, with all its parameters: one that was enqueued, else a new one. ValueError at the end."""
        if self._adopted:
            return self._adopt(chosen=self._adopted.popleft())
        trial, self._ready = self._ready or self._begin(), None
        if trial is None:
            raise ValueError("the search is over: there is no trial to suggest")
        return trial

    def enqueue_trial(
        self, params: dict[str, Any], user_attrs: dict[str, Any] | None = None, skip_if_exists: bool = False
    ) -> None:
        """Put a run that the sweep has in line; the next `ask` gives its trial.

        Args:
            params: the run's config: beside the trainer's values that are searched, all that the run logged there.

        Raises ValueError where it is no run of this space: W&B's client then leaves it out, and says why.
        """
        params = self._stored(params)
        preset, chosen = None, False
        for place, (name, first) in enumerate(self._first):
            if first.items() <= params.items():
                preset, chosen = name, first.keys() == self.space.parameters.keys()
                del self._first[place]
                break
        super().enqueue_trial(params, {PRESET: preset})
        self._adopted.append(chosen)

    @property
    def exhausted(self) -> bool:
        """Whether there is no new trial to suggest; where there is one, it is made ready for the next `ask`."""
        if self._ready is None:
            self._ready = self._begin()
        return self._ready is None

    def over(self, _: Study) -> bool:
        """W&B's terminator: whether a stop rule has ended the search, and what was under way has ended."""
        return self._ended_by_rule() and not self.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _begin(self) -> AgentsTrial | None:
        """A new trial; None where the search is over."""
        while not self._ended_by_rule() and not self._spent:
            if self._first:
                preset, params = self._first.popleft()
                super().enqueue_trial(params, {PRESET: preset})
            trial = AgentsTrial(super().ask(self.space.distributions))
            try:
                trial.find_epochs(self._spec)
                return trial
            except ConfigError as error:  # each value is good, this combination is not; as under Ray, it has its number
                logger.warning(f"trial {trial.number} is not started: {error}")
                self._end(trial, Outcome.FAILED)
        return None

    def _adopt(self, chosen: bool) -> AgentsTrial:
        trial = AgentsTrial(super().ask(self.space.distributions))
        if self._spec.search.sampler not in USES_PRIOR and not chosen:
            _ = trial.relative_params  # the others know only what they suggested themselves: let them do it again
        with suppress(ConfigError):  # the run itself found out
            trial.find_epochs(self._spec)
        return trial

    @property
    def _spent(self) -> bool:
        count, most = len(self.get_trials(deepcopy=False)), self._spec.num_trials
        if self._spec.method == "grid":  # a point that somebody ran twice leaves no other out
            over = not self._first or count >= (self._spec.run_cap or math.inf)
        else:
            over = count >= most
        if over:
            self._say(f"{count} were handed out, of {most}")
        return over

    def _ended_by_rule(self) -> bool:
        reason = self._rules.reason(time.monotonic() - self._began)
        if reason is not None:
            self._say(reason)
        return reason is not None

    def _say(self, reason: str) -> None:
        if not self._said:
            self._said = True
            logger.info(f"no new trials: {reason}")

    def _stored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a run -> Optuna's parameters, of those that matter. Raises ValueError for one outside."""
        given = {name: value for name in self.space.parameters if (value := _at(config, name)) is not _ABSENT}
        values = self.space.that_matter(given)
        if lacking := [n for n in self.space.parameters if n not in given and self.space.matters(n, values)]:
            raise ValueError(f"it has no {', '.join(lacking)}")
        return self.space.from_values(values)

    # --- telling

    def tell(
        self,
        trial: Trial | int,
        values: Any = None,
        state: TrialState | None = None,
        skip_if_finished: bool = False,
    ) -> FrozenTrial:
        """End a trial as what it is.

        W&B's client says finished, failed (also crashed, killed) or pruned. But a run whose metric is NaN diverged,
        however it ended; one that finished after some of its epochs was stopped early; and so was one that did not
        finish and that the pruner had told to stop, before the scheduler was started again.
        """
        assert isinstance(trial, AgentsTrial)
        given = values if isinstance(values, list | tuple) else [values]  # NaN is a text in W&B's JSON
        numbers = [] if values is None else [float(value) for value in given]
        return self._end(trial, self._outcome(trial, numbers, state), numbers)

    def _outcome(self, trial: AgentsTrial, values: list[float], state: TrialState | None) -> Outcome:
        trial.take_in()
        frozen = self.get_trials(deepcopy=False)[trial.number]
        if trial.diverged or not all(map(math.isfinite, values)):
            return Outcome.DIVERGED
        if state == TrialState.PRUNED:
            return Outcome.PRUNED
        if not values:
            return Outcome.PRUNED if self.pruner.prune(self, frozen) else Outcome.FAILED
        steps = frozen.intermediate_values
        # where the last of the rows has not come to W&B's history yet, or is none of its samples, the summary is ahead
        all_there = bool(steps) and steps[max(steps)] == values[0]
        if not all_there or not trial.ended_early():
            return Outcome.COMPLETE
        logger.info(f"trial {trial.number} was stopped after {max(steps) + 1} of {frozen.user_attrs[EPOCHS]} epochs")
        return Outcome.PRUNED

    def _end(self, trial: AgentsTrial, outcome: Outcome, values: Sequence[float] = ()) -> FrozenTrial:
        if outcome is Outcome.COMPLETE:
            frozen = super().tell(trial, list(values))
        elif outcome is Outcome.FAILED:
            frozen = super().tell(trial, state=TrialState.FAIL)
        else:
            if outcome is Outcome.DIVERGED:
                trial.set_constraint(DIVERGED, 1.0)  # see sweep/study.py
                logger.info(f"trial {trial.number} diverged: the search keeps away from it")
            frozen = super().tell(trial, state=TrialState.PRUNED)
        seconds = frozen.duration.total_seconds() if frozen.duration is not None else 0.0
        self._rules.ended(outcome, values, seconds)
        return frozen


class AgentsTrial(Trial):
    """A trial of an AgentsStudy. W&B's client reports values by W&B's step; here a step is an epoch, from 0.

    Attributes:
        diverged: a value was NaN or infinite.
    """

    def __init__(self, trial: Trial) -> None:
        self.__dict__.update(trial.__dict__)  # it was asked for: nothing is drawn again
        self._steps: list[int] = []  # of all rows of W&B that had the metric
        self._new: list[float] = []  # values of the last of them, until all rows of this poll have come
        self._epoch, self._value = -1, math.nan  # the last that was kept
        self._most: int | None = None
        self.diverged = False

    @property
    def values(self) -> Values:
        """The trainer's values, by dotted name."""
        values: Values = self.study.space.to_values(self.params)
        return values

    def find_epochs(self, spec: SweepSpec) -> None:
        """Find out how many epochs the trial has. Raises ConfigError for values that do not go together."""
        self._most = spec.space.to_config(spec.trainer, self.values).epochs
        self.set_user_attr(EPOCHS, self._most)

    def report(self, value: float, step: int) -> None:
        """Take the value of a row, in order."""
        self._steps.append(step)
        self._new.append(float(value))

    def should_prune(self) -> bool:
        """Whether the pruner says stop, now that this poll's values are all there."""
        self.take_in()
        return bool(super().should_prune())

    def take_in(self) -> None:
        """Keep what was reported since the last time; epochs that are none of W&B's samples lie on a line between."""
        epochs, _ = epochs_of(self._steps, self._most)
        for epoch, value in zip(epochs[len(epochs) - len(self._new) :], self._new, strict=True):
            epoch = max(epoch, self._epoch + 1)  # later rows may tell that earlier ones were counted too low
            if not math.isfinite(value):
                self.diverged = True
                continue
            before = self._value if self._epoch >= 0 else value
            for between in range(self._epoch + 1, epoch):
                share = (between - self._epoch) / (epoch - self._epoch)
                super().report(before + share * (value - before), between)
            super().report(value, epoch)
            self._epoch, self._value = epoch, value
        self._new = []

    def ended_early(self) -> bool:
        """Whether rows are missing from the end. False where that cannot be told."""
        _, sure = epochs_of(self._steps, self._most)
        return sure and self._most is not None and 0 <= self._epoch < self._most - 1


def epochs_of(steps: Sequence[int], most: int | None) -> tuple[list[int], bool]:
    """The epochs, from 0, whose last rows have these steps of W&B; and whether that is sure.

    W&B's client asks for SAMPLED rows of a run: below that all epochs are there. Above, an epoch is told from its step,
    since a run has a row for each update and one for each epoch, and steps count rows. Where updates have no row
    (`wandb.log_every`), it is guessed from the first ones, rather too low: a decision about the run then comes later.

    Args:
        steps: in order.
        most: epochs of the run; None where that is not known.
    """
    if len(steps) < SAMPLED or len(steps) == most:
        return list(range(len(steps))), True
    rows = math.gcd(*(step + 1 for step in steps))
    if most is not None and (steps[-1] + 1) // rows <= most:
        return [(step + 1) // rows - 1 for step in steps], True
    first = SAMPLED // 2
    each = (steps[first - 1] + 1) / first
    return [max(place, round((step + 1) / each) - 1) for place, step in enumerate(steps)], False


class SamplerOfTrials(BaseSampler):
    """The spec's sampler, made anew for each trial from its number (see sweep/samplers.py)."""

    def __init__(self, study: AgentsStudy, spec: SweepSpec, prior: Sequence[FrozenTrial]) -> None:
        self._study = study
        self._spec = spec
        self._prior = prior
        self._number: int | None = None
        self._sampler: BaseSampler | None = None

    def is_exhausted(self, study: Study) -> bool:
        """W&B's optimizer asks this, as of Optuna's GridSampler, before it asks for a trial."""
        return self._study.exhausted

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        space: dict[str, BaseDistribution] = self._of(trial).infer_relative_search_space(study, trial)
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn: dict[str, Any] = self._of(trial).sample_relative(study, trial, search_space)
        return drawn

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, distribution: Any) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._of(trial).after_trial(study, trial, state, values)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._sampler is None or trial.number != self._number:
            search = self._spec.search
            self._number = trial.number
            self._sampler = make_sampler(
                search.sampler or "random",
                self._spec.space.distributions,
                seed=search.seed,
                number=trial.number,
                startup_trials=search.startup_trials,
                num_metrics=len(self._spec.objectives),
                prior=self._prior,
            )
        return self._sampler


_ABSENT = object()


def _at(config: Mapping[str, Any], name: str) -> Any:
    """A value by dotted name, flat or nested; _ABSENT where there is none."""
    if name in config:
        return config[name]
    place: Any = config
    for part in name.split("."):
        if not isinstance(place, Mapping) or part not in place:
            return _ABSENT
        place = place[part]
    return place
