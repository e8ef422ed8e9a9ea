"""Population-based training (Jaderberg et al. 2017): who goes on from whose weights, with which values. Pure.

The population moves in step: all trials train to the same epoch, then the worst copy the best. So a copied trial goes
on at the very next epoch of its own, and a turn depends on nothing but the values at that epoch and the seed: not on
the number of workers, nor on who was faster, nor on interruptions. Presets are copied but never copy: the sweep's gain
is measured against them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from sweep.blocks import Pbt
from sweep.parameters import Choice, Continuous, Parameter, Steps, WeightedChoice, multiple, steps_of

COPIED = "copied.pt"  # beside a trial's own checkpoint: that of the trial whose weights it goes on from
FACTORS = (0.8, 1.2)  # by which a number is perturbed (Jaderberg et al. 2017, section 4)


class Change(BaseModel):
    """A trial that went on from another's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int
    """Epochs that were done by then."""
    trial: str
    source: str
    """The trial whose weights and optimiser it took."""
    values: dict[str, Any]
    """Its values of the parameters that change, from then on."""

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.6g}" for name, value in self.values.items())
        return f"after {self.epochs} epochs: weights of trial {self.source}, {values}"


def turn(
    pbt: Pbt,
    parameters: Mapping[str, Parameter],
    epochs: int,
    scores: Mapping[str, float],
    values: Mapping[str, Mapping[str, Any]],
    presets: Collection[str],
    seed: int,
) -> list[Change]:
    """What changes after so many epochs.

    Args:
        parameters: the searched ones, by name; pbt.parameters are among them.
        scores: of each trial that goes on; the smaller, the better.
        values: of each of these trials, now.
        presets: trials that stay as they are.
        seed: of the search; with `epochs` it fixes all draws.
    """
    ranking = sorted(scores, key=lambda trial: (scores[trial], trial))
    count = min(math.ceil(len(ranking) * pbt.quantile), len(ranking) // 2)
    best, worst = ranking[:count], ranking[len(ranking) - count :]
    draws = random.Random(f"{seed}:{epochs}")
    changes = []
    for trial in worst:
        source = draws.choice(best)
        new = {
            name: redrawn(parameters[name], draws)
            if draws.random() < pbt.resample
            else perturbed(parameters[name], values[source][name], draws)
            for name in pbt.parameters
            if name in values[source]
        }
        if trial not in presets:
            changes.append(Change(epochs=epochs, trial=trial, source=source, values=new))
    return changes


def can_change(parameter: Parameter) -> bool:
    """Whether `perturbed` and `redrawn` know this kind of parameter."""
    return isinstance(parameter, Choice | Continuous | Steps)


def perturbed(parameter: Parameter, value: Any, draws: random.Random) -> Any:
    """A value beside this one, inside the space: times one of FACTORS, or the choice before or after."""
    if isinstance(parameter, Choice):
        place = parameter.index(value)
        beside = [at for at in (place - 1, place + 1) if 0 <= at < parameter.count]
        beside = [at for at in beside if parameter.contains(parameter.values[at])]  # else of probability 0
        return parameter.values[draws.choice(beside)] if beside else value
    factor = draws.choice(FACTORS)
    if isinstance(parameter, Steps):
        now = steps_of(parameter.q, value)
        assert now is not None, "a trial's values are in its space"
        away = 1 if now * factor > now else -1
        steps = now + away * max(1, abs(round(now * factor) - now))
        return multiple(parameter.q, min(max(steps, parameter.first), parameter.last))
    assert isinstance(parameter, Continuous)
    return min(max(value * factor, parameter.low), parameter.high)


def redrawn(parameter: Parameter, draws: random.Random) -> Any:
    """A value drawn anew, as the search draws a trial's first one."""
    if isinstance(parameter, WeightedChoice):
        return parameter.to_value(draws.random())
    if isinstance(parameter, Choice):
        return draws.choice(parameter.values)
    if isinstance(parameter, Steps):
        if not parameter.log:
            return multiple(parameter.q, draws.randint(parameter.first, parameter.last))
        low, high = math.log(parameter.first - 0.5), math.log(parameter.last + 0.5)
        steps = round(math.exp(draws.uniform(low, high)))
        return multiple(parameter.q, min(max(steps, parameter.first), parameter.last))
    assert isinstance(parameter, Continuous)
    if not parameter.log:
        return min(max(draws.uniform(parameter.low, parameter.high), parameter.low), parameter.high)
    value = math.exp(draws.uniform(math.log(parameter.low), math.log(parameter.high)))
    return min(max(value, parameter.low), parameter.high)
