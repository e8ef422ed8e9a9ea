"""The search space: W&B's grammar of one parameter, its Optuna distribution, and values there and back.

Optuna stores what it searches under the parameter's own name, but not always as the trainer's value:

| parameter | Optuna stores |
|---|---|
| int_uniform, uniform, q_uniform, (inv_)log_uniform(_values), categorical | the value |
| categorical with lists or mappings among its values | the value as JSON text |
| q_log_uniform, q_log_uniform_values | the value as a count of q, so that it is log-uniform and on the grid |
| (q_)normal, (q_)log_normal, categorical_w_probabilities | a quantile, uniform in (0, 1) |

So read a study through `Space.to_values`. A `q` means multiples of q, as in W&B, but only those within [min, max]:
where min is no multiple, the first value is the multiple above it (Optuna alone would count from min), and where max is
none, the last value is the multiple below it.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from statistics import NormalDist
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from model.config import TrainConfig
from model.configfile import validated
from model.errors import guess

LARGEST_COUNT = 2**53  # a float cannot tell neighbouring steps apart beyond it
LARGEST_NUMBER = 1e300  # the difference of two such numbers is one
INSIDE = (math.sqrt(5) - 1) / 2  # an odd place between two ends: whole ends can be right where what lies between is not
QUANTILE_EDGE = 1e-3  # normals are cut here, at 3.09 sigma: their ends exist and can be checked before a sweep starts
SIGNIFICANT_DIGITS = 12  # of a value computed from a quantile, whose last digits are noise
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
        steps = _steps_of(self.q, value)
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


@dataclass(frozen=True)
class Normal(Parameter):
    """normal or, with `log`, log-normal (mu and sigma are then those of the logarithm); with `q`, its nearest multiple.

    The value is the inverse CDF of a quantile between QUANTILE_EDGE and 1 - QUANTILE_EDGE: the rare values beyond 3.09
    sigma, which W&B would draw twice in a thousand trials, are never drawn.
    """

    mu: float
    sigma: float
    log: bool = False
    q: int | float | None = None

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma = {self.sigma}; must be > 0 (a fixed value is written value: {self.mu})")
        try:
            ends = [self.to_value(QUANTILE_EDGE), self.to_value(1 - QUANTILE_EDGE)]
        except OverflowError:
            ends = [math.inf]
        if not all(map(is_number, ends)) or any(abs(end) > LARGEST_COUNT * (self.q or math.inf) for end in ends):
            raise ValueError(
                f"mu = {self.mu}, sigma = {self.sigma} give values too large for a number or for q; "
                "in a log_normal they are those of the natural logarithm"
            )

    @property
    def distribution(self) -> BaseDistribution:
        return FloatDistribution(QUANTILE_EDGE, 1 - QUANTILE_EDGE)

    def to_value(self, stored: Any) -> Any:
        x = NormalDist(self.mu, self.sigma).inv_cdf(stored)
        x = math.exp(x) if self.log else x
        return float(f"{x:.{SIGNIFICANT_DIGITS}g}") if self.q is None else multiple(self.q, round(x / self.q))

    def from_value(self, value: Any) -> float:
        low, high = self.to_value(QUANTILE_EDGE), self.to_value(1 - QUANTILE_EDGE)
        on_grid = is_number(value) if self.q is None else _steps_of(self.q, value) is not None
        if not on_grid or not low <= value <= high:
            step = "" if self.q is None else f", a multiple of {self.q},"
            raise ValueError(f"must be a number{step} from {low:.6g} to {high:.6g}, 3.09 sigma on each side")
        if self.log and value <= 0:  # what a q rounds to zero
            return QUANTILE_EDGE
        quantile = NormalDist(self.mu, self.sigma).cdf(math.log(value) if self.log else value)
        return min(max(quantile, QUANTILE_EDGE), 1 - QUANTILE_EDGE)

    @property
    def count(self) -> int | None:
        return None if self.q is None else self._first_and_last[1] - self._first_and_last[0] + 1

    def value_at(self, index: int) -> Any:
        if self.q is not None:
            return multiple(self.q, self._first_and_last[0] + index)
        return self.to_value((QUANTILE_EDGE, 0.5, 1 - QUANTILE_EDGE)[index])

    @property
    def _first_and_last(self) -> tuple[int, int]:
        assert self.q is not None
        return round(self.to_value(QUANTILE_EDGE) / self.q), round(self.to_value(1 - QUANTILE_EDGE) / self.q)


def multiple(q: int | float, steps: int) -> Any:
    """steps * q; an int where q is one, else by decimals: 13 * 0.05 is 0.65 here, not 0.6500000000000001."""
    return steps * q if isinstance(q, int) else float(steps * Decimal(repr(q)))


def _steps_of(q: int | float, value: Any) -> int | None:
    if not is_number(value) or abs(value / q) > LARGEST_COUNT:
        return None
    steps = round(value / q)
    return steps if math.isclose(value, multiple(q, steps), rel_tol=1e-9) else None


def is_number(value: Any) -> bool:
    """Whether it is an int or float that one can calculate with; true, NaN and infinity are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


_RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "inv_log_uniform", "inv_log_uniform_values")
_KEYS = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    **dict.fromkeys(_RANGES, ("min", "max")),
    **dict.fromkeys(("q_uniform", "q_log_uniform", "q_log_uniform_values"), ("min", "max", "q")),
    **dict.fromkeys(("normal", "log_normal"), ("mu", "sigma")),
    **dict.fromkeys(("q_normal", "q_log_normal"), ("mu", "sigma", "q")),
}
_DEFAULTS = {"mu": 0.0, "sigma": 1.0, "q": 1}  # W&B's
_EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")  # their min and max are exponents of e


def flatten(entries: Any, prefix: str = "") -> dict[str, Any]:
    """Nested `parameters` -> dotted names. Raises ValueError for what is no mapping, and for a name given twice."""
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(
            f"{entries!r}; must be a mapping of names to ranges, for example alpha: {{min: 0.1, max: 0.9}}"
        )
    flat: dict[str, Any] = {}
    for key, entry in entries.items():
        name = f"{prefix}{key}"
        nested = isinstance(entry, Mapping) and "parameters" in entry
        if nested and len(entry) > 1:
            raise ValueError(f"{name}: parameters must stand alone, but {', '.join(map(str, entry))} are given")
        inner = flatten(entry["parameters"], f"{name}.") if nested else {name: entry}
        if twice := sorted(flat.keys() & inner.keys()):
            raise ValueError(f"{twice[0]!r} is given twice, nested and with a dot; keep one")
        flat |= inner
    return flat


def distribution_of(entry: Mapping[str, Any]) -> str:
    """The distribution, given or as W&B concludes it from the keys."""
    if "distribution" in entry:
        name = entry["distribution"]
        if not isinstance(name, str) or name not in _KEYS:
            raise ValueError(f"unknown distribution {name!r};{guess(str(name), _KEYS)} Known: {', '.join(_KEYS)}.")
        return name
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if "min" in entry and "max" in entry:
        whole = all(isinstance(entry[key], int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise ValueError(
        f"{dict(entry)} says no range; give value, values, or min and max, or name a distribution; "
        "names within names go under parameters"
    )


def _arguments(distribution: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's keys without `distribution`, W&B's defaults filled in, numbers checked."""
    keys = _KEYS[distribution]
    for key in entry:
        if key != "distribution" and key not in keys:
            owners = [name for name in _KEYS if key in _KEYS[name]]
            place = f"it belongs to {', '.join(owners)}" if owners else guess(str(key), keys).strip() or "no such key"
            raise ValueError(f"{key!r} has no meaning for {distribution} ({', '.join(keys)}); {place}")
    missing = [key for key in keys if key not in entry and key not in _DEFAULTS]
    if missing:
        raise ValueError(f"{distribution} needs {' and '.join(missing)}")
    arguments = {key: entry.get(key, _DEFAULTS.get(key)) for key in keys}
    for key in ("values", "probabilities"):
        if key in arguments and not isinstance(arguments[key], list):
            raise ValueError(f"{key} = {arguments[key]!r}; must be a list")
    numbers = {key: v for key, v in arguments.items() if key in ("min", "max", "q", "mu", "sigma")}
    for key, number in [*numbers.items(), *(("probabilities", p) for p in arguments.get("probabilities", ()))]:
        if not is_number(number):
            raise ValueError(f"{key} = {number!r}; must be a number")
    if arguments.get("q", 1) <= 0:
        raise ValueError(f"q = {arguments['q']}; must be > 0: values are multiples of it")
    return arguments


def parse_entry(entry: Any) -> Parameter | None:
    """One entry of `parameters` -> what is searched; None for a constant.

    Raises ValueError where a key is missing, unknown or foreign to the distribution, or a range is impossible.
    """
    if not isinstance(entry, Mapping):
        key = "values" if isinstance(entry, list) else "value"
        raise ValueError(f"{entry!r}; must be a mapping, for example {{{key}: {entry!r}}}")
    distribution = distribution_of(entry)
    given = _arguments(distribution, entry)
    if distribution == "constant":
        return None
    if distribution == "categorical":
        return Choice(tuple(given["values"]))
    if distribution == "categorical_w_probabilities":
        return WeightedChoice(tuple(given["values"]), tuple(given["probabilities"]))
    log = "log" in distribution
    if "normal" in distribution:
        return Normal(given["mu"], given["sigma"], log, given.get("q"))
    low, high = _bounds(distribution, given["min"], given["max"])
    if distribution == "int_uniform":
        return Steps(1, _whole("min", low), _whole("max", high))
    if "q" not in given:
        return Continuous(float(low), float(high), log)
    q = Decimal(repr(given["q"]))
    first = int((Decimal(repr(low)) / q).to_integral_value(ROUND_CEILING))
    last = int((Decimal(repr(high)) / q).to_integral_value(ROUND_FLOOR))
    if first > last:
        raise ValueError(f"no multiple of q = {given['q']} lies from {low} to {high}; lower q or widen the range")
    return Steps(given["q"], first, last, log)


def _bounds(distribution: str, low: float, high: float) -> tuple[float, float]:
    """Smallest and largest value; for W&B's exponents that is e to their power."""
    if low >= high:
        raise ValueError(f"min = {low} is not below max = {high}; swap them, or write value for a fixed one")
    if distribution in _EXPONENTS:
        if distribution.startswith("inv"):
            low, high = -high, -low  # log(1 / x) is uniform
        if low < -math.log(LARGEST_NUMBER) or high > math.log(LARGEST_NUMBER):
            raise ValueError(
                f"{distribution} takes exponents of e, and e^{low} to e^{high} is no usable range; "
                f"to give the values themselves, write {distribution}_values"
            )
        return math.exp(low), math.exp(high)
    if "log" in distribution and low <= 0:
        raise ValueError(
            f"min = {low}; a log range must be above 0. {distribution} takes the values themselves; "
            f"exponents of e belong to {distribution.removesuffix('_values')}"
        )
    return low, high


def _whole(key: str, number: float) -> int:
    if number != int(number):
        raise ValueError(f"{key} = {number}; must be a whole number for int_uniform")
    return int(number)


class Space:
    """The parameters of a sweep by dotted TrainConfig names: what is searched, and what is constant.

    Args:
        entries: flat names -> entries in W&B's grammar, such as `SweepSpec.parameters`. ValueError for a wrong one.

    Attributes:
        parameters: what is searched.
        constants: values (W&B's `value`) that every trial gets.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        parsed = {name: parse_entry(entry) for name, entry in entries.items()}
        self.parameters = {name: parameter for name, parameter in parsed.items() if parameter is not None}
        self.constants = {name: entries[name]["value"] for name, parameter in parsed.items() if parameter is None}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What `study.ask(distributions)` takes."""
        return {name: parameter.distribution for name, parameter in self.parameters.items()}

    def to_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters (all, or some) -> the trainer's values of the searched parameters."""
        return {name: self.parameters[name].to_value(stored) for name, stored in params.items()}

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

    @property
    def grid_size(self) -> int | None:
        """How many combinations there are; None where a parameter is continuous."""
        size = 1
        for parameter in self.parameters.values():
            if parameter.count is None:
                return None
            size *= parameter.count
        return size

    def grid(self) -> list[dict[str, Any]]:
        """Values of every combination; the last parameter changes fastest. Raises ValueError for a continuous one."""
        for name, parameter in self.parameters.items():
            if parameter.count is None:
                raise ValueError(f"{name} is continuous: it has no grid; give values, or a q_ distribution")
        axes = [[p.value_at(i) for i in range(p.count or 0)] for p in self.parameters.values()]
        return [dict(zip(self.parameters, point, strict=True)) for point in itertools.product(*axes)]

    def fill_preset(self, preset: Mapping[str, Any], base: TrainConfig) -> dict[str, Any]:
        """`preset` and, for the parameters that it leaves open, the base config's own values: what one runs by hand.

        A base value that the search could not give is left out, so that the sampler picks one.
        """
        shared = base.model_dump(mode="json")
        filled = {}
        for name, parameter in self.parameters.items():
            if name in preset:
                filled[name] = _plain(preset[name])
            elif parameter.contains(value := _get(shared, name)):
                filled[name] = value
        return filled

    def to_config(self, base: TrainConfig, values: Mapping[str, Any], where: str = "trial") -> TrainConfig:
        """The base config with the constants and then these values (dotted names) in place, validated anew.

        Raises ConfigError, which starts with `where`, for values that TrainConfig refuses.
        """
        content = base.model_dump(mode="json")
        for name, value in {**self.constants, **values}.items():
            *parents, last = name.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        return validated(TrainConfig, content, where)


def _get(content: Mapping[str, Any], name: str) -> Any:
    place: Any = content
    for part in name.split("."):
        place = place[part]
    return place


def _plain(value: Any) -> Any:
    # a preset from Python may hold tuples where YAML has lists
    return list(value) if isinstance(value, tuple) else value
