"""Checkpoint files: written in one step, read without running code from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from model.errors import UserError


class CheckpointError(UserError):
    """A checkpoint file is missing, damaged, or of another run."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds the old or the new checkpoint, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises CheckpointError where it is missing, cut short or a pickle."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # on damaged files torch raises whatever it stumbles over, IndexError for one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a whole checkpoint of this program ({reason}); remove it to start afresh"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint of this program")
    return state
