"""Do the parts of a search go together: sampler, metrics, early stopping, conditions, confirmation?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.errors import guess
from sweep.blocks import SINGLE_OBJECTIVE

if TYPE_CHECKING:  # sweep.spec imports this module
    from sweep.spec import SweepSpec


def check_search(spec: SweepSpec) -> None:
    """Raises ValueError that names the keys that do not fit, and what to write instead."""
    _check_metrics(spec)
    _check_conditions(spec)
    _check_pbt(spec)
    _check_confirm(spec)
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
            f"search.sampler = {spec.search.sampler!r} optimises one metric; for metrics use tpe, gp, nsgaii, nsgaiii, "
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
    searched = spec.space.parameters
    if unknown := [name for name in pbt.parameters if name not in searched]:
        raise ValueError(
            f"search.pbt.parameters: {unknown[0]!r} is not searched;{guess(unknown[0], searched)} "
            f"Searched: {', '.join(searched)}"
        )
    if shape := [name for name in searched if name.startswith(("data.", "encoder.", "decoder."))]:
        raise ValueError(
            f"search.pbt: {shape[0]} is searched, but trials copy each other's weights, so all need the same model and "
            "data; fix it in trainer"
        )


def _check_confirm(spec: SweepSpec) -> None:
    if spec.confirm is None:
        return
    if "seed" in spec.parameters:
        raise ValueError(
            "confirm with seed in parameters: a searched seed is picked for luck; leave it out of parameters"
        )
    if spec.trainer.seed in spec.confirm.seeds:
        raise ValueError(
            f"confirm.seeds = {list(spec.confirm.seeds)} has {spec.trainer.seed}, the seed that the search itself "
            "trains with (trainer.seed); the best were picked by it, so give others"
        )
