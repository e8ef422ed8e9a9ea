"""A trial of an earlier sweep in terms of the present one: which values it has in the present space, and whether the
present sweep could have run that very trial. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from model.config import TrainConfig
from model.configfile import field_value
from model.errors import ConfigError
from sweep.spec import SweepSpec

FREE = ("device", "compile", "pictures", "probe", "data.store_dir")  # of the trainer: no metric depends on them
CHOSEN_BY_MACHINE = "precision"  # where it is auto

Values = dict[str, Any]


class NoCounterpartError(ValueError):
    """A trial of the earlier sweep is none that the present one could have run; the message says what is otherwise."""


class SpaceMapping:
    """From the trials of an earlier sweep to the present space.

    Attributes:
        differing: trainer fields that are searched in neither sweep and differ, each as `epochs: 4 there, 8 here`.
            Where there is one, no value of the earlier sweep compares with one of the present.
        fixed_now: parameters that the earlier sweep searched and the present one does not.
    """

    def __init__(self, spec: SweepSpec, earlier: SweepSpec) -> None:
        self._spec = spec
        self._blocks = {name: list(_blocks(spec, name)) for name in spec.space.parameters}
        searched = spec.space.parameters.keys() | earlier.space.parameters.keys()
        if "alpha" in searched:  # where beta is not given it follows alpha: `check_same` looks at it trial by trial
            searched |= {"beta"}
        here, there = (_fields(s.space.to_config(s.trainer, {})) for s in (spec, earlier))
        self.differing = tuple(
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
            for name in _unequal(there, here)
            if not _within(name, searched)
        )
        if earlier.search.pbt is not None:
            self.differing += ("search.pbt: its trials changed weights midway",)
        self.fixed_now = tuple(name for name in earlier.space.parameters if name not in spec.space.parameters)

    def values(self, config: TrainConfig, seed: str) -> Values:
        """Values of every searched parameter, read from the config that the trial was trained with.

        Of a parameter that does not matter for the trial (search.conditions) any value is right: where its own lies
        outside the space, one is drawn, as a sampler does, by `seed`.

        Raises NoCounterpartError for a value outside the present space.
        """
        content = _content(config)
        space = self._spec.space
        found = {name: self._value(name, field_value(content, name)) for name in space.parameters}
        matter = space.that_matter(found)
        for name, parameter in space.parameters.items():
            try:
                parameter.from_value(found[name])
            except ValueError as error:
                if name in matter:
                    raise NoCounterpartError(f"{name} {error}") from None
                found[name] = random.Random(f"{seed}:{name}").choice(parameter.probes())
        return found

    def check_same(self, config: TrainConfig, values: Values) -> None:
        """Raise NoCounterpartError unless the present sweep trains these values with the very same config."""
        try:
            ours = self._spec.space.to_config(self._spec.trainer, self._spec.space.that_matter(values))
        except ConfigError:
            raise NoCounterpartError("the present trainer refuses it") from None
        here, there = _fields(ours), _fields(config)
        for name in _unequal(there, here):
            raise NoCounterpartError(f"{name} is not {here.get(name)!r}")

    def _value(self, name: str, value: Any) -> Any:
        """A block of the config as the parameter has it: without the fields that it leaves at their defaults."""
        if not isinstance(value, dict):
            return value
        return next((choice for choice, filled in self._blocks[name] if filled == value), value)


def _blocks(spec: SweepSpec, name: str) -> Iterator[tuple[Any, Values]]:
    """(value, the block of the config that it makes) for each value of a parameter whose values are blocks."""
    parameter = spec.space.parameters[name]
    for number in range(parameter.count or 0):
        if not isinstance(value := parameter.value_at(number), dict):
            return
        with suppress(ConfigError):  # it trains with other values only; then it is not found, and the trial left out
            yield value, field_value(_content(spec.space.to_config(spec.trainer, {name: value})), name)


def _content(config: TrainConfig) -> Values:
    """A config as plain data, with beta filled in."""
    return config.model_dump(mode="json") | {"beta": config.weights[1]}


def _fields(config: TrainConfig) -> Values:
    """Dotted names of the fields that decide what a trial computes, and their values."""
    return {name: value for name, value in _flat(_content(config)) if not _within(name, FREE)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _within(name: str, parents: Any) -> bool:
    """Whether a field is one of these, or in a block that is."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _unequal(there: Values, here: Values) -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        one, other = there.get(name), here.get(name)
        if name == CHOSEN_BY_MACHINE and "auto" in (one, other):
            continue
        if not _same(one, other):
            yield name


def _same(one: Any, other: Any) -> bool:
    """Whether two values train alike: 1 - 0.7 and a searched 0.3 differ in the last digit only."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)
