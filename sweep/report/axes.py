"""Searched parameters as axes of figures: linear, logarithmic, or a place for each choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.report.base import label
from sweep.report.data import SweepResults, TrialResult
from sweep.space import Choice, distribution_of


@dataclass(frozen=True)
class Axis:
    """A parameter's axis. `choices` are its values in their order; None of a parameter that is a number."""

    name: str
    log: bool
    choices: tuple[Any, ...] | None

    @property
    def layout(self) -> dict[str, Any]:
        """For plotly's xaxis or yaxis."""
        if self.choices is not None:
            return {"type": "category", "categoryorder": "array", "categoryarray": self.labels}
        if self.log:  # whole numbers at few ticks: plotly's own are lone digits, of whatever power of ten
            return {"type": "log", "nticks": 3, "tickformat": "~g"}
        return {"type": "linear"}

    @property
    def labels(self) -> list[str]:
        """Of the choices; different ones even where they are cut short."""
        cut = [label(value) for value in self.choices or ()]
        return [f"{text} ({place})" if cut.count(text) > 1 else text for place, text in enumerate(cut)]

    def mark(self, value: Any) -> Any:
        """A value as plotly takes it; None where it is no value of this axis."""
        if self.choices is not None:
            return self.labels[self.choices.index(value)] if value in self.choices else None
        return value if self.position(value) is not None else None

    def position(self, value: Any) -> float | None:
        """A value as a number along the axis: of a choice its place, of a log axis the logarithm to base 10."""
        if self.choices is not None:
            return float(self.choices.index(value)) if value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if self.log:
            return math.log10(value) if value > 0 else None
        return float(value)

    def value(self, position: float) -> float:
        """The inverse of `position`, of a number."""
        return 10**position if self.log else position


def axis_of(results: SweepResults, name: str) -> Axis:
    """The axis of a searched parameter."""
    parameter = results.spec.space.parameters[name]
    if isinstance(parameter, Choice):
        return Axis(name, False, tuple(parameter.values))
    return Axis(name, "log" in distribution_of(results.spec.parameters[name]), None)


def axes_of(results: SweepResults, names: Iterable[str]) -> list[Axis]:
    """The axes of these parameters."""
    return [axis_of(results, name) for name in names]


def varied(axis: Axis, trials: Sequence[TrialResult]) -> bool:
    """Whether the trials have more than one value of it."""
    found = (axis.position(trial.record.values.get(axis.name)) for trial in trials)
    return len({position for position in found if position is not None}) > 1
