"""The search space: what Optuna searches, values there and back, and the TrainConfig of a trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution

from model.config import TrainConfig
from model.configfile import field_value, set_field, validated
from model.errors import guess
from sweep.grammar import distribution_of, parse_entry
from sweep.parameters import Choice, Continuous

__all__ = ["Choice", "Space", "distribution_of"]  # what readers of a spec's space need, in one place


MAX_LISTED = 100_000  # combinations that are made to be counted


class Space:
    """The parameters of a sweep by dotted TrainConfig names: what is searched, and what is constant.

    Args:
        entries: flat names -> entries in W&B's grammar, such as `SweepSpec.parameters`. ValueError for a wrong one.
        conditions: parameter -> other parameter -> the value, or list of values, with which the first one matters.
            A sampler still draws a parameter that does not matter, so that each of them can be used; it is dropped
            from the trainer's values.

    Attributes:
        parameters: what is searched.
        constants: values (W&B's `value`) that every trial gets.
    """

    def __init__(
        self, entries: Mapping[str, Mapping[str, Any]], conditions: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        parsed = {name: parse_entry(entry) for name, entry in entries.items()}
        self.parameters = {name: parameter for name, parameter in parsed.items() if parameter is not None}
        self.constants = {name: entries[name]["value"] for name, parameter in parsed.items() if parameter is None}
        self.conditions = {name: dict(needed) for name, needed in (conditions or {}).items()}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What `study.ask(distributions)` takes."""
        return {name: parameter.distribution for name, parameter in self.parameters.items()}

    def to_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters (all, or some) -> the trainer's values of the searched parameters that matter."""
        return self.that_matter({name: self.parameters[name].to_value(stored) for name, stored in params.items()})

    def that_matter(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without the values of parameters whose conditions do not hold."""
        if not self.conditions:
            return dict(values)
        return {name: value for name, value in values.items() if self.matters(name, values)}

    def matters(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether the conditions of a parameter hold."""
        return all(
            other in values and values[other] in _listed(wanted) and self.matters(other, values)
            for other, wanted in self.conditions.get(name, {}).items()
        )

    def at_ends(self, values: Mapping[str, Any]) -> list[str]:
        """Continuous parameters whose value is an end of their range, to 1 % of it: the best may lie beyond."""
        found = []
        for name, value in values.items():
            parameter = self.parameters[name]
            if isinstance(parameter, Continuous):
                low, high, x = (math.log(y) if parameter.log else y for y in (parameter.low, parameter.high, value))
                if min(x - low, high - x) < 0.01 * (high - low):
                    found.append(name)
        return found

    def needed(self, name: str) -> dict[str, Any]:
        """Values of other parameters with which this one matters."""
        values: dict[str, Any] = {}
        for other, wanted in self.conditions.get(name, {}).items():
            values |= self.needed(other) | {other: _listed(wanted)[0]}
        return values

    def from_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The trainer's values (all, or some) -> Optuna's parameters, for `study.enqueue_trial`.

        The inverse of `to_values`, exactly where each value is stored by one number; a value that many quantiles give
        comes back as one of them. Raises ValueError for an unknown name or a value outside the space.
        """
        params = {}
        for name, value in values.items():
            if name not in self.parameters:
                hint = " it is a constant." if name in self.constants else guess(name, self.parameters)
                raise ValueError(f"{name!r} is not searched;{hint} Searched: {', '.join(self.parameters)}.")
            try:
                params[name] = self.parameters[name].from_value(_plain(value))
            except ValueError as error:
                raise ValueError(f"{name} = {value!r}; {error}") from None
        return params

    @cached_property
    def grid_size(self) -> int | None:
        """How many combinations there are, by their conditions; None where a parameter is continuous."""
        size = 1
        for parameter in self.parameters.values():
            if parameter.count is None:
                return None
            size *= parameter.count
        return len(self.grid()) if self.conditions and size <= MAX_LISTED else size

    def grid(self) -> list[dict[str, Any]]:
        """Values of every combination; the last parameter changes fastest. Raises ValueError for a continuous one."""
        for name, parameter in self.parameters.items():
            if parameter.count is None:
                raise ValueError(f"{name} is continuous: it has no grid; give values, or a q_ distribution")
        axes = [[p.value_at(i) for i in range(p.count or 0)] for p in self.parameters.values()]
        points = [
            self.that_matter(dict(zip(self.parameters, point, strict=True))) for point in itertools.product(*axes)
        ]
        return list({repr(point): point for point in points}.values()) if self.conditions else points

    def default_presets(self) -> tuple[dict[str, Any], ...]:
        """Equal weights, and balanced ones: the dynamic loss is usually 1.5-2 times the static one."""
        if "alpha" not in self.parameters:
            return ()
        weights = [(0.5, 0.5), (0.75, 0.25)]
        presets = [{"alpha": a, "beta": b} if "beta" in self.parameters else {"alpha": a} for a, b in weights]
        return tuple(p for p in presets if all(self.parameters[name].contains(value) for name, value in p.items()))

    def fill_preset(self, preset: Mapping[str, Any], base: TrainConfig) -> dict[str, Any]:
        """`preset` and, for the parameters that it leaves open, the base config's own values: what one runs by hand.

        A base value that the search could not give is left out, so that the sampler picks one.
        """
        shared = base.model_dump(mode="json")
        filled = {}
        for name, parameter in self.parameters.items():
            if name in preset:
                filled[name] = _plain(preset[name])
            elif parameter.contains(value := field_value(shared, name)):
                filled[name] = value
        return filled

    def to_config(self, base: TrainConfig, values: Mapping[str, Any], where: str = "trial") -> TrainConfig:
        """The base config with the constants and then these values (dotted names) in place, validated anew.

        Raises ConfigError, which starts with `where`, for values that TrainConfig refuses.
        """
        content = base.model_dump(mode="json")
        for name, value in {**self.constants, **values}.items():
            set_field(content, name, value)
        return validated(TrainConfig, content, where)


def _listed(wanted: Any) -> Sequence[Any]:
    return wanted if isinstance(wanted, list | tuple) else [wanted]


def _plain(value: Any) -> Any:
    # a preset from Python may hold tuples where YAML has lists
    return list(value) if isinstance(value, tuple) else value
