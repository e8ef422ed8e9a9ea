"""Checkpoint files: written in one step, the one before kept, read without running code from them."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from model.errors import UserError, one_line
from model.folder import LAST, PREVIOUS

T = TypeVar("T")


class CheckpointError(UserError):
    """A checkpoint file is missing, damaged, or of another run."""


def save_checkpoint(
    path: Path, state: dict[str, Any], keep_previous: bool = False, last_look: Callable[[], None] = lambda: None
) -> None:
    """Write `state` so that `path` holds the old or the new checkpoint, whatever happens in between.

    Args:
        keep_previous: the old one stays, as PREVIOUS, for when the new one turns out to be damaged.
        last_look: is called when all is written; where it raises, the old one is as it was.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's writer covers what the file system said
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
        last_look()
        if keep_previous and path.exists():
            path.replace(path.with_name(PREVIOUS))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def forget_previous(path: Path) -> None:
    """Remove the checkpoint before `path`: a run that has ended needs one."""
    with suppress(OSError):
        path.with_name(PREVIOUS).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises CheckpointError where it is missing, cut short or a pickle."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of a pickle before it refuses it
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: not a whole checkpoint of this program: it is damaged, or holds objects whose loading could run "
            "code, which is refused; give the checkpoint/last.pt of a run"
        ) from None
    except Exception as error:  # on damaged files torch raises whatever it stumbles over, IndexError for one
        raise CheckpointError(
            f"{path}: not a whole checkpoint of this program ({one_line(error, 200)}); "
            "give the checkpoint/last.pt of a run"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a checkpoint of this program")
    return state


def resume_from(path: Path, take: Callable[[dict[str, Any]], T]) -> tuple[T, str | None]:
    """What `take` makes of the checkpoint at `path`; where that is refused, of the one before it.

    Args:
        take: raises CheckpointError where a state does not fit.

    Returns:
        the result, and why it is not that of `path` (None where it is).

    Raises:
        CheckpointError: neither can be used; says why not of `path`.
    """
    try:
        return take(load_checkpoint(path)), None
    except CheckpointError as error:
        refused = error
    before = path.with_name(PREVIOUS)
    if path.name != LAST.name or not before.exists():
        raise refused
    try:
        return take(load_checkpoint(before)), f"{refused}. Going on from the checkpoint before it, {before.name}"
    except CheckpointError:
        raise refused from None


def has_checkpoint(path: Path) -> bool:
    """Whether there is anything to resume from: `path`, or the one before where a kill came between the two."""
    return path.exists() or path.with_name(PREVIOUS).exists()
