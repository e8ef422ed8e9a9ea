"""W&B's own Optuna optimizer, with our study behind it, suggests what Ray's trials get, and learns what they teach."""

from __future__ import annotations

import json
import logging
import math
import random
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import wandb
import yaml
from agents import Place, ended, place_of, wait_until
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from wandb.sdk.sweeps.run_state import RunState
from wandb.sdk.sweeps.scheduler.optimizer import Run, RunConfig, RunSuggestion, RunWithMetrics
from wandb.sdk.sweeps.scheduler.optuna import OptunaImperativeOptimizer, build_optuna_optimizer
from wandb.sdk.sweeps.sweep_info import SweepInfo
from wandb_double import WandbDouble
from wandb_scheduler_double import SchedulerDouble

from model.errors import ConfigError
from sweep import agent
from sweep.agents_study import SAMPLED, epochs_of
from sweep.plan import first_trials
from sweep.pruning import make_pruner
from sweep.sampler_view import is_diverged
from sweep.spec import load_spec
from sweep.study import Outcome, SweepStudy
from sweep.wandb_config import wandb_sweep_config
from sweep.wandb_scheduler import spec_of, suggest
from sweep.warm_start import load_warm_start
from tests.past_sweeps import Past, past_sweep
from tests.sweeping import TINY_TRAINER, tiny_content, tiny_spec

NUMBERS: dict[str, Any] = {
    "alpha": {"min": 0.1, "max": 0.9},
    "base_lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 0.3},
    "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
}
MIXED: dict[str, Any] = {
    **NUMBERS,
    "warmup_epochs": {"min": 0, "max": 2},
    "mode": {"values": ["joint", "dynamic"]},
    "weighting": {"values": ["fixed", "famo"]},
    "data": {"parameters": {"frame_stride": {"values": [1, 2]}}},
}
CONDITIONS = {"weighting": {"mode": "joint"}}
SAMPLERS = ["auto", "tpe", "gp", "random", "qmc", "cmaes"]
STEPS = 7  # W&B rows of an epoch

Values = dict[str, Any]
Ending = tuple[Outcome, int]  # and after how many epochs


def curve(values: Values, epoch: int) -> float:
    """A made-up objective: the smaller, the nearer to a certain place."""
    away = (values["alpha"] - 0.63) ** 2 + math.log(values.get("base_lr", 0.05) / 0.06) ** 2 / 9
    return 0.4 + away + (values.get("mode") == "dynamic") * 0.1 + 0.5 / (epoch + 1)


def write_spec(folder: Path, **content: Any) -> Path:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(tiny_content(**{"run_cap": 14, **content})), encoding="utf-8")
    return file


def config_of(spec: Path, *overrides: str) -> dict[str, Any]:
    """The sweep's config in the form for schedulers."""
    return wandb_sweep_config(load_spec(spec, overrides), spec, overrides, scheduler=True)


class Scheduler:
    """W&B's optimizer for a spec file, driven as its client drives it, without a server.

    Args:
        config: of the sweep, if it was made of another spec.
        changes: of the config, after it was cut out of the spec.
    """

    def __init__(self, spec: Path, *overrides: str, config: dict[str, Any] | None = None, **changes: Any) -> None:
        self.spec = load_spec(spec, overrides)
        config = (config or config_of(spec, *overrides)) | changes
        config = yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(config))))  # as the server gives it back
        info = SweepInfo("id", "tiny", "me", "p", {key: v for key, v in config.items() if v is not None}, "controller")
        optimizer = build_optuna_optimizer(info)
        assert isinstance(optimizer, OptunaImperativeOptimizer)
        self.optimizer = optimizer

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.optimizer.study.get_trials()

    def ask(self) -> RunSuggestion | None:
        return next(iter(self.optimizer.ask_n_runs(1)), None)

    def run(self, suggestion: RunSuggestion, state: RunState, values: Sequence[float | str], **summary: Any) -> None:
        self.optimizer.tell_run(suggestion.run_id, self.told(suggestion.config.flat_dict(), state, values, **summary))

    def told(self, values: Values, state: RunState, reported: Sequence[float | str], **summary: Any) -> RunWithMetrics:
        """What the client hears of a run that reported these values of the first metric, one an epoch."""
        name = self.spec.metric.name
        rows = [{"_step": STEPS * (place + 1) - 1, name: value} for place, value in enumerate(reported)]
        last = {name: reported[-1]} if reported else {}
        rows = json.loads(json.dumps(rows))
        return RunWithMetrics(RunConfig.from_values(self.config(values)), state, "run", last | summary, rows)

    def config(self, values: Values) -> Values:
        """A run's config as our trial logs it: all fields of the trainer, and what was searched by dotted name."""
        config = self.spec.space.to_config(self.spec.trainer, values).model_dump(mode="json")
        extra = {"sweep": "tiny", "trial": "0000", "preset": None, "objective": {"target": 0.5}}
        return json.loads(json.dumps({**config, **values, **extra}))


def values_of(suggestion: RunSuggestion) -> Values:
    """As an agent gets them: through JSON."""
    values: Values = json.loads(json.dumps(suggestion.config.flat_dict()))
    return values


def all_complete(number: int) -> Ending:
    return Outcome.COMPLETE, 3


def mixed_ends(number: int) -> Ending:
    """Some are stopped early, diverge or crash."""
    ends = {3: (Outcome.DIVERGED, 1), 5: (Outcome.PRUNED, 1), 6: (Outcome.FAILED, 2), 8: (Outcome.PRUNED, 2)}
    return ends.get(number, (Outcome.COMPLETE, 3))


def under_ray(folder: Path, spec_file: Path, ends: Callable[[int], Ending]) -> tuple[list[Values], list[str | None]]:
    """What a SweepStudy suggests, one trial at a time, and the presets' names."""
    spec = load_spec(spec_file)
    folder.mkdir()
    study = SweepStudy(
        folder,
        spec.name,
        spec.space,
        sampler=spec.search.sampler or "random",
        seed=spec.search.seed,
        startup_trials=spec.search.startup_trials,
        goals=[metric.goal for metric in spec.objectives],
        first=first_trials(spec),
    )
    suggested, presets = [], []
    for number in range(spec.num_trials):
        suggestion = study.next()
        suggested.append(suggestion.values)
        presets.append(suggestion.preset)
        outcome, epochs = ends(number)
        for epoch in range(epochs):
            study.report(number, epoch, *([curve(suggestion.values, epoch)] * len(spec.objectives)))
        study.finish(number, outcome)
    return suggested, presets


STATES = {Outcome.COMPLETE: RunState.FINISHED, Outcome.DIVERGED: RunState.FAILED, Outcome.FAILED: RunState.CRASHED}


def end(scheduler: Scheduler, suggestion: RunSuggestion, ending: Ending) -> RunWithMetrics:
    """End a run so; returns what W&B will say of it to a scheduler that is started later."""
    outcome, epochs = ending
    values = values_of(suggestion)
    reported: list[float | str] = [curve(values, epoch) for epoch in range(epochs)]
    if outcome is Outcome.DIVERGED:
        reported.append("NaN")  # as W&B's server writes it
    told = scheduler.told(values, STATES.get(outcome, RunState.FINISHED), reported)
    if outcome is Outcome.PRUNED:
        trial = scheduler.optimizer.trials[suggestion.run_id]
        for row in told.history_metrics:
            trial.report(row[scheduler.spec.metric.name], row["_step"])
        trial.should_prune()
        scheduler.optimizer._tell_study(trial, state=TrialState.PRUNED)
        del scheduler.optimizer.trials[suggestion.run_id]
    else:
        scheduler.optimizer.tell_run(suggestion.run_id, told)
    return told


def search(
    scheduler: Scheduler, ends: Callable[[int], Ending], most: int = 100
) -> tuple[list[Values], list[RunWithMetrics]]:
    """Run trials one by one until there are no more (or so many): their values, and what was told of them."""
    suggested, told = [], []
    while len(suggested) < most and (suggestion := scheduler.ask()) is not None:
        suggested.append(values_of(suggestion))
        told.append(end(scheduler, suggestion, ends(int(suggestion.run_id))))
    return suggested, told


# --- the same search


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_agents_get_the_trials_that_ray_gets(tmp_path: Path, sampler: str) -> None:
    spec = write_spec(tmp_path, parameters=NUMBERS, search={"sampler": sampler, "seed": 5, "startup_trials": 4})
    expected, presets = under_ray(tmp_path / "ray", spec, mixed_ends)
    scheduler = Scheduler(spec)
    suggested, _ = search(scheduler, mixed_ends)
    assert suggested == expected
    assert len(suggested) == 14
    assert [trial.user_attrs["preset"] for trial in scheduler.trials[:2]] == presets[:2]
    assert presets[:3] == ["equal-weights", "balanced-weights", None]


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random", "nsgaii"])
def test_conditions_words_and_nested_names_are_those_of_ray(tmp_path: Path, sampler: str) -> None:
    content = {
        "parameters": MIXED,
        "search": {"sampler": sampler, "seed": 2, "startup_trials": 3, "conditions": CONDITIONS},
    }
    spec = write_spec(tmp_path, **content)
    expected, _ = under_ray(tmp_path / "ray", spec, mixed_ends)
    suggested, _ = search(Scheduler(spec), mixed_ends)
    assert suggested == expected
    assert {"weighting" in values for values in suggested} == {True, False}
    assert all("data.frame_stride" in values for values in suggested)


def test_a_grid_is_tried_point_by_point_and_then_the_search_is_over(tmp_path: Path) -> None:
    grid = {"alpha": {"values": [0.25, 0.5, 0.75]}, "base_lr": {"values": [0.02, 0.05]}}
    spec = write_spec(tmp_path, parameters=grid, method="grid", run_cap=None, search={})
    expected, _ = under_ray(tmp_path / "ray", spec, all_complete)
    scheduler = Scheduler(spec)
    suggested, told = search(scheduler, all_complete)
    assert suggested == expected
    assert sorted(map(str, suggested)) == sorted(map(str, load_spec(spec).space.grid()))
    assert scheduler.ask() is None
    again = Scheduler(spec)
    for run in told[:4]:
        again.optimizer.tell_existing_finished_run(run)
    again.optimizer.tell_existing_finished_run(told[0])  # somebody ran this point once more
    assert search(again, all_complete)[0] == expected[4:]


def test_a_run_cap_that_was_changed_on_the_page_holds(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, search={"sampler": "random"}, run_cap=3)
    assert len(search(Scheduler(spec), all_complete)[0]) == 3
    assert len(search(Scheduler(spec, run_cap=5), all_complete)[0]) == 5
    assert len(Scheduler(spec).optimizer.ask_n_runs(10)) == 3  # a batch is cut short


def test_overrides_of_the_command_count(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, search={"sampler": "random"})
    scheduler = Scheduler(spec, "search.presets=[{alpha: 0.3, base_lr: 0.05}]", "run_cap=2")
    suggested, _ = search(scheduler, all_complete)
    assert suggested[0] == {"alpha": 0.3, "base_lr": 0.05}
    assert len(suggested) == 2


def test_values_that_do_not_go_together_are_not_handed_out(tmp_path: Path) -> None:
    """So many that the spec's check does not find the one that nothing can be trained with."""
    two = {"values": [0.0, 0.5]}
    others = {
        "base_lr": [0.02, 0.05],
        "mask_ratio": [0.5, 0.75],
        "seed": [1, 2],
        "epochs": [2, 3],
        "batch_size": [4, 8],
    }
    parameters = {"alpha": two, "beta": two, **{name: {"values": values} for name, values in others.items()}}
    spec = write_spec(tmp_path, parameters=parameters, method="random", search={"presets": []})
    expected, _ = under_ray(tmp_path / "ray", spec, all_complete)
    scheduler = Scheduler(spec)
    suggested, _ = search(scheduler, all_complete)
    assert suggested == [values for values in expected if values["alpha"] or values["beta"]]
    assert len(scheduler.trials) == len(expected) == 14 > len(suggested)
    assert [trial.state.name for trial in scheduler.trials].count("FAIL") == 14 - len(suggested)


# --- a scheduler that is started again


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stop_after", [1, 9])
def test_a_scheduler_that_is_started_again_goes_on_as_if_it_had_not_been(
    tmp_path: Path, sampler: str, stop_after: int
) -> None:
    spec = write_spec(tmp_path, parameters=NUMBERS, search={"sampler": sampler, "seed": 5, "startup_trials": 4})
    expected, _ = search(Scheduler(spec), mixed_ends)
    first, told = search(Scheduler(spec), mixed_ends, most=stop_after)
    assert first == expected[:stop_after]
    again = Scheduler(spec)
    for run in told:
        again.optimizer.tell_existing_finished_run(run)
    assert [trial.number for trial in again.trials] == list(range(stop_after))
    rest, _ = search(again, mixed_ends)
    assert len(rest) == len(expected) - stop_after
    for values, other in zip(rest, expected[stop_after:], strict=True):
        # W&B has 0.65 where Optuna drew 0.6500000000000001: the last bits of gp's later suggestions may differ
        assert values == (pytest.approx(other, rel=1e-9) if sampler in ("auto", "gp") else other)


def test_a_run_under_way_keeps_its_place_when_the_scheduler_is_started_again(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, parameters=MIXED, search={"sampler": "random", "conditions": CONDITIONS})
    expected, _ = search(Scheduler(spec), all_complete)
    before = Scheduler(spec)
    _, told = search(before, all_complete, most=1)
    suggestion = before.ask()
    assert suggestion is not None
    again = Scheduler(spec)
    again.optimizer.tell_existing_finished_run(told[0])
    config = RunConfig.from_values(values_of(suggestion))  # it waits for an agent: nothing else is known
    run_id = again.optimizer.tell_existing_active_run(Run(config, RunState.PENDING, "run"))
    assert run_id == "1"
    rest, _ = search(again, all_complete)
    assert rest == expected[2:]
    assert [trial.user_attrs.get("preset") for trial in again.trials[:3]] == ["equal-weights", "balanced-weights", None]
    again.optimizer.tell_run(run_id, again.told(values_of(suggestion), RunState.FINISHED, [0.9, 0.8, 0.7]))
    assert again.trials[1].values == [0.7]


def test_presets_are_not_tried_twice_in_whatever_order_the_runs_are_told(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, parameters=NUMBERS, search={"sampler": "tpe", "seed": 5, "startup_trials": 4})
    suggested, told = search(Scheduler(spec), mixed_ends, most=5)
    again = Scheduler(spec)
    for run in reversed(told):
        again.optimizer.tell_existing_finished_run(run)
    rest, _ = search(again, mixed_ends)
    assert len(rest) == 9
    assert not any(values in rest for values in suggested[:2])
    assert again.trials[-1].number == 13


def test_runs_that_ended_before_are_known_as_what_they_were(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, search={"sampler": "tpe", "presets": []})
    scheduler = Scheduler(spec)
    values = {"alpha": 0.4, "base_lr": 0.05}
    for state, reported in [
        (RunState.FINISHED, [0.9, 0.8, 0.7]),
        (RunState.FINISHED, [0.9, 0.8]),  # the pruner of the scheduler before had it stopped
        (RunState.FINISHED, [0.9, "NaN"]),
        (RunState.FAILED, [0.9, "NaN"]),
        (RunState.CRASHED, [0.9]),
        (RunState.PREEMPTED, [0.9]),
        (RunState.KILLED, []),
    ]:
        scheduler.optimizer.tell_existing_finished_run(scheduler.told(values, state, reported))
    assert [trial.state.name for trial in scheduler.trials] == [
        "COMPLETE",
        "PRUNED",
        "PRUNED",
        "PRUNED",
        "FAIL",
        "FAIL",
        "FAIL",
    ]
    assert [is_diverged(trial) for trial in scheduler.trials] == [False, False, True, True, False, False, False]
    assert scheduler.trials[1].intermediate_values == {0: 0.9, 1: 0.8}


def test_a_run_of_another_space_is_refused_and_says_why(tmp_path: Path) -> None:
    scheduler = Scheduler(write_spec(tmp_path))
    alien = scheduler.told({"alpha": 0.4, "base_lr": 0.05}, RunState.FINISHED, [0.9, 0.8, 0.7])
    alien.config.config["alpha"].value = 3.0
    with pytest.raises(ValueError, match=r"alpha = 3\.0; must be a number from 0\.1 to 0\.9"):
        scheduler.optimizer.tell_existing_finished_run(alien)
    del alien.config.config["alpha"]
    with pytest.raises(ValueError, match="it has no alpha"):
        scheduler.optimizer.tell_existing_finished_run(alien)
    assert scheduler.trials == []
    assert scheduler.ask() is not None


# --- what a run's end means


def test_steps_are_epochs_and_each_poll_brings_the_rows_that_are_new(tmp_path: Path) -> None:
    scheduler = Scheduler(write_spec(tmp_path))
    suggestion = scheduler.ask()
    assert suggestion is not None
    for count in (1, 1, 3):
        scheduler.run(suggestion, RunState.RUNNING, [0.9, 0.8, 0.7][:count])
    scheduler.run(suggestion, RunState.FINISHED, [0.9, 0.8, 0.7])
    assert scheduler.trials[0].intermediate_values == {0: 0.9, 1: 0.8, 2: 0.7}
    assert scheduler.trials[0].state == TrialState.COMPLETE
    assert scheduler.trials[0].values == [0.7]


@pytest.mark.parametrize("nan", ["NaN", math.nan, "Infinity", "-Infinity"])
@pytest.mark.parametrize("state", [RunState.FAILED, RunState.FINISHED])
def test_a_diverged_run_is_worse_than_any_however_it_ended(tmp_path: Path, state: RunState, nan: float | str) -> None:
    scheduler = Scheduler(write_spec(tmp_path))
    suggestion = scheduler.ask()
    assert suggestion is not None
    scheduler.run(suggestion, state, [0.9, nan])
    assert is_diverged(scheduler.trials[0])
    assert scheduler.trials[0].state == TrialState.PRUNED
    assert scheduler.trials[0].intermediate_values == {0: 0.9}


def test_a_run_whose_summary_alone_has_nan_diverged_too(tmp_path: Path) -> None:
    scheduler = Scheduler(write_spec(tmp_path))
    suggestion = scheduler.ask()
    assert suggestion is not None
    scheduler.run(suggestion, RunState.FINISHED, [0.9], **{"objective/value": "NaN"})
    assert is_diverged(scheduler.trials[0])


def test_a_complete_run_counts_although_its_last_row_is_not_in_the_history_yet(tmp_path: Path) -> None:
    scheduler = Scheduler(write_spec(tmp_path))
    suggestion = scheduler.ask()
    assert suggestion is not None
    scheduler.run(suggestion, RunState.FINISHED, [0.9, 0.8], **{"objective/value": 0.7})
    assert scheduler.trials[0].state == TrialState.COMPLETE
    assert scheduler.trials[0].values == [0.7]


# --- W&B's client sees 20 rows of a run, however long it is


@given(st.integers(1, 300), st.integers(1, 40), st.randoms(use_true_random=False))
def test_epochs_are_told_from_steps_where_w_and_bs_history_is_a_sample(
    epochs: int, updates: int, random: random.Random
) -> None:
    steps = [(updates + 1) * (epoch + 1) - 1 for epoch in range(epochs)]
    seen = sorted(random.sample(range(epochs), min(epochs, SAMPLED)))
    if epochs > SAMPLED:  # of so few, all may be multiples of some number: here no such bad luck
        seen = sorted({*seen, 0})
    assert epochs_of([steps[epoch] for epoch in seen], epochs) == (seen, True)


def test_of_a_short_run_the_rows_are_counted_although_updates_were_left_out() -> None:
    assert epochs_of([30, 37, 41, 57], 80) == ([0, 1, 2, 3], True)


def test_of_a_long_run_with_rows_left_out_epochs_are_guessed_and_known_to_be() -> None:
    steps = [31 * (epoch + 1) for epoch in range(15)]  # then every second update had a row
    steps += [steps[-1] + 17 * (epoch + 1) for epoch in range(25)]
    epochs, sure = epochs_of(steps, 80)
    assert not sure
    assert epochs[:15] == list(range(15))
    assert epochs == sorted(set(epochs))
    assert epochs_of(steps[:25], None)[1] is False
    assert epochs_of(steps, 41)[1] is False
    assert epochs_of(steps, 40) == (list(range(40)), True)  # there cannot be more


@pytest.mark.parametrize(("done", "state"), [(80, "COMPLETE"), (44, "PRUNED")])
def test_a_long_run_is_complete_or_stopped_although_20_of_its_rows_are_seen(
    tmp_path: Path, done: int, state: str
) -> None:
    scheduler = Scheduler(write_spec(tmp_path, trainer=trainer(80)))
    suggestion = scheduler.ask()
    assert suggestion is not None
    told = scheduler.told(values_of(suggestion), RunState.FINISHED, [1 / (epoch + 1) for epoch in range(done)])
    places = [*sorted(random.Random(1).sample(range(done - 1), SAMPLED - 1)), done - 1]
    told.history_metrics[:] = [told.history_metrics[place] for place in places]
    scheduler.optimizer.tell_run(suggestion.run_id, told)
    assert scheduler.trials[0].state.name == state
    known = scheduler.trials[0].intermediate_values
    assert list(known) == list(range(done))  # the pruner compares runs at the same epoch
    assert all(known[epoch] == pytest.approx(1 / (epoch + 1)) for epoch in places)
    assert all(known[epoch] >= known[epoch + 1] for epoch in range(done - 1))


# --- early termination


HYPERBAND = {"type": "hyperband", "min_iter": 2, "eta": 3}
MEDIAN = {"type": "median", "min_iter": 1, "min_trials": 3}


def trainer(epochs: int) -> dict[str, Any]:
    return {**tiny_content()["trainer"], "epochs": epochs}


def start(scheduler: Scheduler, count: int) -> list[RunSuggestion]:
    suggestions = list(scheduler.optimizer.ask_n_runs(count))
    assert len(suggestions) == count
    return suggestions


def poll(scheduler: Scheduler, suggestion: RunSuggestion, values: Sequence[float]) -> bool:
    """A poll that brings all values of a running run; whether it is to be stopped."""
    told = scheduler.told(values_of(suggestion), RunState.RUNNING, values)
    scheduler.optimizer.tell_run(suggestion.run_id, told)
    return bool(scheduler.optimizer.prune_runs([suggestion.run_id], [told]))


@pytest.mark.parametrize("rule", [HYPERBAND, MEDIAN])
def test_a_bad_run_is_stopped_with_its_values_and_a_preset_never(tmp_path: Path, rule: dict[str, Any]) -> None:
    spec = write_spec(tmp_path, early_terminate=rule, trainer=trainer(9), search={"sampler": "random"})
    scheduler = Scheduler(spec)
    preset, _, *others = start(scheduler, 7)
    for place, good in enumerate(others[:4]):
        assert not poll(scheduler, good, [0.9, 0.5 - place / 100])  # each better than those before
    assert not poll(scheduler, preset, [2.0, 1.9, 1.8, 1.7])
    assert poll(scheduler, others[4], [1.1, 1.0, 0.9])
    stopped = scheduler.trials[int(others[4].run_id)]
    assert stopped.state == TrialState.PRUNED
    assert stopped.intermediate_values == {0: 1.1, 1: 1.0, 2: 0.9}
    scheduler.run(others[4], RunState.FINISHED, [1.1, 1.0, 0.9, 0.8])  # its last word, after it was stopped
    assert scheduler.trials[int(others[4].run_id)] == stopped
    assert not poll(scheduler, others[4], [1.1, 1.0, 0.9, 0.8])


def test_epochs_count_for_the_rule_not_w_and_bs_steps(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, early_terminate=HYPERBAND, trainer=trainer(9), search={"sampler": "random"})
    scheduler = Scheduler(spec)
    *good, bad = start(scheduler, 6)
    for suggestion in good:
        assert not poll(scheduler, suggestion, [0.5, 0.5])
    assert not poll(scheduler, bad, [1.5])  # step 7, but one epoch
    assert poll(scheduler, bad, [1.5, 1.5])


def test_a_stopped_run_is_known_as_such_to_a_scheduler_that_is_started_later(tmp_path: Path) -> None:
    """W&B calls a run that it stopped finished, or killed where the program was."""
    spec = write_spec(tmp_path, early_terminate=HYPERBAND, trainer=trainer(9), search={"sampler": "random"})
    first = Scheduler(spec)
    *good, bad, killed, crashed = map(values_of, start(first, 8))
    again = Scheduler(spec)
    for values in good:
        again.optimizer.tell_existing_finished_run(again.told(values, RunState.FINISHED, [0.5] * 9))
    again.optimizer.tell_existing_finished_run(again.told(bad, RunState.FINISHED, [1.5, 1.5]))
    again.optimizer.tell_existing_finished_run(again.told(killed, RunState.KILLED, [1.5, 1.5]))
    again.optimizer.tell_existing_finished_run(again.told(crashed, RunState.CRASHED, [0.4, 0.4]))
    assert [trial.state.name for trial in again.trials[5:]] == ["PRUNED", "PRUNED", "FAIL"]
    assert not any(map(is_diverged, again.trials))


def test_of_a_maximised_metric_the_low_runs_are_stopped(tmp_path: Path) -> None:
    metric = {"name": "eval/static_skill", "goal": "maximize"}
    spec = write_spec(
        tmp_path, metric=metric, early_terminate=HYPERBAND, trainer=trainer(9), search={"sampler": "random"}
    )
    scheduler = Scheduler(spec)
    *good, low, high = start(scheduler, 7)
    for suggestion in good:
        assert not poll(scheduler, suggestion, [0.5, 0.5])
    assert poll(scheduler, low, [0.1, 0.1])
    assert not poll(scheduler, high, [0.8, 0.8])


def test_nothing_is_stopped_where_the_first_decision_would_come_at_the_end(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, early_terminate={"type": "hyperband", "min_iter": 3}))
    assert isinstance(make_pruner(spec), optuna.pruners.NopPruner)


# --- several metrics, stop rules, warm start


TWO = [{"name": "eval/loss_static"}, {"name": "eval/static_skill", "goal": "maximize"}]


def test_several_metrics_make_a_study_of_several_goals(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, metrics=TWO, search={"sampler": "nsgaii", "seed": 1})
    scheduler = Scheduler(spec)
    one, two, three, four = start(scheduler, 4)
    for suggestion, state, skill in [
        (one, RunState.FINISHED, 0.3),
        (two, RunState.FINISHED, "NaN"),
        (three, RunState.CRASHED, 0.1),
    ]:
        scheduler.run(suggestion, state, [0.9, 0.8], **{"eval/static_skill": skill})
    assert [direction.name for direction in scheduler.optimizer.study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert scheduler.trials[0].values == [0.8, 0.3]
    assert [trial.state.name for trial in scheduler.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert is_diverged(scheduler.trials[1])
    assert not poll(scheduler, four, [5.0])


def test_several_metrics_are_searched_as_under_ray(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, metrics=TWO, search={"seed": 1, "startup_trials": 3})
    expected, _ = under_ray(tmp_path / "ray", spec, all_complete)
    scheduler, suggested = Scheduler(spec), []
    while (suggestion := scheduler.ask()) is not None:
        suggested.append(values_of(suggestion))
        value = curve(suggested[-1], 2)
        scheduler.run(suggestion, RunState.FINISHED, [value], **{"eval/static_skill": value})
    assert suggested == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"metric": {"name": "objective/value", "target": 0.75}}, "reached its target 0.75"),
        ({"search": {"stop": {"plateau": {"trials": 3}}}}, "none of the last 3 trials"),
        ({"search": {"stop": {"time_budget_s": 1e-9}}}, "1e-09 s are over"),
    ],
)
def test_a_stop_rule_ends_the_search_once_what_is_under_way_has_ended(
    tmp_path: Path, content: dict[str, Any], reason: str, said: list[str]
) -> None:
    assert not Scheduler(write_spec(tmp_path)).optimizer.has_terminator()
    scheduler = Scheduler(write_spec(tmp_path, **content))
    assert scheduler.optimizer.has_terminator()
    if "plateau" in str(content) or "target" in str(content):
        under_way, *suggestions = start(scheduler, 5)
        for suggestion in suggestions:
            assert not scheduler.optimizer.should_terminate_sweep()
            scheduler.run(suggestion, RunState.FINISHED, [0.9, 0.8, 0.7])
        assert scheduler.ask() is None
        assert not scheduler.optimizer.should_terminate_sweep()  # one still trains
        scheduler.run(under_way, RunState.FINISHED, [0.9, 0.8, 0.7])
    assert scheduler.ask() is None
    assert scheduler.optimizer.should_terminate_sweep()
    assert sum(reason in line for line in said) == 1


def test_trials_of_earlier_sweeps_are_known_from_the_start(tmp_path: Path) -> None:
    past = [Past({"alpha": 0.2 + 0.1 * n, "base_lr": 0.02 * (n + 1)}) for n in range(5)]
    earlier = past_sweep(tmp_path / "earlier", tiny_spec(), *past)
    search_block = {"sampler": "tpe", "startup_trials": 2, "warm_start": [str(earlier)]}
    spec = write_spec(tmp_path, search=search_block)
    loaded = load_spec(spec)
    warm = load_warm_start(loaded.search.warm_start, loaded)
    assert len(warm.prior) == 5
    (tmp_path / "ray").mkdir()
    study = SweepStudy(
        tmp_path / "ray",
        "tiny",
        loaded.space,
        sampler="tpe",
        startup_trials=2,
        first=first_trials(loaded, warm),
        prior=warm.prior,
    )
    expected = [study.next().values for _ in range(5)]
    assert [values_of(suggestion) for suggestion in start(Scheduler(spec), 5)] == expected
    cold = write_spec(tmp_path, search={"sampler": "tpe", "startup_trials": 2})
    assert [values_of(suggestion) for suggestion in start(Scheduler(cold), 5)] != expected


# --- bad input


def refused(spec: Path, **changes: Any) -> str:
    """The message that W&B's command shows."""
    with pytest.raises(wandb.Error) as caught:
        Scheduler(spec, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sweep_whose_command_names_no_spec_is_refused(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    message = refused(spec, command=["${env}", "python", "train.py", "${args}"])
    assert "starts no sweep.trial with a spec file" in message
    assert "python -m sweep.agent SPEC --scheduler --create" in message
    refused(spec, command=None)
    refused(spec, command=["python", "-m", "sweep.trial", "--set", "run_cap=3", "${args}"])


def test_a_spec_that_is_gone_is_named(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    message = refused(spec, command=["python", "-m", "sweep.trial", "gone.yaml", "${args}"])
    assert message.startswith("gone.yaml: no such file in ")


def test_a_spec_that_was_changed_after_the_sweep_was_made_is_refused(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, parameters=MIXED)
    config = config_of(spec)
    Scheduler(spec)
    write_spec(tmp_path, parameters={**NUMBERS, "alpha": {"min": 0.1, "max": 0.8}, "epochs": {"value": 2}})
    message = refused(spec, parameters=config["parameters"])
    assert (
        "other parameters than the sweep (alpha, data.frame_stride, epochs, mode, warmup_epochs, weighting)" in message
    )
    write_spec(tmp_path, parameters=MIXED, metric={"name": "eval/static_skill", "goal": "maximize"})
    message = refused(spec, metric=config["metric"])
    assert "optimises eval/static_skill (maximize), but the sweep objective/value (minimize)" in message


def test_a_wrong_spec_is_told_as_everywhere(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    config = config_of(spec)
    spec.write_text(spec.read_text().replace("run_cap: 14", "run_cap: -1"))
    with pytest.raises(ConfigError, match=r"run_cap = -1"):
        spec_of(config)


def test_population_based_training_is_refused(tmp_path: Path) -> None:
    config = config_of(write_spec(tmp_path, method="random", search={"presets": []}))
    pbt = {"pbt": {"parameters": ["alpha"]}, "presets": []}
    message = refused(write_spec(tmp_path, method="random", search=pbt), config=config)
    assert message.startswith("search.pbt: runs of W&B's agents cannot go on from each other's weights")


def test_another_studys_trial_gets_no_values() -> None:
    assert suggest(optuna.create_study().ask()) == {}


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What our study tells the user, through Optuna's logger as W&B's client listens to it."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, log, verbosity = Keep(), logging.getLogger("optuna"), optuna.logging.get_verbosity()
    log.addHandler(handler)
    optuna.logging.set_verbosity(logging.INFO)
    yield lines
    optuna.logging.set_verbosity(verbosity)
    log.removeHandler(handler)


# --- real `wandb sweep`, `wandb sweep-scheduler` and `wandb agent`


@pytest.fixture
def place(tmp_path: Path, frame_stores: Path) -> Iterator[Place]:
    with SchedulerDouble() as double, place_of(tmp_path, frame_stores, double) as where:
        yield where


def create(place: Place, spec: Path) -> str:
    """Register the sweep; returns its id."""
    return place.register(spec, scheduler=True)


def create_by_wandb(place: Place, spec: Path) -> str:
    """Register the sweep by W&B's own command; returns its id."""
    printed = place.call(agent.main, spec.name, "--print", "--scheduler")
    assert printed.code == 0, printed.err
    (place.folder / "sweep.yaml").write_text(printed.out, encoding="utf-8")
    done = place.run("-m", "wandb", "sweep", "--entity", "me", "--project", "p", "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep_id,) = place.double.sweeps
    return sweep_id


def put_run(double: WandbDouble, run_id: str, values: Sequence[float], code: int) -> None:
    """What a trial's client would have sent: an objective for each epoch, and the run's end."""
    with double.lock:
        rows = [{"_step": STEPS * n + 6, "objective/value": value} for n, value in enumerate(values)]
        double.starts[run_id] += 1
        double.history[run_id].update(enumerate(rows))
        double.summary[run_id] = {"objective/value": values[-1]}
        double.exit_code[run_id] = code


def start_scheduler(place: Place, sweep_id: str, runs: int = 1, log: str = "scheduler.log") -> subprocess.Popen[bytes]:
    options = ["--batch-size", str(runs), "--poll-interval", "1"]  # the client makes that 5 s
    return place.start("-m", "wandb", "sweep-scheduler", *options, place.double.sweeps[sweep_id].path, log=log)


def log_of(place: Place, name: str) -> str:
    return (place.folder / name).read_text(encoding="utf-8", errors="replace")


@pytest.mark.process
def test_runs_get_what_trials_under_ray_would_although_the_scheduler_is_started_again(place: Place) -> None:
    """Here the test is the agent: the runs' rows and ends are put on the server."""
    double = place.double
    assert isinstance(double, SchedulerDouble)
    spec_file = place.write_spec(search={"sampler": "tpe", "seed": 4, "startup_trials": 1}, run_cap=4)
    sweep_id = create_by_wandb(place, spec_file)
    first = start_scheduler(place, sweep_id)
    values = [[1.0 / (number + epoch + 1) for epoch in range(3)] for number in range(4)]
    for number in range(4):
        wait_until(lambda number=number: len(double.queued) == number + 1, f"run {number} is in line", place)
        if number == 1:
            first.send_signal(signal.SIGINT)
            assert ended(first, place) == 0
            second = start_scheduler(place, sweep_id, log="second.log")
        put_run(double, list(double.sweeps[sweep_id].runs)[number], values[number], 0)
    assert ended(second, place) == 0
    assert "4 were handed out, of 4" in log_of(place, "second.log")
    assert double.sweeps[sweep_id].state == "FINISHED"
    assert double.unknown == set()

    spec = load_spec(spec_file)
    (place.folder / "ray").mkdir()
    study = SweepStudy(
        place.folder / "ray", "tiny", spec.space, sampler="tpe", seed=4, startup_trials=1, first=first_trials(spec)
    )
    assert len(double.queued) == 4
    for number, queued in enumerate(double.queued):
        assert study.next().values == queued
        for epoch, value in enumerate(values[number]):
            study.report(number, epoch, value)
        study.finish(number, Outcome.COMPLETE)


@pytest.mark.process
def test_a_bad_run_of_a_real_agent_is_stopped_early(place: Place) -> None:
    double = place.double
    place.environment["GATE"] = "4"
    spec = place.write_spec(
        parameters={"base_lr": {"values": [0.03, 1e-7]}},
        method="grid",
        run_cap=None,
        search={},
        trainer={**TINY_TRAINER, "epochs": 6, "warmup_epochs": 0},
        early_terminate={"type": "median", "min_iter": 4, "min_trials": 1},
    )
    sweep_id = create(place, spec)
    (place.folder / f"{sweep_id}-run0.go").touch()
    scheduler = start_scheduler(place, sweep_id)
    worker = place.start_agent(sweep_id)
    assert ended(scheduler, place) == 0
    assert ended(worker, place) == 0
    good, bad = double.sweeps[sweep_id].handed_out
    assert double.stopped == {bad}
    assert double.exit_code == {good: 0, bad: 0}
    assert [len(double.logged(run_id, "objective/value")) for run_id in (good, bad)] == [6, 4]
    text = log_of(place, "scheduler.log")
    assert text.count("Requesting early stop") == 1
    rows = (place.results(sweep_id) / "trials.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["complete", "pruned"]


@pytest.mark.process
def test_w_and_bs_client_tells_a_diverged_run_from_a_crashed_one(place: Place) -> None:
    """Here the test is the agent: the runs' rows and ends are put on the server."""
    double = place.double
    spec = place.write_spec(search={"sampler": "random"}, run_cap=5)
    sweep_id = create(place, spec)
    scheduler = start_scheduler(place, sweep_id, runs=5)
    wait_until(lambda: len(double.sweeps[sweep_id].runs) == 5, "the runs are in line", place)
    ends: list[tuple[list[Any], int]] = [
        ([0.9, 0.8, 0.7], 0),
        ([0.9, math.nan], 1),
        ([0.9, math.nan], 0),
        ([0.9, 0.8], 0),
        ([0.9], 1),
    ]
    with double.lock:
        for run_id, (values, code) in zip(double.sweeps[sweep_id].runs, ends, strict=True):
            put_run(double, run_id, values, code)
    assert ended(scheduler, place) == 0
    text = log_of(place, "scheduler.log")
    assert [number for number in range(5) if f"trial {number} diverged" in text] == [1, 2]
    assert [number for number in range(5) if f"trial {number} was stopped after 2 of 3" in text] == [3]
    assert "failed to record" not in text


@pytest.mark.process
def test_the_command_says_in_one_line_what_is_wrong_with_the_sweep(place: Place) -> None:
    spec = place.write_spec()
    sweep_id = create(place, spec)
    spec.rename(place.folder / "other.yaml")
    assert ended(start_scheduler(place, sweep_id), place) == 1
    text = log_of(place, "scheduler.log")
    assert "tiny.yaml: no such file" in text
    assert "Traceback" not in text
