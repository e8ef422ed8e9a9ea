"""The Pareto front against its definition."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.pareto import pareto_front

Goals = list[Literal["minimize", "maximize"]]

# few different numbers, so that ties and equal points happen
NUMBERS = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan]) | st.floats()


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[float, ...]], Goals]:
    goals: Goals = draw(st.lists(st.sampled_from(["minimize", "maximize"]), min_size=1, max_size=4))
    points = draw(st.lists(st.tuples(*[NUMBERS] * len(goals)), max_size=12))
    return points, goals


def dominates(a: tuple[float, ...], b: tuple[float, ...], goals: Goals) -> bool:
    """The definition, comparison by comparison; False wherever NaN is involved."""
    pairs = [(x, y) if goal == "minimize" else (y, x) for x, y, goal in zip(a, b, goals, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(problems())
def test_the_front_holds_what_no_point_dominates(problem):
    points, goals = problem
    expected = [
        place
        for place, point in enumerate(points)
        if not any(map(math.isnan, point)) and not any(dominates(other, point, goals) for other in points)
    ]
    assert pareto_front(points, goals) == expected


@pytest.mark.parametrize(
    ("points", "goals", "front"),
    [
        ([], ["minimize"], []),
        ([(1.0, 2.0), (2.0, 1.0), (2.0, 3.0)], ["minimize", "minimize"], [0, 1]),
        ([(1.0, 2.0), (2.0, 1.0), (2.0, 3.0)], ["minimize", "maximize"], [0, 2]),
        ([(1.0, 1.0), (1.0, 1.0), (1.0, 2.0)], ["minimize", "minimize"], [0, 1]),
        ([(math.nan, 0.0), (1.0, 1.0)], ["minimize", "minimize"], [1]),
        ([(0.0,), (-0.0,), (1.0,)], ["minimize"], [0, 1]),
    ],
    ids=["none", "both least", "goals differ", "equal points", "NaN", "two zeros"],
)
def test_the_front_of_a_few_points(points, goals, front):
    assert pareto_front(points, goals) == front


def test_a_point_needs_a_number_for_each_goal():
    with pytest.raises(ValueError, match="shorter"):
        pareto_front([(1.0,)], ["minimize", "minimize"])
