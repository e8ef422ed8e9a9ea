"""Errors that a user can mend: what was given, what is allowed, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is complete for the user: commands print it without a traceback and exit with 2."""


class DataError(UserError):
    """The tactile frames cannot be used as asked: missing, empty, corrupt, too short."""


class ConfigError(UserError):
    """A config, spec or command-line value is wrong."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """An error's message in one line, of at most so many characters; its type where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


SYNONYMS = {  # what others call our fields
    "lr": "base_lr",
    "learning_rate": "base_lr",
    "blr": "base_lr",
    "wd": "weight_decay",
    "batch": "batch_size",
    "bs": "batch_size",
    "masking_ratio": "mask_ratio",
    "num_epochs": "epochs",
    "gradient_clip": "clip_grad",
    "img_size": "image_size",
    "stride": "frame_stride",
    "path": "root",
    "val_loss": "eval/reference_loss",
    "eval_loss": "eval/reference_loss",
    "loss": "epoch/train_loss",
    "train_loss": "epoch/train_loss",
}


def guess(name: str, known: Iterable[str]) -> str:
    """` did you mean 'mask_ratio'?`, or nothing where no known name is near."""
    known = list(known)
    usual = [k for k in known if k.rpartition(".")[2] == SYNONYMS.get(name.rpartition(".")[2])]
    if usual:
        return f" did you mean {min(usual, key=len)!r}?"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # people leave out the path to a nested key, or give only its end
        near = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f" did you mean {near[0]!r}?" if near else ""
