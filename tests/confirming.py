"""A made-up search and the runs of its confirmation, for the tests of what is confirmed and concluded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweep.outcome import Outcome
from sweep.spec import SweepSpec
from sweep.study import Record
from tests.sweeping import tiny_spec

SEEDS = (1, 2, 3)


def confirm_spec(top_k: int = 2, seeds: tuple[int, ...] = SEEDS, **changes: Any) -> SweepSpec:
    """A checked spec of a tiny sweep that is confirmed."""
    return tiny_spec(confirm={"top_k": top_k, "seeds": list(seeds)}, **changes)


def trial(
    number: int, value: float | None, alpha: float, preset: str | None = None, outcome: Outcome = Outcome.COMPLETE
) -> Record:
    """A trial of the search."""
    return Record(number, f"{number:04d}", {"alpha": alpha, "base_lr": 0.03}, preset, outcome, value, 3, None)


SEARCH = [
    trial(0, 0.9, 0.5, "equal-weights"),
    trial(1, 0.8, 0.75, "balanced-weights"),
    trial(2, 0.6, 0.6),
    trial(3, 0.1, 0.2, outcome=Outcome.PRUNED),
    trial(4, 0.5, 0.7),
    trial(5, 0.0, 0.3, outcome=Outcome.DIVERGED),
    trial(6, 0.7, 0.65),
]


def run_of(alpha: float, seed: int, value: float | None, outcome: Outcome = Outcome.COMPLETE) -> Record:
    """A run of the confirmation."""
    return Record(0, f"c{alpha}-{seed}", {"alpha": alpha, "seed": seed}, None, outcome, value, 3, None)


def runs_of(alpha: float, values: Sequence[float]) -> list[Record]:
    """Runs of the first seeds, to their ends."""
    return [run_of(alpha, seed, value) for seed, value in enumerate(values, start=1)]
