"""The command that W&B's agents start for a run of ours: writing it, and finding the spec in it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class NamedTrial:
    """What the command of a W&B sweep gives our trial: its `SPEC`, `--set` and `--results`."""

    spec: Path
    overrides: list[str]
    results: Path | None = None

    def results_folder(self, name: str, sweep_id: str) -> Path:
        """Where the sweep's trials are, given the spec's name; as sweep/single.py has it."""
        return self.results or Path("results") / f"{name}-{sweep_id}"


def named_trial(config: Mapping[str, Any]) -> NamedTrial | None:
    """What the command of a W&B sweep config gives our trial; None where it starts no trial of ours."""
    command = config.get("command")
    words = [str(word) for word in command] if isinstance(command, list | tuple) else []
    path, overrides, results = None, [], None
    rest = iter(words[words.index(TRIAL_MODULE) + 1 :] if TRIAL_MODULE in words else ())
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--set", "--results"):
            value = value if equals else next(rest, "")
            if name == "--set":
                overrides.append(value)
            elif value:
                results = Path(value)
        elif path is None and not word.startswith(("-", "$")):
            path = Path(word)
    return None if path is None else NamedTrial(path, overrides, results)


def named_spec(config: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """The spec file, and its overrides, in the command of a W&B sweep config; None where it starts no trial of ours."""
    named = named_trial(config)
    return None if named is None else (named.spec, named.overrides)
