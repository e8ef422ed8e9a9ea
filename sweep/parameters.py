"""One searched parameter: its Optuna distribution, and values there and back.

Optuna stores what it searches under the parameter's own name, but not always as the trainer's value:

| parameter | Optuna stores |
|---|---|
| int_uniform, uniform, q_uniform, (inv_)log_uniform(_values), categorical | the value |
| categorical with lists or mappings among its values | the value as JSON text |
| q_log_uniform, q_log_uniform_values | the value as a count of q, so that it is log-uniform and on the grid |
| (q_)normal, (q_)log_normal, (q_)beta, categorical_w_probabilities | a quantile, uniform in (0, 1) |

So read a study through `Space.to_values`. The normal and beta ones are in sweep/quantiles.py.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

LARGEST_COUNT = 2**53  # a float cannot tell neighbouring steps apart beyond it
LARGEST_NUMBER = 1e300  # the difference of two such numbers is one
INSIDE = (math.sqrt(5) - 1) / 2  # an odd place between two ends: whole ends can be right where what lies between is not
MAX_PROBES = 64  # values of one parameter that are tried on TrainConfig when a spec is loaded


class Parameter(ABC):
    """One searched parameter. Values are plain data: numbers, text, lists, mappings."""

    @property
    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """What Optuna searches."""

    @abstractmethod
    def to_value(self, stored: Any) -> Any:
        """Optuna's parameter -> the trainer's value."""

    @abstractmethod
    def from_value(self, value: Any) -> Any:
        """The trainer's value -> Optuna's parameter. Raises ValueError, with what is allowed, for one outside."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many values there are; None for a continuous parameter."""

    @abstractmethod
    def value_at(self, index: int) -> Any:
        """The value of that number, 0 <= index < count; of a continuous parameter: 0 low end, 1 inside, 2 high end."""

    def probes(self) -> list[Any]:
        """Values that stand for all: every one where they are few, else some. Both ends first, an inner one last."""
        count = 3 if self.count is None else self.count
        inner = range(1, count - 1) if count <= MAX_PROBES else (1, count // 2)
        return [self.value_at(index) for index in dict.fromkeys((0, count - 1, *inner))]

    def contains(self, value: Any) -> bool:
        """Whether the search could give this value."""
        try:
            self.from_value(value)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Choice(Parameter):
    """categorical: one of `values`, all as likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values is empty; give at least one value")
        for index, value in enumerate(self.values):
            if value in self.values[:index]:
                raise ValueError(f"values has {value!r} twice; give it once (to try it more often, use probabilities)")

    @property
    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self._stored)

    @property
    def _stored(self) -> tuple[Any, ...]:
        # Optuna's storages keep numbers, text, true/false and null only
        if all(isinstance(value, str | int | float | bool | None) for value in self.values):
            return self.values
        return tuple(json.dumps(value) for value in self.values)

    def to_value(self, stored: Any) -> Any:
        return self.values[self._stored.index(stored)]

    def from_value(self, value: Any) -> Any:
        return self._stored[self.index(value)]

    def index(self, value: Any) -> int:
        """Place of a value in `values`. Raises ValueError for one that is not there."""
        if value not in self.values:
            raise ValueError(f"must be one of {', '.join(map(repr, self.values))}")
        return self.values.index(value)

    @property
    def count(self) -> int:
        return len(self.values)

    def value_at(self, index: int) -> Any:
        return self.values[index]


@dataclass(frozen=True)
class WeightedChoice(Choice):
    """categorical_w_probabilities: the probabilities cut (0, 1) into intervals; the quantile falls into one of them."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        given = list(self.probabilities)
        if len(given) != len(self.values):
            raise ValueError(f"probabilities has {len(given)} numbers for {len(self.values)} values; give one for each")
        if min(given) < 0 or not math.isclose(math.fsum(given), 1.0, abs_tol=1e-6):
            raise ValueError(f"probabilities = {given} sum to {math.fsum(given):.6g}; must be >= 0 and sum to 1")

    @property
    def distribution(self) -> BaseDistribution:
        return FloatDistribution(0.0, 1.0)

    def to_value(self, stored: Any) -> Any:
        edges = list(itertools.accumulate(self.probabilities))[:-1]
        index = bisect_right(edges, stored)
        while self.probabilities[index] == 0:  # only where stored is 1.0 and the last values have no probability
            index -= 1
        return self.values[index]

    def from_value(self, value: Any) -> float:
        index = self.index(value)
        if self.probabilities[index] == 0:
            raise ValueError("has probability 0")
        return math.fsum(self.probabilities[:index]) + self.probabilities[index] / 2


@dataclass(frozen=True)
class Continuous(Parameter):
    """uniform or, with `log`, log-uniform between low and high, both included."""

    low: float
    high: float
    log: bool = False

    @property
    def distribution(self) -> BaseDistribution:
        return FloatDistribution(self.low, self.high, log=self.log)

    def to_value(self, stored: Any) -> float:
        return float(stored)

    def from_value(self, value: Any) -> float:
        if not is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"must be a number from {self.low:.6g} to {self.high:.6g}")
        return float(value)

    @property
    def count(self) -> None:
        return None

    def value_at(self, index: int) -> float:
        inside = self.low + (self.high - self.low) * INSIDE
        return (self.low, inside, self.high)[index]


@dataclass(frozen=True)
class Steps(Parameter):
    """Multiples of q: `first * q`, ..., `last * q`; uniform or, with `log`, log-uniform. q = 1 is int_uniform."""

    q: int | float
    first: int
    last: int
    log: bool = False

    def __post_init__(self) -> None:
        if max(abs(self.first), abs(self.last)) > LARGEST_COUNT:
            raise ValueError(f"the range holds more than 2^53 steps of {self.q}; give a larger q or a smaller range")

    @property
    def distribution(self) -> BaseDistribution:
        if self.log:
            return IntDistribution(self.first, self.last, log=True)  # Optuna has no log distribution with steps
        if isinstance(self.q, int):
            return IntDistribution(self.first * self.q, self.last * self.q, step=self.q)
        return FloatDistribution(multiple(self.q, self.first), multiple(self.q, self.last), step=self.q)

    def to_value(self, stored: Any) -> Any:
        return multiple(self.q, stored if self.log else round(stored / self.q))

    def from_value(self, value: Any) -> Any:
        steps = steps_of(self.q, value)
        if steps is None or not self.first <= steps <= self.last:
            low, high = multiple(self.q, self.first), multiple(self.q, self.last)
            raise ValueError(
                f"must be {'a whole number' if self.q == 1 else f'a multiple of {self.q}'} from {low} to {high}"
            )
        return steps if self.log else multiple(self.q, steps)

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def value_at(self, index: int) -> Any:
        return multiple(self.q, self.first + index)


def multiple(q: int | float, steps: int) -> Any:
    """steps * q; an int where q is one, else by decimals: 13 * 0.05 is 0.65 here, not 0.6500000000000001."""
    return steps * q if isinstance(q, int) else float(steps * Decimal(repr(q)))


def steps_of(q: int | float, value: Any) -> int | None:
    """How many q a value is; None for what is no multiple of it."""
    if not is_number(value) or abs(value / q) > LARGEST_COUNT:
        return None
    steps = round(value / q)
    return steps if math.isclose(value, multiple(q, steps), rel_tol=1e-9) else None


def is_number(value: Any) -> bool:
    """Whether it is an int or float that one can calculate with; true, NaN and infinity are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER
