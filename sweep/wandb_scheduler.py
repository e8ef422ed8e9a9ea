"""Optuna behind W&B's agents: what `wandb sweep-scheduler` asks, for a sweep by `python -m sweep.agent --scheduler`.

    scheduler: {engine: optuna, source: sweep/wandb_scheduler.py, optimizer: make_study, search_space: suggest}

The agents get the trials that Ray would get for the same spec: presets first, then the same sampler with the same seed,
and every run is told to it as what it is (see sweep/study.py). W&B's client runs this file twice, as two modules that
know nothing of each other: all that `suggest` needs is in the trial.

The study lives in memory. When the scheduler starts again, W&B's client tells it the sweep's runs, and it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import Trial

# W&B's command knows this file by its path alone
sys.path.append(str(Path(__file__).resolve().parents[1]))

from model.errors import ConfigError
from sweep.agents_study import AgentsStudy, logger
from sweep.grammar import flatten
from sweep.space import Space
from sweep.spec import SweepSpec, load_spec
from sweep.trial_command import TRIAL_MODULE, named_spec
from sweep.warm_start import WarmStart, load_warm_start

MAKE_ANEW = "make a new sweep: python -m sweep.agent SPEC --scheduler --create"

Values = dict[str, Any]


def suggest(trial: Trial) -> Values:
    """W&B's `scheduler.search_space`: the trainer's values of a trial, by dotted name.

    Nothing for a trial of another study: W&B's client tries this function on one before it makes ours.
    """
    values: Values = getattr(trial, "values", {})
    return values


def make_study(sweep: Any) -> tuple[Study, Callable[[Study], bool] | None]:
    """W&B's `scheduler.optimizer`.

    Args:
        sweep: W&B's SweepInfo; its `config` is the sweep's.

    Returns:
        The study, and what tells when the search is over before its run_cap; None where the spec has no such rule.

    Raises:
        UserError: the sweep's command names no spec, the spec is gone or wrong, or it is not that of the sweep.
    """
    spec = spec_of(sweep.config)
    check_same(sweep.config, spec)
    if spec.search.pbt is not None:
        raise ConfigError(
            "search.pbt: runs of W&B's agents cannot go on from each other's weights; leave it out, or run "
            "python -m sweep.run"
        )
    warm = load_warm_start(spec.search.warm_start, spec) if spec.search.warm_start else WarmStart()
    cap = sweep.config.get("run_cap")  # may have been changed on the sweep's page
    study = AgentsStudy(spec if cap is None else spec.model_copy(update={"run_cap": int(cap)}), warm)
    for note in (*warm.notes, *_notes(spec)):
        logger.info(note)
    return study, study.over if study.can_end_early else None


def spec_of(config: Mapping[str, Any]) -> SweepSpec:
    """The spec that the agents' command names, with its overrides. Raises ConfigError where there is none."""
    named = named_spec(config)
    if named is None:
        command = config.get("command")
        shown = " ".join(map(str, command)) if isinstance(command, list | tuple) else repr(command)
        raise ConfigError(
            f"the sweep's command is {shown}, which starts no {TRIAL_MODULE} with a spec file; {MAKE_ANEW}"
        )
    path, overrides = named
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file in {Path.cwd()}, but the sweep's command names it; start the scheduler where the "
            "agents run, with the spec in its place"
        )
    return load_spec(path, overrides)


def check_same(config: Mapping[str, Any], spec: SweepSpec) -> None:
    """Raises ConfigError where the sweep on the server searches something else than the spec."""
    if config.get("parameters"):
        there, here = (_by_name(space) for space in (Space(flatten(config["parameters"])), spec.space))
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        if names:
            raise ConfigError(
                f"{spec.name}: the spec has other parameters than the sweep ({', '.join(names)}), so it was changed "
                f"after the sweep was made. Restore it, or {MAKE_ANEW}"
            )
    given = config.get("metrics") or [config.get("metric") or {}]
    there_metrics = [(metric.get("name"), str(metric.get("goal", "minimize")).lower()) for metric in given]
    here_metrics = [(metric.name, metric.goal) for metric in spec.objectives]
    if there_metrics != here_metrics:
        raise ConfigError(
            f"{spec.name}: the spec optimises {_listed(here_metrics)}, but the sweep {_listed(there_metrics)}. Restore "
            f"the spec, or {MAKE_ANEW}"
        )


def _by_name(space: Space) -> dict[str, Any]:
    return {**space.parameters, **{name: ("constant", value) for name, value in space.constants.items()}}


def _listed(metrics: Iterable[tuple[Any, str]]) -> str:
    return ", ".join(f"{name} ({goal})" for name, goal in metrics)


def _notes(spec: SweepSpec) -> Iterable[str]:
    stop = spec.search.stop
    if stop.time_budget_s is not None:
        yield f"search.stop.time_budget_s: the {stop.time_budget_s:g} s count from this start of the scheduler"
    if stop.accelerator_hours is not None:
        yield (
            "search.stop.accelerator_hours: counted from a run's suggestion to its end, for runs that end from now on; "
            "what a run waits for an agent counts too"
        )
