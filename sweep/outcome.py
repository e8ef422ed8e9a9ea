"""How a trial of a sweep stands or ended."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    COMPLETE = "complete"  # trained for all epochs
    PRUNED = "pruned"  # stopped early by the scheduler
    DIVERGED = "diverged"  # NaN or infinite loss: no value, and the sampler keeps away
    FAILED = "failed"  # crashed, again after every retry
