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


def guess(name: str, known: Iterable[str]) -> str:
    """` did you mean 'mask_ratio'?`, or nothing where no known name is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # people leave out the path to a nested key, or give only its end
        near = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f" did you mean {near[0]!r}?" if near else ""
