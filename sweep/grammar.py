"""W&B's grammar of `parameters`: nested names, and one entry -> Parameter.

A `q` means multiples of q, as in W&B, but only those within [min, max]: where min is no multiple, the first value is
the multiple above it (Optuna alone would count from min), and where max is none, the last value is the multiple below.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from model.errors import guess
from sweep.parameters import LARGEST_NUMBER, Choice, Continuous, Parameter, Steps, WeightedChoice, is_number
from sweep.quantiles import Beta, Normal

_RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "inv_log_uniform", "inv_log_uniform_values")
KEYS = {  # distribution -> the keys of its entry
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    **dict.fromkeys(_RANGES, ("min", "max")),
    **dict.fromkeys(("q_uniform", "q_log_uniform", "q_log_uniform_values"), ("min", "max", "q")),
    **dict.fromkeys(("normal", "log_normal"), ("mu", "sigma")),
    **dict.fromkeys(("q_normal", "q_log_normal"), ("mu", "sigma", "q")),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
}
DEFAULTS = {"mu": 0.0, "sigma": 1.0, "a": 1, "b": 1, "q": 1}  # W&B's
EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")  # their min and max are exponents of e


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


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`: dotted names -> nested `parameters`, all of them copies."""
    nested: dict[str, Any] = {}
    for name, entry in flat.items():
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {"parameters": {}})["parameters"]
        place[last] = copy.deepcopy(entry)
    return nested


def distribution_of(entry: Mapping[str, Any]) -> str:
    """The distribution, given or as W&B concludes it from the keys."""
    if "distribution" in entry:
        name = entry["distribution"]
        if not isinstance(name, str) or name not in KEYS:
            raise ValueError(f"unknown distribution {name!r};{guess(str(name), KEYS)} Known: {', '.join(KEYS)}.")
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
    keys = KEYS[distribution]
    for key in entry:
        if key != "distribution" and key not in keys:
            owners = [name for name in KEYS if key in KEYS[name]]
            place = f"it belongs to {', '.join(owners)}" if owners else guess(str(key), keys).strip() or "no such key"
            raise ValueError(f"{key!r} has no meaning for {distribution} ({', '.join(keys)}); {place}")
    missing = [key for key in keys if key not in entry and key not in DEFAULTS]
    if missing:
        raise ValueError(f"{distribution} needs {' and '.join(missing)}")
    arguments = {key: entry.get(key, DEFAULTS.get(key)) for key in keys}
    for key in ("values", "probabilities"):
        if key in arguments and not isinstance(arguments[key], list):
            raise ValueError(f"{key} = {arguments[key]!r}; must be a list")
    numbers = {key: v for key, v in arguments.items() if key not in ("value", "values", "probabilities")}
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
    if "beta" in distribution:
        return Beta(given["a"], given["b"], given.get("q"))
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
    if distribution in EXPONENTS:
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
