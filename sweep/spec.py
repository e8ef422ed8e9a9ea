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

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from model.config import TrainConfig
from model.configfile import field_paths, load_yaml, validated, with_overrides
from model.errors import guess
from model.fields import PositiveInt
from sweep.blocks import (
    Block,
    Confirm,
    EarlyTerminate,
    MetricSettings,
    Retries,
    SearchSettings,
    WandbSettings,
)
from sweep.grammar import flatten, nest, parse_entry
from sweep.objective import ObjectiveSettings
from sweep.remote import checked_url, is_url
from sweep.resources import Resources
from sweep.search_checks import check_search
from sweep.space import Space
from sweep.spec_checks import check_space
from sweep.spec_warnings import warnings_of

DEFAULT_TRIALS = 16  # of method bayes or random without run_cap
OUR_BLOCKS = ("trainer", "objective", "search", "resources", "confirm", "wandb", "retries")
FOR_WANDB_ONLY = ("program", "command", "controller", "apiVersion", "kind", "job", "image_uri")
NO_SCHEDULER = (
    "W&B's schedulers do not run here: leave scheduler out, write method: bayes (TPE), random or grid, and see search"
)
ELSEWHERE = {"scheduler": NO_SCHEDULER}  # keys of W&B that ask for another searcher than ours


def _checked_entry(entry: Any) -> Any:
    parse_entry(entry)
    return entry


Entry = Annotated[dict[str, Any], BeforeValidator(_checked_entry)]


class SweepSpec(Block):
    """A sweep. Made by `load_spec`; every value in its space is one that TrainConfig takes."""

    name: Annotated[str, Field(max_length=100)]
    """Name of the sweep and of its results folder; of a free text, blanks and signs become dashes."""
    description: str | None = None
    """For people."""
    project: str = "tactile-sweep"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; the account's default if absent."""
    method: Literal["bayes", "random", "grid"] = "bayes"
    """bayes is Optuna with `search.sampler`, a Gaussian process or TPE if absent; grid tries every combination once."""
    metric: MetricSettings = MetricSettings()
    """What is optimised."""
    metrics: Annotated[tuple[MetricSettings, ...], Field(max_length=8)] = ()
    """What is optimised at once, in place of `metric`, which is then the first of them: the sweep finds the Pareto
    front. W&B has no such thing."""
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
    """Train the best again with fresh seeds; only then is there an answer."""
    wandb: WandbSettings = WandbSettings()
    """W&B recording."""
    retries: Retries = Retries()
    """After a crash."""
    results: str | None = None
    """Where `python -m sweep.run` puts the results: a folder, s3://bucket/folder or gs://bucket/folder; --results goes
    before it."""

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
        if given.get("metrics") and "metric" in given:
            raise ValueError("metric and metrics are both given; write metric for one, metrics for a Pareto front")
        if isinstance(several := given.get("metrics"), list | tuple) and several:
            given["metric"] = several[0]  # what is shown where there is room for one
        return given

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        # W&B's names are free text; what cannot be in a folder's name becomes a dash
        folder = re.sub(r"[^\w.-]+", "-", name).strip("-")
        if not folder or folder.startswith(".") or set(name) & set("/\\"):
            raise ValueError(
                f"{name!r} cannot name the results folder; use letters, digits, '.', '_' and '-', no '.' in front"
            )
        return folder

    @field_validator("results")
    @classmethod
    def _a_place(cls, place: str | None) -> str | None:
        if place is not None and not place.strip():
            raise ValueError(f"{place!r} names no folder; give a folder or a URL, or leave it out")
        return checked_url(place) if place is not None and is_url(place) else place

    @field_validator("parameters", mode="before")
    @classmethod
    def _flat(cls, entries: Any) -> dict[str, Any]:
        return flatten(entries)

    @field_validator("parameters")
    @classmethod
    def _names_of_training(cls, entries: dict[str, Entry]) -> dict[str, Entry]:
        known = sorted(field_paths(TrainConfig, in_lists=False))
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
        method, trainer = info.data["method"], info.data["trainer"]
        space = Space(info.data["parameters"], search.conditions)
        if method == "grid" and search.sampler is not None:
            raise ValueError(f"sampler = {search.sampler!r}: method grid tries every combination; leave it out")
        sampler = search.sampler or {"bayes": "auto", "random": "random", "grid": None}[method]
        presets = search.presets
        if presets is None:
            presets = space.default_presets()
            if method == "grid":  # the grid has them all; only those that are one point of it can come first
                presets = tuple(p for p in presets if len(space.fill_preset(p, trainer)) == len(space.parameters))
        return search.model_copy(update={"sampler": sampler, "presets": presets})

    @model_validator(mode="after")
    def _whole_space_trains(self) -> Self:
        check_search(self)
        check_space(self)
        return self

    @cached_property
    def space(self) -> Space:
        """The search space, ready for Optuna."""
        return Space(self.parameters, self.search.conditions)

    @property
    def objectives(self) -> tuple[MetricSettings, ...]:
        """What is optimised: one metric, or several of which the Pareto front is looked for."""
        return self.metrics or (self.metric,)

    @property
    def presets(self) -> tuple[dict[str, Any], ...]:
        """Trials to run first, each as written: fill with `space.fill_preset(preset, trainer)`."""
        return self.search.presets or ()

    @property
    def num_trials(self) -> int:
        """Trials of the whole sweep: run_cap, else DEFAULT_TRIALS, or all of a grid; one where there is no choice.

        Presets are values of the space, so a grid has them already, but for those that leave a parameter open.
        """
        if self.method != "grid":
            return 1 if self.space.grid_size == 1 else self.run_cap or DEFAULT_TRIALS
        size = self.space.grid_size
        assert size is not None  # checked when the spec was made
        filled = [self.space.that_matter(self.space.fill_preset(preset, self.trainer)) for preset in self.presets]
        size += sum(
            any(name not in values and self.space.matters(name, values) for name in self.space.parameters)
            for values in filled
        )
        return min(size, self.run_cap or size)

    @property
    def given_of_trainer(self) -> frozenset[str]:
        """Dotted names of the trainer's fields that were written down, not filled in by default."""
        return frozenset(_given(self.trainer))

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in; `SweepSpec` made of it is equal to this one."""
        content = self.wandb_sweep_config()
        if self.metrics:
            del content["metric"]
            content["metrics"] = [metric.model_dump(mode="json", exclude_none=True) for metric in self.metrics]
        if self.early_terminate is not None:
            content["early_terminate"] = self.early_terminate.content()
        for key in OUR_BLOCKS:
            if (block := getattr(self, key)) is not None:
                content[key] = block.model_dump(mode="json")
        if self.results is not None:
            content["results"] = self.results
        for name in self.parameters:
            if name not in self.given_of_trainer:  # written out, it would look like a second value for the parameter
                *parents, last = name.split(".")
                place = content["trainer"]
                for parent in parents:
                    place = place[parent]
                del place[last]
        return content

    def wandb_sweep_config(self) -> dict[str, Any]:
        """The W&B sweep config in this spec: only what W&B knows; of several metrics the first."""
        keys = {"name", "description", "project", "entity", "method", "run_cap", *FOR_WANDB_ONLY}
        content = self.model_dump(mode="json", include=keys, exclude_none=True)
        content["metric"] = self.metric.model_dump(mode="json", exclude_none=True)
        if self.early_terminate is not None and self.early_terminate.type == "hyperband":
            content["early_terminate"] = self.early_terminate.content()
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
