"""The command that W&B's agents start for a run of ours: writing it, and finding the spec in it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TRIAL_MODULE = "sweep.trial"


def trial_command(path: Path, overrides: Iterable[str] = (), results: Path | None = None) -> list[str]:
    """What an agent starts for each run; the agent fills in W&B's macros `${...}`."""
    place = str(path)
    command = ["${env}", "${interpreter}", "-m", TRIAL_MODULE, f"./{place}" if place.startswith("-") else place]
    for option in overrides:
        command += ["--set", option]
    if results is not None:
        command += ["--results", str(results)]
    return [*command, "${args}"]


def named_spec(config: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """The spec file, and its overrides, in the command of a W&B sweep config; None where it starts no trial of ours."""
    command = config.get("command")
    words = [str(word) for word in command] if isinstance(command, list | tuple) else []
    path, overrides = None, []
    rest = iter(words[words.index(TRIAL_MODULE) + 1 :] if TRIAL_MODULE in words else ())
    for word in rest:
        if word == "--set":
            overrides.append(next(rest, ""))
        elif word.startswith("--set="):
            overrides.append(word.removeprefix("--set="))
        elif word == "--results":
            next(rest, None)
        elif path is None and not word.startswith(("-", "$")):
            path = Path(word)
    return None if path is None else (path, overrides)
