"""The Pareto front of points with several objectives. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweep.blocks import Goal, sign_of


def pareto_front(points: Sequence[tuple[float, ...]], goals: Sequence[Goal]) -> list[int]:
    """Places of the points that no other point dominates, in order.

    A point dominates another that it is nowhere worse than and somewhere better. Equal points do not dominate each
    other: all of them are in the front, or none. A point with NaN is never in it and dominates none.

    Args:
        points: [n], each with one number per goal.
    """
    signs = [sign_of(goal) for goal in goals]
    places: dict[tuple[float, ...], list[int]] = {}
    for place, point in enumerate(points):
        if not any(map(math.isnan, point)):
            places.setdefault(tuple(sign * x for sign, x in zip(signs, point, strict=True)), []).append(place)
    front: list[tuple[float, ...]] = []
    # in lexical order no point is dominated by a later one, so the front so far is all that it has to be held against
    for point in sorted(places):
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in front):
            front.append(point)
    return sorted(place for point in front for place in places[point])
