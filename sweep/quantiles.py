"""Normal, log-normal and beta parameters: Optuna searches a quantile, and the value is the inverse CDF of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

from optuna.distributions import BaseDistribution, FloatDistribution

from sweep.parameters import LARGEST_COUNT, Parameter, is_number, multiple, steps_of

QUANTILE_EDGE = (
    1e-3  # the ends are cut here (a normal at 3.09 sigma): they exist and can be checked before a sweep starts
)
SIGNIFICANT_DIGITS = 12  # of a value computed from a quantile, whose last digits are noise
SHAPES = (0.1, 1e4)  # a and b of a beta: beyond them, values crowd at 0 and 1, or all are one number


class QuantileParameter(Parameter):
    """Values with a cumulative distribution; with `q`, rounded to its nearest multiple.

    The quantile lies between QUANTILE_EDGE and 1 - QUANTILE_EDGE: the rare values beyond, which W&B would draw twice in
    a thousand trials, are never drawn.
    """

    q: int | float | None
    extent: ClassVar[str]
    """The range between the two edges, in words."""

    @abstractmethod
    def cdf(self, x: float) -> float:
        """Share of the values below x, before rounding to q."""

    @abstractmethod
    def inverse_cdf(self, share: float) -> float:
        """The x that `share` of the values are below."""

    @property
    def distribution(self) -> BaseDistribution:
        return FloatDistribution(QUANTILE_EDGE, 1 - QUANTILE_EDGE)

    def to_value(self, stored: Any) -> Any:
        x = self.inverse_cdf(stored)
        return float(f"{x:.{SIGNIFICANT_DIGITS}g}") if self.q is None else multiple(self.q, round(x / self.q))

    def from_value(self, value: Any) -> float:
        low, high = self._ends
        on_grid = is_number(value) if self.q is None else steps_of(self.q, value) is not None
        if not on_grid or not low <= value <= high:
            step = "" if self.q is None else f", a multiple of {self.q},"
            raise ValueError(f"must be a number{step} from {low:.6g} to {high:.6g}, {self.extent}")
        return min(max(self.cdf(value), QUANTILE_EDGE), 1 - QUANTILE_EDGE)

    @property
    def count(self) -> int | None:
        return None if self.q is None else self._first_and_last[1] - self._first_and_last[0] + 1

    def value_at(self, index: int) -> Any:
        if self.q is not None:
            return multiple(self.q, self._first_and_last[0] + index)
        return self.to_value((QUANTILE_EDGE, 0.5, 1 - QUANTILE_EDGE)[index])

    @property
    def _ends(self) -> tuple[Any, Any]:
        return self.to_value(QUANTILE_EDGE), self.to_value(1 - QUANTILE_EDGE)

    @property
    def _first_and_last(self) -> tuple[int, int]:
        assert self.q is not None
        low, high = self._ends
        return round(low / self.q), round(high / self.q)

    def _can_be_calculated(self) -> bool:
        """Whether both ends are numbers, and no more steps of q away from 0 than a float can count."""
        try:
            return all(is_number(end) and abs(end) <= LARGEST_COUNT * (self.q or math.inf) for end in self._ends)
        except OverflowError:
            return False


@dataclass(frozen=True)
class Normal(QuantileParameter):
    """normal or, with `log`, log-normal (mu and sigma are then those of the logarithm)."""

    mu: float
    sigma: float
    log: bool = False
    q: int | float | None = None

    extent = "3.09 sigma on each side"

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma = {self.sigma}; must be > 0 (a fixed value is written value: {self.mu})")
        if not self._can_be_calculated():
            raise ValueError(
                f"mu = {self.mu}, sigma = {self.sigma} give values too large for a number or for q; "
                "in a log_normal they are those of the natural logarithm"
            )

    def cdf(self, x: float) -> float:
        if self.log:
            if x <= 0:  # what a q rounds to zero
                return 0.0
            x = math.log(x)
        return NormalDist(self.mu, self.sigma).cdf(x)

    def inverse_cdf(self, share: float) -> float:
        x = NormalDist(self.mu, self.sigma).inv_cdf(share)
        return math.exp(x) if self.log else x


@dataclass(frozen=True)
class Beta(QuantileParameter):
    """beta: between 0 and 1, with density x^(a-1) (1-x)^(b-1); a = b = 1 is uniform, a > b leans to 1."""

    a: float
    b: float
    q: int | float | None = None

    extent = "the middle 99.8 % of the distribution"

    def __post_init__(self) -> None:
        for name, shape in (("a", self.a), ("b", self.b)):
            if not SHAPES[0] <= shape <= SHAPES[1]:
                raise ValueError(f"{name} = {shape}; must be from {SHAPES[0]} to {SHAPES[1]:.0f}")
        if not self._can_be_calculated():
            raise ValueError(f"q = {self.q} cuts 0-1 into more than 2^53 steps; give a larger q, or use beta")

    def cdf(self, x: float) -> float:
        from scipy.special import betainc  # 0.5 s of the start of a command, for a beta alone

        return float(betainc(self.a, self.b, min(max(x, 0.0), 1.0)))  # a q may round to beyond 1

    def inverse_cdf(self, share: float) -> float:
        from scipy.special import betaincinv

        return float(betaincinv(self.a, self.b, share))
