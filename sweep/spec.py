"""Spec file (YAML) -> SweepSpec: W&B's sweep language, with our own blocks beside it.

Every fault that can be seen before a trial starts is an error: unknown names and impossible ranges here, values that
TrainConfig would refuse in sweep/spec_checks.py. What is allowed but probably not meant is in sweep/spec_warnings.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from model import metrics
from model.config import TrainConfig
from model.configfile import field_paths, load_yaml, validated, with_overrides
from model.errors import guess
from model.fields import PositiveInt
from sweep.grammar import flatten, nest, parse_entry
from sweep.objective import ObjectiveSettings
from sweep.resources import Resources
from sweep.space import Space
from sweep.spec_checks import check_space
from sweep.spec_warnings import warnings_of

DEFAULT_TRIALS = 16  # of method bayes or random without run_cap
METRIC_NAMES = (*metrics.EPOCH_NAMES, *metrics.EVAL_NAMES, *metrics.OBJECTIVE_NAMES, "summary/best_loss")
OUR_BLOCKS = ("trainer", "objective", "search", "resources", "confirm", "wandb", "retries")
FOR_WANDB_ONLY = ("program", "command", "controller", "apiVersion", "kind", "job", "image_uri")
NO_SCHEDULER = (
    "W&B's schedulers do not run here: leave scheduler out, write method: bayes (TPE), random or grid, and see search"
)
NO_METRICS = "one metric is optimised: write metric; its default, objective/value, is a weighted sum (see objective)"
ELSEWHERE = {"scheduler": NO_SCHEDULER, "metrics": NO_METRICS}  # keys of W&B that ask for another searcher than ours


def _checked_entry(entry: Any) -> Any:
    parse_entry(entry)
    return entry


Finite = Annotated[float, Field(allow_inf_nan=False)]
Entry = Annotated[dict[str, Any], BeforeValidator(_checked_entry)]


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class MetricSettings(_Block):
    """What the sweep optimises, as in W&B."""

    name: str = "objective/value"
    """A metric of model/metrics.py that is reported at epoch ends, or summary/best_loss."""
    goal: Literal["minimize", "maximize"] = "minimize"
    """`maximize` is right for the skill scores."""
    target: Finite | None = None
    """No new trial starts once one has reached this value."""
    impute: Literal["latest", "best", "worst"] | None = None
    """For W&B only, as the next: here a trial that failed has no value."""
    impute_while_running: Literal["latest", "best", "worst", "false", False] | None = None

    @field_validator("name")
    @classmethod
    def _reported(cls, name: str) -> str:
        if name not in METRIC_NAMES:
            raise ValueError(
                f"{name!r} is not reported at epoch ends;{guess(name, METRIC_NAMES)} Known: {', '.join(METRIC_NAMES)}."
            )
        return name


class EarlyTerminate(_Block):
    """Successive halving (Li et al. 2018, ASHA), in W&B's words: give min_iter, or max_iter and s."""

    type: Literal["hyperband"]
    """W&B knows no other."""
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

    @model_validator(mode="after")
    def _first_decision_is_known(self) -> Self:
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


class SearchSettings(_Block):
    """How the searcher works; W&B leaves this to its server."""

    sampler: Literal["tpe", "random"] | None = None
    """tpe for method bayes and random for method random if absent; method grid has none."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the sampler."""
    presets: tuple[dict[str, Any], ...] | None = None
    """Trials to run first: values of some parameters; `trainer` gives the others where it can. If absent and alpha is
    searched: equal weights (0.5) and balanced weights (0.75)."""
    startup_trials: Annotated[int, Field(ge=0)] = 8
    """Random trials before TPE models the results."""


class Confirm(_Block):
    """Training the best configs again with other seeds."""

    top_k: PositiveInt
    """How many of the best trials."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]
    """Training seeds; each config is trained with each."""


class WandbSettings(_Block):
    """Whether and how trials are recorded in W&B."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where credentials exist, else offline; never a prompt."""
    init_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20
    """Seconds to wait for the server at a trial's start."""


class Retries(_Block):
    """What happens to a trial whose process died."""

    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often it is started again from its last checkpoint."""


class SweepSpec(_Block):
    """A sweep. Made by `load_spec`; every value in its space is one that TrainConfig takes."""

    name: Annotated[str, Field(max_length=100)]
    """Name of the sweep and of its results folder."""
    description: str | None = None
    """For people."""
    project: str = "tactile-sweep"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; the account's default if absent."""
    method: Literal["bayes", "random", "grid"] = "bayes"
    """bayes is Optuna's TPE; grid tries every combination once."""
    metric: MetricSettings = MetricSettings()
    """What is optimised."""
    parameters: dict[str, Entry]
    """W&B's grammar; nested `parameters` are flattened to dotted TrainConfig names (data.frame_stride)."""
    early_terminate: EarlyTerminate | None = None
    """Stops bad trials early; if absent, every trial trains to its end."""
    run_cap: PositiveInt | None = None
    """Most trials of the sweep; see `num_trials` for its absence."""
    program: str | None = None
    """This and the next six are for W&B only: kept in `wandb_sweep_config`, of no effect here."""
    command: tuple[Any, ...] | None = None
    controller: dict[str, Any] | None = None
    apiVersion: str | int | float | None = None
    kind: Literal["sweep"] | None = None
    job: str | None = None
    image_uri: str | None = None

    trainer: TrainConfig = TrainConfig()
    """What all trials share."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What objective/value is made of."""
    search: SearchSettings = SearchSettings()
    """Sampler, seed and presets."""
    resources: Resources = Resources()
    """CPU and GPU of a trial."""
    confirm: Confirm | None = None
    """Accepted, and not run yet."""
    wandb: WandbSettings = WandbSettings()
    """W&B recording."""
    retries: Retries = Retries()
    """After a crash."""

    @model_validator(mode="before")
    @classmethod
    def _keys_that_count(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        # a block whose lines are all commented out is null in YAML
        given = {key: value for key, value in content.items() if value is not None}
        for key, remedy in ELSEWHERE.items():
            if key in given:
                raise ValueError(f"{key} = {given[key]!r}: {remedy}")
        if given.get("method") == "custom":
            raise ValueError(f"method = 'custom': {NO_SCHEDULER}")
        return given

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]+", name):
            raise ValueError(
                f"{name!r} cannot name the results folder; use letters, digits, '.', '_' and '-', no '.' in front"
            )
        return name

    @field_validator("parameters", mode="before")
    @classmethod
    def _flat(cls, entries: Any) -> dict[str, Any]:
        return flatten(entries)

    @field_validator("parameters")
    @classmethod
    def _names_of_training(cls, entries: dict[str, Entry]) -> dict[str, Entry]:
        known = sorted(field_paths(TrainConfig))
        for name in entries:
            if name not in known:
                raise ValueError(f"unknown parameter {name!r};{guess(name, known)} Known: {', '.join(known)}.")
            if inside := next((other for other in entries if other.startswith(f"{name}.")), None):
                raise ValueError(f"{name!r} and {inside!r} are both given, and the one contains the other; keep one")
        return entries

    @field_validator("search")
    @classmethod
    def _defaults_of_search(cls, search: SearchSettings, info: ValidationInfo) -> SearchSettings:
        if not {"method", "parameters", "trainer"} <= info.data.keys():
            return search  # they have errors of their own
        method, space, trainer = info.data["method"], Space(info.data["parameters"]), info.data["trainer"]
        if method == "grid" and search.sampler is not None:
            raise ValueError(f"sampler = {search.sampler!r}: method grid tries every combination; leave it out")
        sampler = search.sampler or {"bayes": "tpe", "random": "random", "grid": None}[method]
        presets = search.presets
        if presets is None:
            presets = space.default_presets()
            if method == "grid":  # the grid has them all; only those that are one point of it can come first
                presets = tuple(p for p in presets if len(space.fill_preset(p, trainer)) == len(space.parameters))
        return search.model_copy(update={"sampler": sampler, "presets": presets})

    @model_validator(mode="after")
    def _whole_space_trains(self) -> Self:
        check_space(self)
        return self

    @cached_property
    def space(self) -> Space:
        """The search space, ready for Optuna."""
        return Space(self.parameters)

    @property
    def presets(self) -> tuple[dict[str, Any], ...]:
        """Trials to run first, each as written: fill with `space.fill_preset(preset, trainer)`."""
        return self.search.presets or ()

    @property
    def num_trials(self) -> int:
        """Trials of the whole sweep: run_cap, else DEFAULT_TRIALS, or all of a grid.

        Presets are values of the space, so a grid has them already, but for those that leave a parameter open.
        """
        if self.method != "grid":
            return self.run_cap or DEFAULT_TRIALS
        size = self.space.grid_size
        assert size is not None  # checked when the spec was made
        filled = [self.space.fill_preset(preset, self.trainer) for preset in self.presets]
        size += sum(len(values) < len(self.space.parameters) for values in filled)
        return min(size, self.run_cap or size)

    @property
    def given_of_trainer(self) -> frozenset[str]:
        """Dotted names of the trainer's fields that were written down, not filled in by default."""
        return frozenset(_given(self.trainer))

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in; `SweepSpec` made of it is equal to this one."""
        content = self.wandb_sweep_config()
        for key in OUR_BLOCKS:
            if (block := getattr(self, key)) is not None:
                content[key] = block.model_dump(mode="json")
        for name in self.parameters:
            if name not in self.given_of_trainer:  # written out, it would look like a second value for the parameter
                *parents, last = name.split(".")
                place = content["trainer"]
                for parent in parents:
                    place = place[parent]
                del place[last]
        return content

    def wandb_sweep_config(self) -> dict[str, Any]:
        """The W&B sweep config in this spec: only keys that W&B knows, `parameters` nested."""
        keys = {"name", "description", "project", "entity", "method", "run_cap", *FOR_WANDB_ONLY}
        content = self.model_dump(mode="json", include=keys, exclude_none=True)
        content["metric"] = self.metric.model_dump(mode="json", exclude_none=True)
        if self.early_terminate is not None:
            content["early_terminate"] = self.early_terminate.model_dump(mode="json", exclude_none=True)
        content["parameters"] = nest(self.parameters)
        return content

    def warnings(self) -> list[str]:
        """What is allowed and probably not meant; one sentence each, with what to write instead."""
        return list(warnings_of(self))


def load_spec(path: Path | str, overrides: Iterable[str] = ()) -> SweepSpec:
    """Read a spec file, apply `KEY=VALUE` overrides, check it. The name is the file's stem where none is given.

    Raises ConfigError: a line per fault, with the file, the key, what was given and what is allowed.
    """
    path = Path(path)
    content = with_overrides(load_yaml(path), overrides)
    if content.get("name") is None:
        content["name"] = path.stem
    return validated(SweepSpec, content, str(path))


def _given(config: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in config.model_fields_set:
        yield f"{prefix}{name}"
        if isinstance(inner := getattr(config, name), BaseModel):
            yield from _given(inner, f"{prefix}{name}.")
