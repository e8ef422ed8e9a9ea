"""What can fail under a sweep that is not its user's input: the disk, the memory, Ray itself. How each is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError

# what a file system says that has no room, or is no longer one that can be written
_STORAGE = {
    getattr(errno, name): words
    for name, words in {
        "ENOSPC": "the disk is full",
        "EDQUOT": "the quota of the disk is used up",
        "EFBIG": "the file may not grow further (ulimit -f)",
        "EROFS": "the file system is read-only",
        "EIO": "the disk or its server fails",
        "ESTALE": "the file server has lost the file",
        "ENODEV": "the disk is gone",
    }.items()
    if hasattr(errno, name)
}
# a sweep could write here when it began; elsewhere, for example in the data, these are its user's input
_RIGHTS = (errno.EACCES, errno.EPERM)
# how torch, CUDA and Python begin to say that an allocation failed
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "can't allocate memory", "out of memory")


class MachineError(UserError):
    """The machine failed, not the input: the sweep ended early, kept what it had, and can go on. Exit code 3."""


def storage_trouble(error: BaseException, place: Path | None = None) -> str | None:
    """What a file system refused, where that caused this error; None where something else did.

    Args:
        place: the folder that was written to, for an error that does not say. Rights count as trouble only there.
    """
    for cause in _chain(error):
        if not isinstance(cause, OSError) or cause.errno is None:
            continue
        named = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, str | bytes | os.PathLike) else place
        words = _STORAGE.get(cause.errno)
        if cause.errno in _RIGHTS and place is not None and named is not None and named.is_relative_to(place):
            words = "the rights to write are gone"
        if words is not None:
            what = "" if named is None else f": {named} cannot be written"
            return f"{words}{what} ({os.strerror(cause.errno)})"
    return None


def out_of_memory(traceback: str) -> str | None:
    """What to do about a crash, by the text of its traceback, where it was one for lack of memory; else None."""
    last = traceback.strip().rpartition("\n")[2]
    if not any(words in last for words in _OUT_OF_MEMORY):
        return None
    return (
        f"out of memory ({last}); lower batch_size (and raise accum_iter), the model's width or depth, or "
        "data.image_size, or give a trial more of the machine (resources)"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
