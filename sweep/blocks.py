"""The blocks of a spec: what is optimised, how it is searched, when trials and sweeps end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model import metrics
from model.data.config import absolute
from model.errors import guess
from model.fields import PositiveInt
from model.metrics import Level
from model.sinks import Event

NO_MEASURE = ("epoch", "epoch/lr")  # of an epoch, and nothing to optimise
METRIC_NAMES = (
    *(name for name in metrics.EPOCH_NAMES if name not in NO_MEASURE),
    *metrics.EVAL_NAMES,
    *metrics.OBJECTIVE_NAMES,
    "summary/best_loss",
)
SINGLE_OBJECTIVE = ("cmaes",)  # samplers that optimise one metric only
GP_METRICS = 3  # a Gaussian process takes minutes for a suggestion that improves more at once
NUMBERS_ONLY = ("cmaes",)  # samplers that model numbers only
POPULATION = 16  # of the genetic samplers: sweeps have tens of trials, where Optuna's 50 would be one generation
OF_HYPERBAND = ("max_iter", "s", "eta", "strict")
MAY_CHANGE_MIDWAY = ("alpha", "beta", "base_lr", "weight_decay")  # a trial may go on with another value of these

Finite = Annotated[float, Field(allow_inf_nan=False)]
Goal = Literal["minimize", "maximize"]
Sampler = Literal["auto", "tpe", "gp", "cmaes", "random", "qmc", "nsgaii", "nsgaiii"]


class Block(BaseModel):
    """Part of a spec: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def sign_of(goal: Goal) -> float:
    """1 where a smaller value is the better one, else -1: values times it are minimised."""
    return 1.0 if goal == "minimize" else -1.0


class MetricSettings(Block):
    """What the sweep optimises, as in W&B."""

    name: str = "objective/value"
    """A metric of model/metrics.py that is reported at epoch ends, or summary/best_loss."""
    goal: Goal = "minimize"
    """`maximize` is right for the skill scores."""
    target: Finite | None = None
    """No new trial starts once one has reached this value."""
    impute: Literal["latest", "best", "worst"] | None = None
    """For W&B only, as the next: here a trial that failed has no value."""
    impute_while_running: Literal["latest", "best", "worst", "false", False] | None = None
    """For W&B only."""

    @property
    def sign(self) -> float:
        """`sign_of` its goal."""
        return sign_of(self.goal)

    @field_validator("name")
    @classmethod
    def _reported(cls, name: str) -> str:
        if name not in METRIC_NAMES:
            raise ValueError(
                f"{name!r} is not reported at epoch ends;{guess(name, METRIC_NAMES)} Known: {', '.join(METRIC_NAMES)}."
            )
        return name


class EarlyTerminate(Block):
    """Stops bad trials early.

    hyperband: successive halving (Li et al. 2018, ASHA), in W&B's words: give min_iter, or max_iter and s.
    median: a trial stops when its best value is worse than the median of the others' running means (Golovin et al.
    2017, Google Vizier); W&B does not know it.
    """

    type: Literal["hyperband", "median"]
    """Which rule stops trials."""
    min_iter: PositiveInt | None = None
    """Epochs before the first decision."""
    max_iter: PositiveInt | None = None
    """Epochs of a full trial; goes with s and, as in W&B, before min_iter."""
    s: PositiveInt | None = None
    """Number of decisions: after max_iter / eta, max_iter / eta^2, ..., max_iter / eta^s epochs."""
    eta: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 3
    """1/eta of the trials go on after each decision."""
    strict: bool | None = None
    """W&B's stricter rule, for its own agents only."""
    min_trials: PositiveInt | None = None
    """Median: other trials that must have come as far before one is stopped; 3 if absent."""

    @model_validator(mode="after")
    def _first_decision_is_known(self) -> Self:
        if self.type == "median":
            return self._median_has_its_own()
        if self.min_trials is not None:
            raise ValueError("min_trials belongs to type median; leave it out")
        if self.min_iter is None and (self.max_iter is None or self.s is None):
            raise ValueError(
                "must have min_iter, or max_iter and s; for example {type: hyperband, min_iter: 2, eta: 3}"
            )
        if self.max_iter is not None and self.s is not None and self.max_iter < self.eta:
            raise ValueError(
                f"max_iter = {self.max_iter} is below eta = {self.eta}, so there is nothing to decide; "
                "raise max_iter or lower eta"
            )
        return self

    def _median_has_its_own(self) -> Self:
        if foreign := sorted(self.model_fields_set & set(OF_HYPERBAND)):
            raise ValueError(f"{', '.join(foreign)}: of type hyperband; median has min_iter and min_trials")
        if self.min_iter is None:
            raise ValueError("must have min_iter; for example {type: median, min_iter: 2, min_trials: 3}")
        return self

    def content(self) -> dict[str, Any]:
        """Plain data that makes an equal block."""
        return self.model_dump(
            mode="json", exclude_none=True, exclude=set(OF_HYPERBAND) if self.type == "median" else None
        )

    @property
    def first_rung(self) -> int:
        """Epochs before the first decision: min_iter, or max_iter / eta^s (W&B skips those below one epoch)."""
        if self.max_iter is None or self.s is None:
            assert self.min_iter is not None
            return self.min_iter
        rung = float(self.max_iter)
        for _ in range(self.s):
            if rung / self.eta < 1:
                break
            rung /= self.eta
        return int(rung)


class Plateau(Block):
    """The search has stopped getting better."""

    trials: PositiveInt
    """Trials in a row without a better best one; trials that were stopped early or diverged count, crashed ones not."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """A better best one is better by more than this."""


class Stop(Block):
    """When no new trial starts, beside run_cap and metric.target; those under way train to their end."""

    time_budget_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds of the search, all its sessions added up."""
    accelerator_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """GPUs x hours that trials have used; a share of a GPU counts as that share."""
    plateau: Plateau | None = None
    """The search has stopped getting better."""


class Pbt(Block):
    """Population-based training (Jaderberg et al. 2017): the worst trials go on from the weights of the best ones, with
    other values of `parameters`. All trials of the sweep are the population."""

    every_epochs: PositiveInt = 1
    """Epochs between two comparisons."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that copy, and of those that are copied."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Chance of a value drawn anew instead of one beside the copied trial's."""
    parameters: Annotated[tuple[str, ...], Field(min_length=1)] = ("alpha",)
    """Searched parameters that change midway."""

    @field_validator("parameters")
    @classmethod
    def _can_change(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if fixed := [name for name in names if name not in MAY_CHANGE_MIDWAY]:
            raise ValueError(f"{fixed[0]!r} cannot change while a trial trains; use {', '.join(MAY_CHANGE_MIDWAY)}")
        return names


class SearchSettings(Block):
    """How the searcher works; W&B leaves this to its server."""

    sampler: Sampler | None = None
    """auto for method bayes and random for method random if absent; method grid has none. auto is gp for the first 100
    trials of a space of numbers, and tpe otherwise."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the sampler."""
    presets: tuple[dict[str, Any], ...] | None = None
    """Trials to run first: values of some parameters; `trainer` gives the others where it can. If absent and alpha is
    searched: equal weights (0.5) and balanced weights (0.75)."""
    startup_trials: Annotated[int, Field(ge=0)] = 8
    """Random trials before auto, tpe, gp or cmaes models the results."""
    conditions: dict[str, dict[str, Any]] = {}
    """Parameters that matter only where others have some value: {ema_decay: {mode: joint}} or {mode: [joint, static]}.
    Elsewhere the trainer's own value holds."""
    warm_start: tuple[Path, ...] = ()
    """Results folders of earlier sweeps whose trials the sampler knows from the start."""
    stop: Stop = Stop()
    """When no new trial starts."""
    pbt: Pbt | None = None
    """Change loss weights while trials train, in place of early_terminate."""

    @field_validator("warm_start", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str | Path) else given

    @field_validator("warm_start")
    @classmethod
    def _absolute(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(absolute(path) or path for path in paths)


class Confirm(Block):
    """Training the best configs and the presets again with other seeds, at full budget (sweep/confirm.py)."""

    top_k: PositiveInt
    """How many of the best trials."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31, strict=True)], ...], Field(min_length=2)]
    """Training seeds; each config is trained with each. None may be the search's own."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{list(seeds)}: one is named twice; name each once")
        return seeds


class WandbSettings(Block):
    """Whether and how trials are recorded in W&B."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where credentials exist, else offline; never a prompt."""
    init_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20
    """Seconds to wait for the server at a trial's start."""
    log_every: PositiveInt = 1
    """Every how many gradient updates one has a row in W&B: those whose batch/iteration is divisible by it. Epochs all
    have one, and batch.csv has every update."""
    system_metrics: bool = True
    """Online and on a GPU: W&B's own metrics of the trial's GPUs and processes."""
    alerts: bool = True
    """Send W&B an alert when the diagnosis of a trial says warning or critical, once per rule and trial."""

    def has_row(self, event: Event) -> bool:
        """Whether W&B gets a row of this event."""
        return event.level is not Level.BATCH or int(event.values[metrics.BATCH_STEP]) % self.log_every == 0


class Retries(Block):
    """What happens to a trial whose process died, or hangs."""

    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often it is started again from its last checkpoint."""
    hang_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1800
    """Seconds without a batch of training or evaluation after which a trial's process is ended, and the trial started
    again; null never ends one. Opening the data is not counted."""
