"""SweepSpec -> the sweep config that W&B's server takes, for agents that start `python -m sweep.trial`.

Two forms. In the plain one W&B's server searches, with its own methods. In the scheduler one (`method: custom`) Optuna
searches as it does under Ray: `wandb sweep-scheduler` asks the functions of sweep/wandb_scheduler.py. Both are valid
against the JSON schema that W&B publishes in its package `sweeps`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from sweep.results import ResultsFolder
from sweep.spec import SweepSpec, load_spec
from sweep.trial_command import TRIAL_MODULE, named_trial, trial_command

PROGRAM = "sweep/trial.py"  # for W&B's page only: `command` says what is started
SCHEDULER_FILE = Path(__file__).parent / "wandb_scheduler.py"
AT_THE_END, AFTER_EACH_EPOCH = "summary/best_loss", "epoch/best_loss_so_far"
SCHEDULER_FUNCTIONS = {"optimizer": "make_study", "search_space": "suggest"}


def wandb_sweep_config(
    spec: SweepSpec,
    path: Path,
    overrides: Iterable[str] = (),
    results: Path | None = None,
    scheduler: bool = False,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The W&B sweep config of a spec, plain data.

    Args:
        spec: the spec, its overrides applied.
        path, overrides, results: what the trial is given too: its `SPEC`, `--set` and `--results`.
        scheduler: the form with Optuna behind W&B's agents.
        folder: where the agents and the scheduler are started; the current one if None. Our scheduler's file is
            named relative to it where it lies below.

    Raises:
        ConfigError: the spec has what Optuna behind agents cannot do.
    """
    config = spec.wandb_sweep_config()
    config["parameters"] = _parameters(config["parameters"])
    config["metric"] = _metric(config["metric"])
    if "apiVersion" in config:
        config["apiVersion"] = str(config["apiVersion"])
    if spec.method != "grid":
        config["run_cap"] = spec.num_trials  # without it W&B would go on for ever
    if spec.command is None and spec.program is None:
        config["program"] = PROGRAM
        config["command"] = trial_command(path, overrides, results)
    if scheduler:
        _check_scheduler(spec)
        _use_scheduler(config, spec, folder or Path.cwd())
    return config


def is_ours(spec: SweepSpec) -> bool:
    """Whether agents start our trial: the spec names no program or command of its own, or this one."""
    if spec.command is not None:
        return TRIAL_MODULE in map(str, spec.command)
    return spec.program is None


def check_results(path: Path, spec: SweepSpec, remedy: str) -> None:
    """Whether trials of agents can go into a results folder; the first of each agent would fail otherwise.

    Raises ConfigError: it has a sweep of another spec, of a driver, or is none; `remedy` says what to do.
    """
    folder = ResultsFolder(path)
    try:
        folder.check(spec, resume=folder.spec_file.exists(), single=True)
    except ConfigError as error:
        why = re.split(r"[.;,] (?:give|restore) ", str(error), flags=re.IGNORECASE)[
            0
        ]  # its own remedies are not for here
        raise ConfigError(f"{why}; {remedy}") from None


@dataclass(frozen=True)
class Trials:
    """The trials that a W&B sweep's command starts here: their spec, and their results folder."""

    spec: SweepSpec
    results: Path


def trials_of(config: Mapping[str, Any], sweep_id: str) -> Trials | None:
    """What the command of a W&B sweep starts here, checked before an agent loses runs on it; None for other programs.

    Raises:
        ConfigError: the spec is not here or cannot be read; it is another than that of the trials in the folder.
    """
    named = named_trial(config)
    if named is None:
        return None
    if not named.spec.exists():
        raise ConfigError(
            f"{named.spec}: no such file here, but the sweep's command names it; start agents in the folder where the "
            "sweep was created, or in a copy of it"
        )
    spec = load_spec(named.spec, named.overrides)
    results = named.results_folder(spec.name, sweep_id)
    anew = shlex.join(["python", "-m", "sweep.agent", str(named.spec), "--create"])
    check_results(results, spec, f"restore {named.spec} as it was, or make a new sweep: {anew}")
    return Trials(spec, results)


def notes(spec: SweepSpec, scheduler: bool = False) -> Iterator[str]:
    """What the W&B sweep does otherwise than `python -m sweep.run`; one sentence each, with what to do instead."""
    if not is_ours(spec):
        kept = "command" if spec.command is not None else "program"
        yield (
            f"{kept} of the spec is kept: agents start it, not python -m sweep.trial. To train our model, leave "
            f"{'command and program' if spec.command and spec.program else kept} out."
        )
    if not scheduler:
        yield from _notes_of_plain(spec)
    stop = spec.early_terminate
    if stop is not None and spec.metric.name == AT_THE_END and (scheduler or stop.type == "hyperband"):
        yield (
            f"early_terminate: W&B learns {AT_THE_END} at the end of a run only, so no run would be stopped early. "
            f"Write metric: {{name: {AFTER_EACH_EPOCH}}}, which is the same after each epoch."
        )
    if spec.search.pbt is not None:
        yield "search.pbt: W&B's agents have no population-based training; every run keeps its values."
    if spec.confirm is not None:
        yield "confirm: agents search and confirm nothing; python -m sweep.run confirms."
    if "retries" in spec.model_fields_set:
        yield "retries: an agent does not start a crashed run again; W&B requeues preempted runs only."


def _notes_of_plain(spec: SweepSpec) -> Iterator[str]:
    if len(spec.objectives) > 1:
        yield (
            f"metrics: W&B's own search knows one metric, here the first, {spec.objectives[0].name}. --scheduler "
            "searches for all of them."
        )
    if spec.early_terminate is not None and spec.early_terminate.type == "median":
        yield "early_terminate.type: median is not known to W&B: every run trains to its end. Write hyperband."
    ignored = list(_ignored_of_search(spec))
    if ignored:
        yield f"W&B's server searches by itself and does not use {', '.join(ignored)}. --scheduler does."


def _ignored_of_search(spec: SweepSpec) -> Iterator[str]:
    search = spec.search
    if spec.method != "grid" and search.sampler != "random":
        yield f"search.sampler ({search.sampler})"
    if spec.method != "grid":
        yield f"search.seed ({search.seed})"
    used = {
        f"search.presets ({len(spec.presets)})": spec.presets,
        "search.conditions": search.conditions,
        "search.warm_start": search.warm_start,
        "search.stop": search.stop.model_fields_set,
    }
    yield from (name for name, given in used.items() if given)


def _check_scheduler(spec: SweepSpec) -> None:
    if not is_ours(spec):
        kept = "command" if spec.command is not None else "program"
        raise ConfigError(
            f"{kept}: --scheduler finds the spec by the command that starts python -m sweep.trial, so the spec cannot "
            f"have a {kept} of its own; leave it out"
        )
    if spec.search.pbt is not None:
        raise ConfigError(
            "search.pbt: runs of W&B's agents cannot go on from each other's weights; leave it out, or run "
            "python -m sweep.run"
        )


def _use_scheduler(config: dict[str, Any], spec: SweepSpec, folder: Path) -> None:
    config["method"] = "custom"
    config.pop("early_terminate", None)  # W&B refuses it beside a scheduler, which stops runs itself
    if len(spec.metrics) > 1:
        del config["metric"]
        config["metrics"] = [_metric(metric.model_dump(mode="json", exclude_none=True)) for metric in spec.metrics]
    file = SCHEDULER_FILE.resolve()
    folder = folder.resolve()
    source = file.relative_to(folder) if file.is_relative_to(folder) else file
    config["scheduler"] = {"engine": "optuna", "source": source.as_posix(), **SCHEDULER_FUNCTIONS}


def _metric(content: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's schema has the text "false" where YAML files have the word."""
    return {key: "false" if value is False else value for key, value in content.items()}


def _parameters(entries: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's client refuses a range of one whole number and one other without a distribution."""
    result: dict[str, Any] = {}
    for name, entry in entries.items():
        if "parameters" in entry:
            result[name] = {"parameters": _parameters(entry["parameters"])}
        elif entry.keys() == {"min", "max"} and isinstance(entry["min"], int) != isinstance(entry["max"], int):
            result[name] = {"min": float(entry["min"]), "max": float(entry["max"])}
        else:
            result[name] = entry
    return result
