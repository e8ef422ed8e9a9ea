"""A trial goes on from another trial's weights: the worker's side of population-based training (sweep/pbt.py)."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint import CheckpointError, forget_previous, load_checkpoint, save_checkpoint
from model.config import TrainConfig
from sweep.pbt import COPIED


def adopt_copy(checkpoint: Path, config: TrainConfig) -> str | None:
    """Where a copy of another trial's checkpoint lies beside a trial's own, make it the one to go on from.

    Weights and optimiser are the other's; what tells of the rows (best epoch, time) stays the trial's own. Safe to do
    again where the process was killed in between.

    Args:
        checkpoint: the trial's own.
        config: of the trial from here on.

    Returns:
        why the trial goes on from its own weights instead; None where all is well, or nothing was copied.

    Raises:
        CheckpointError: the trial's own cannot be read.
    """
    copied = checkpoint.with_name(COPIED)
    if not copied.exists():
        return None
    own = load_checkpoint(checkpoint)
    state, note = own, None
    try:
        other = load_checkpoint(copied)
        if other["epoch"] == own["epoch"]:
            state = other
        else:
            note = f"{copied} is from epoch {other['epoch']}, its own from epoch {own['epoch']}"
    except CheckpointError as error:
        note = str(error)
    kept = {name: own[name] for name in ("best", "seconds")}
    save_checkpoint(checkpoint, state | kept | {"config": config.model_dump(mode="json")})
    forget_previous(checkpoint)  # it is of the config before
    copied.unlink()
    return note
