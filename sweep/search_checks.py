"""Do the parts of a search go together: sampler, metrics, early stopping, conditions, confirmation?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optuna.distributions import CategoricalDistribution

from model.errors import guess
from sweep.blocks import MAY_CHANGE_MIDWAY, NUMBERS_ONLY, POPULATION, SINGLE_OBJECTIVE, Pbt, Stop
from sweep.pbt import can_change

if TYPE_CHECKING:  # sweep.spec imports this module
    from sweep.spec import SweepSpec

MODELS = ("auto", "tpe", "gp", "cmaes")  # samplers with a random start
GENETIC = ("nsgaii", "nsgaiii")
# of a trial that goes on from another's checkpoint: what may differ between the two, beside what changes midway
MAY_DIFFER_IN_POPULATION = ("mask_ratio", "mask_kind", "min_lr", "warmup_epochs", "clip_grad", "seed")


def check_search(spec: SweepSpec) -> None:
    """Raises ValueError that names the keys that do not fit, and what to write instead."""
    _check_metrics(spec)
    _check_conditions(spec)
    _check_pbt(spec)
    _check_confirm(spec)
    if spec.method == "random" and spec.search.sampler not in ("random", "qmc"):
        raise ValueError(
            f"method = 'random' with search.sampler = {spec.search.sampler!r}: the sampler is not random; "
            "write method: bayes, or leave sampler out"
        )
    if spec.search.stop.accelerator_hours is not None and spec.resources.gpu == 0:
        raise ValueError(
            "search.stop.accelerator_hours, but resources.gpu = 0: trials use no accelerator; write "
            "search.stop.time_budget_s instead"
        )


def _check_metrics(spec: SweepSpec) -> None:
    if not spec.metrics:
        return
    names = [metric.name for metric in spec.metrics]
    if len(names) == 1:
        raise ValueError(f"metrics = {names}: a Pareto front needs two or more; for one, write metric: {{name: ...}}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"metrics: {twice!r} is named twice; name each once")
    if spec.early_terminate is not None:
        raise ValueError(
            "early_terminate with metrics: a trial that is worse in one may be better in another, so none can be "
            "stopped early; leave early_terminate out, or write metric"
        )
    if spec.search.sampler in SINGLE_OBJECTIVE:
        raise ValueError(
            f"search.sampler = {spec.search.sampler!r} optimises one metric; for metrics use auto, nsgaii, nsgaiii, "
            "random or qmc"
        )
    if spec.search.stop.plateau is not None:
        raise ValueError(
            "search.stop.plateau with metrics: there is no single best trial; use time_budget_s or run_cap"
        )
    if spec.confirm is not None:
        raise ValueError("confirm with metrics: a Pareto front has no best few; write metric, or leave confirm out")


def _check_conditions(spec: SweepSpec) -> None:
    searched, conditions = spec.space.parameters, spec.search.conditions
    for name, needed in conditions.items():
        for part in (name, *needed):
            if part not in searched:
                raise ValueError(
                    f"search.conditions.{name}: {part!r} is not searched;{guess(part, searched)} "
                    f"Searched: {', '.join(searched)}"
                )
        for other, wanted in needed.items():
            if isinstance(wanted, list | tuple) and not wanted:
                raise ValueError(f"search.conditions.{name}: {other} = [] never happens; name a value")
            for value in wanted if isinstance(wanted, list | tuple) else [wanted]:
                try:
                    searched[other].from_value(value)
                except ValueError as error:
                    raise ValueError(f"search.conditions.{name}: {other} = {value!r} never happens; {error}") from None
    for name in conditions:
        seen, ahead = {name}, list(conditions[name])
        while ahead:
            other = ahead.pop()
            if other == name:
                raise ValueError(f"search.conditions.{name}: it depends on itself; remove one of the conditions")
            if other not in seen:
                seen.add(other)
                ahead += conditions.get(other, {})


def _check_pbt(spec: SweepSpec) -> None:
    pbt = spec.search.pbt
    if pbt is None:
        return
    for key, given in (("early_terminate", spec.early_terminate), ("metrics", spec.metrics)):
        if given:
            raise ValueError(f"search.pbt and {key} are both given; population-based training has no use for {key}")
    if spec.method == "grid":
        raise ValueError("search.pbt with method grid: the population starts from random draws; write method: random")
    _check_population(spec, pbt)
    searched = spec.space.parameters
    if unknown := [name for name in pbt.parameters if name not in searched]:
        raise ValueError(
            f"search.pbt.parameters: {unknown[0]!r} is not searched;{guess(unknown[0], searched)} "
            f"Searched: {', '.join(searched)}"
        )
    if unequal := [name for name in searched if name not in (*MAY_CHANGE_MIDWAY, *MAY_DIFFER_IN_POPULATION)]:
        raise ValueError(
            f"search.pbt: {unequal[0]} is searched, but trials go on from each other's weights and optimiser, so all "
            "need the same model, data and updates; fix it in trainer. May be searched: "
            f"{', '.join((*MAY_CHANGE_MIDWAY, *MAY_DIFFER_IN_POPULATION))}"
        )
    if drawn := [name for name in pbt.parameters if not can_change(searched[name])]:
        raise ValueError(
            f"search.pbt.parameters: {drawn[0]} has a normal or beta distribution, for which there is no value beside "
            "another; write uniform, log_uniform_values, a q_ form of them, or values"
        )
    if spec.trainer.weighting != "fixed" and (
        weights := [name for name in pbt.parameters if name in ("alpha", "beta")]
    ):
        raise ValueError(
            f"search.pbt.parameters: {weights[0]}, but trainer.weighting = {spec.trainer.weighting!r} moves the "
            "weights by itself; write weighting: fixed"
        )


def _check_population(spec: SweepSpec, pbt: Pbt) -> None:
    """Whether anything would ever change, and what cannot: all its trials start at once and train in step."""
    for key, given in (("search.stop", spec.search.stop != Stop()), ("metric.target", spec.metric.target is not None)):
        if given:
            raise ValueError(
                f"search.pbt and {key} are both given, but the whole population starts at once: there is no new trial "
                f"to hold back; leave {key} out"
            )
    epochs = spec.space.constants.get("epochs", spec.trainer.epochs)
    if pbt.every_epochs >= epochs:
        raise ValueError(
            f"search.pbt.every_epochs = {pbt.every_epochs}, but trials train for {epochs} epochs, so nothing would "
            "ever change; give less"
        )
    if spec.num_trials - len(spec.presets) < 2:
        raise ValueError(
            f"search.pbt: of {spec.num_trials} trials {len(spec.presets)} are presets, which stay as they are; raise "
            "run_cap, so that two or more can change"
        )


def _check_confirm(spec: SweepSpec) -> None:
    if spec.confirm is None:
        return
    if spec.search.pbt is not None:
        raise ValueError(
            "confirm with search.pbt: its trials change while they train, so there is no config to train again; leave "
            "confirm out"
        )
    if "seed" in spec.parameters:
        raise ValueError(
            "confirm with seed in parameters: a searched seed is picked for luck; leave it out of parameters"
        )
    if spec.trainer.seed in spec.confirm.seeds:
        raise ValueError(
            f"confirm.seeds = {list(spec.confirm.seeds)} has {spec.trainer.seed}, the seed that the search itself "
            "trains with (trainer.seed); the best were picked by it, so give others"
        )


def search_warnings(spec: SweepSpec) -> Iterator[str]:
    """What is allowed and probably not meant: a sampler that cannot show what it can, trials that repeat others."""
    size, searched, sampler = spec.space.grid_size, spec.space.parameters, spec.search.sampler
    if size == 1:
        yield "the space is a single point, so one trial runs. Give a parameter values, or min and max."
        return
    if size is not None and spec.method != "grid" and size <= spec.num_trials:
        yield (
            f"the space has {size} combinations, and {spec.num_trials} trials run: some are trained twice, to the same "
            "result. Write method: grid, which tries each once."
        )
    if sampler in MODELS and spec.search.startup_trials >= spec.num_trials:
        yield (
            f"search.startup_trials = {spec.search.startup_trials} of {spec.num_trials} trials: the model "
            "never takes over, the search is random. Lower it or raise run_cap."
        )
    words = [name for name, each in searched.items() if isinstance(each.distribution, CategoricalDistribution)]
    if sampler in NUMBERS_ONLY and words:
        yield (
            f"search.sampler: {sampler} models numbers only; {', '.join(words)} is drawn at random. Write auto or "
            "nsgaii."
        )
    if sampler in GENETIC and spec.num_trials < 3 * POPULATION:
        yield (
            f"search.sampler: {sampler} breeds generations of {POPULATION} trials, and {spec.num_trials} trials are "
            "not even three. Write auto, or raise run_cap."
        )
