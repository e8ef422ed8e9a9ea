"""The Pareto front of a sweep that optimises several metrics: trials that no other one beats in all of them."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.outcome import Outcome
from sweep.pareto import pareto_front
from sweep.spec import SweepSpec
from sweep.study import Record


def front_of(records: Sequence[Record], spec: SweepSpec) -> list[Record]:
    """The front's trials by the first metric, best first; none for a sweep of one metric."""
    if not spec.metrics:
        return []
    goals = [metric.goal for metric in spec.metrics]
    ended = (record for record in records if record.outcome is Outcome.COMPLETE)
    complete = [record for record in ended if len(record.objectives) == len(goals)]
    front = [complete[place] for place in pareto_front([record.objectives for record in complete], goals)]
    sign = 1.0 if goals[0] == "minimize" else -1.0
    return sorted(front, key=lambda record: sign * record.objectives[0])
