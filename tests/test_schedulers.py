"""Every scheduler behind the same rules, driven by the calls that Ray makes; slow ones start Ray itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, MedianStoppingRule, TrialScheduler
from rich.console import Console

from sweep.pruning import max_epochs
from sweep.results import ResultsFolder
from sweep.run import run
from sweep.schedulers import AshaKeepingPresets, MedianStopping, _named, make_scheduler
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, StudySearcher
from sweep.spec import SweepSpec
from sweep.stopping import StopRules
from sweep.study import Outcome, Record, SweepStudy
from tests.sweeping import TINY_TRAINER, tiny_spec

METRIC = "objective/value"
CONTINUE, STOP = str(TrialScheduler.CONTINUE), str(TrialScheduler.STOP)
BLOCKS: dict[str, dict[str, Any]] = {
    "none": {},
    "hyperband": {"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 3}},
    "median": {"early_terminate": {"type": "median", "min_iter": 2, "min_trials": 2}},
}
EVERY = pytest.mark.parametrize("kind", BLOCKS)
STOPPING = pytest.mark.parametrize("kind", ["hyperband", "median"])
EPOCHS_OF_A_TRIAL = 6
Curve = Callable[[str, int], float]  # (trial, epochs done) -> value


def spec_of(kind: str, **changes: Any) -> SweepSpec:
    content = {"run_cap": 12, "trainer": {**TINY_TRAINER, "epochs": EPOCHS_OF_A_TRIAL}}
    return tiny_spec(**content | BLOCKS[kind] | changes)


def trial(name: str, preset: str | None = None) -> Any:
    return SimpleNamespace(trial_id=f"ray-{name}", config={"trial": name, "preset": preset})


def curve(name: str, epochs: int) -> float:
    """Falls with the epochs to a place that differs among the trials; the presets, which come first, are the worst."""
    number = int(name)
    end = 2.0 if number < 2 else (number * 0.37) % 1
    return end + 1 / epochs


class Killed(Exception):
    """The driver dies."""


def drive(folder: Path, spec: SweepSpec, curve: Curve, *, workers: int = 3, die_after: int | None = None) -> SweepStudy:
    """A sweep of made-up trials with the calls that Ray makes; trials take turns by epochs. Goes on with the folder's.

    `die_after` reports the driver is killed: what was running stays as it is.
    """
    first = [(str(preset), spec.space.fill_preset(preset, spec.trainer)) for preset in spec.presets]
    study = SweepStudy(folder, spec.name, spec.space, sampler="random", first=first)
    ended = sum(record.outcome is not Outcome.RUNNING for record in study.records())
    searcher = StudySearcher(
        study,
        spec.num_trials - ended,
        metrics=spec.objectives,
        make_config=lambda values: spec.space.to_config(spec.trainer, values),
        crash_reason=str,
        rules=StopRules(spec.search.stop, spec.objectives),
    )
    scheduler = make_scheduler(spec, study)
    running: dict[str, list[Any]] = {}  # Ray's id -> [trial, epochs done]
    reports, asked, open_for_more = 0, 0, True
    while True:
        while open_for_more and len(running) < workers:
            asked += 1
            config = searcher.suggest(f"ray-{asked}")
            open_for_more = isinstance(config, dict)
            if isinstance(config, dict):
                new = SimpleNamespace(trial_id=f"ray-{asked}", config=config)
                scheduler.on_trial_add(None, new)
                # its folder's checkpoint is from the epoch before the last one that it reported
                known = study.record(config["trial"]).epochs
                running[new.trial_id] = [new, max(0, known - 1)]
        if not running:
            return study
        for ray_id, place in list(running.items()):
            if reports == die_after:
                raise Killed
            reports += 1
            place[1] += 1
            who, epochs = place
            value = curve(who.config["trial"], epochs)
            diverged = "loss_pred = nan" if math.isnan(value) else None
            finished = epochs == EPOCHS_OF_A_TRIAL and diverged is None
            result = {EPOCHS: epochs, METRIC: value, FINISHED: finished, DIVERGED: diverged}
            done = finished or diverged is not None
            if not done and scheduler.on_trial_result(None, who, result) == CONTINUE:
                searcher.on_trial_result(ray_id, result)
            else:
                scheduler.on_trial_complete(None, who, result)
                searcher.on_trial_complete(ray_id, result)
                del running[ray_id]


def ends(study: SweepStudy) -> list[tuple[str, Outcome, int]]:
    return [(record.trial, record.outcome, record.epochs) for record in study.records()]


def presets(study: SweepStudy) -> list[Record]:
    return [record for record in study.records() if record.preset is not None]


@EVERY
def test_a_preset_is_never_stopped(tmp_path: Path, kind: str) -> None:
    study = drive(tmp_path, spec_of(kind), curve)
    assert [record.outcome for record in presets(study)] == [Outcome.COMPLETE] * 2


@STOPPING
def test_it_stops_the_worse_trials_and_keeps_the_best(tmp_path: Path, kind: str) -> None:
    study = drive(tmp_path, spec_of(kind), curve)
    searched = [record for record in study.records() if record.preset is None]
    stopped = [record for record in searched if record.outcome is Outcome.PRUNED]
    best = min(searched, key=lambda record: curve(record.trial, EPOCHS_OF_A_TRIAL))
    assert stopped
    assert best.outcome is Outcome.COMPLETE


@EVERY
def test_a_stopped_trial_is_pruned_with_all_its_values_and_none_stays_running(tmp_path: Path, kind: str) -> None:
    study = drive(tmp_path, spec_of(kind), curve)
    values = study.intermediate_values()
    for record in study.records():
        assert record.outcome is (Outcome.COMPLETE if record.epochs == EPOCHS_OF_A_TRIAL else Outcome.PRUNED)
        assert values[record.number] == {epoch: curve(record.trial, epoch + 1) for epoch in range(record.epochs)}


@EVERY
def test_a_diverged_trial_changes_no_decision_about_the_others(tmp_path: Path, kind: str) -> None:
    def with_nan(name: str, epochs: int) -> float:
        return math.nan if name == "0002" else curve(name, epochs)

    study = drive(tmp_path, spec_of(kind), with_nan)
    assert study.record("0002").outcome is Outcome.DIVERGED
    outcomes = {outcome for _, outcome, _ in ends(study)} - {Outcome.DIVERGED}
    assert outcomes == ({Outcome.COMPLETE} if kind == "none" else {Outcome.COMPLETE, Outcome.PRUNED})


@EVERY
@pytest.mark.parametrize("die_after", [1, 7, 20])
def test_a_resumed_sweep_decides_as_an_uninterrupted_one(tmp_path: Path, kind: str, die_after: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    uninterrupted = drive(whole, spec_of(kind), curve, workers=1)
    with pytest.raises(Killed):
        drive(parts, spec_of(kind), curve, workers=1, die_after=die_after)
    resumed = drive(parts, spec_of(kind), curve, workers=1)
    assert ends(resumed) == ends(uninterrupted)
    assert resumed.intermediate_values() == uninterrupted.intermediate_values()


@STOPPING
def test_of_a_maximised_metric_the_low_trials_are_stopped(tmp_path: Path, kind: str) -> None:
    metric = {"name": "eval/pred_skill", "goal": "maximize"}
    scheduler = make_scheduler(spec_of(kind, metric=metric), SweepStudy(tmp_path, "s", spec_of(kind).space))
    actions = {}
    for name, value in (("0", 0.9), ("1", 0.8), ("2", 0.7), ("3", 0.1)):
        who = trial(name)
        scheduler.on_trial_add(None, who)
        for epochs in (1, 2):
            actions[name] = scheduler.on_trial_result(None, who, {EPOCHS: epochs, metric["name"]: value})
            if actions[name] == STOP:
                break
    assert actions["0"] == CONTINUE
    assert actions["3"] == STOP


@pytest.mark.parametrize("kind", ["hyperband", "median"])
def test_without_a_decision_before_the_trials_end_there_is_no_scheduler(tmp_path: Path, kind: str) -> None:
    late = {**BLOCKS[kind]["early_terminate"], "min_iter": EPOCHS_OF_A_TRIAL}
    spec = spec_of(kind, early_terminate=late)
    assert type(make_scheduler(spec, SweepStudy(tmp_path, "s", spec.space))) is FIFOScheduler


def test_of_searched_epochs_the_longest_trial_counts() -> None:
    spec = spec_of("none", parameters={"epochs": {"values": [3, 9, 5]}, "alpha": {"min": 0.1, "max": 0.9}})
    assert max_epochs(spec) == 9


def test_a_trial_that_asha_decided_about_is_not_decided_about_again_after_a_resume(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path, "tiny", tiny_spec().space)
    first, second = study.next().number, study.next().number
    study.report(first, 0, 0.5)
    study.report(second, 0, 0.7)
    scheduler = AshaKeepingPresets(
        time_attr=EPOCHS, metric=METRIC, mode="min", max_t=9, grace_period=1, reduction_factor=3
    )
    scheduler.replay(study)
    resumed, new = trial(study.trial_name(second)), trial("0007")
    scheduler.on_trial_add(None, resumed)
    scheduler.on_trial_add(None, new)
    assert scheduler.on_trial_result(None, new, {EPOCHS: 1, METRIC: 0.9}) == STOP
    assert scheduler.on_trial_result(None, resumed, {EPOCHS: 1, METRIC: 0.7}) == CONTINUE


@pytest.mark.slow
@EVERY
def test_under_ray_presets_train_to_their_end_and_none_stays_running(tmp_path: Path, kind: str) -> None:
    spec = spec_of(kind, run_cap=8, wandb={"mode": "disabled"}, resources={"cpu": 0.5, "max_concurrent": 2})
    assert run(spec, ResultsFolder(tmp_path / "results"), Console(quiet=True)) == 0
    study = SweepStudy(tmp_path / "results", spec.name, spec.space)
    assert len(study.records()) == 8
    assert [record.outcome for record in presets(study)] == [Outcome.COMPLETE] * 2
    for record in study.records():
        assert record.outcome is (Outcome.COMPLETE if record.epochs == EPOCHS_OF_A_TRIAL else Outcome.PRUNED)
        assert sorted(study.intermediate_values()[record.number]) == list(range(record.epochs))


# --- median stopping ---


finite = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(
    curves=st.lists(st.lists(finite, min_size=1, max_size=6), min_size=2, max_size=8),
    mode=st.sampled_from(["min", "max"]),
    min_epochs=st.integers(1, 3),
    min_trials=st.integers(1, 3),
    data=st.data(),
)
def test_median_stopping_decides_as_rays_rule(
    curves: list[list[float]], mode: str, min_epochs: int, min_trials: int, data: st.DataObject
) -> None:
    ours = MedianStopping(METRIC, mode, min_epochs, min_trials)
    rays = MedianStoppingRule(EPOCHS, METRIC, mode, min_epochs, min_trials, min_time_slice=math.inf)  # it never pauses
    trials = [trial(str(place)) for place in range(len(curves))]
    names = [_named(who) for who in trials]
    epochs = [0] * len(curves)
    going = list(range(len(curves)))
    while going:
        place = data.draw(st.sampled_from(going))
        value = curves[place][epochs[place]]
        epochs[place] += 1
        result = {EPOCHS: epochs[place], METRIC: value}
        action = ours.on_trial_result(None, trials[place], result)
        assert action == rays.on_trial_result(None, names[place], result)
        if action == STOP or epochs[place] == len(curves[place]):
            going.remove(place)


def feed(scheduler: MedianStopping, name: str, *values: float, preset: str | None = None) -> str:
    action = CONTINUE
    for epochs, value in enumerate(values, 1):
        action = scheduler.on_trial_result(None, trial(name, preset), {EPOCHS: epochs, METRIC: value})
    return action


def test_only_trials_that_came_as_far_count_for_the_median() -> None:
    scheduler = MedianStopping(METRIC, "min", min_epochs=1, min_trials=3)
    for name in ("a", "b"):
        feed(scheduler, name, 0.5, 0.4)
    feed(scheduler, "c", 0.5)
    assert feed(scheduler, "bad", 0.45, 0.45) == CONTINUE  # two came as far
    feed(scheduler, "d", 0.5, 0.4)
    assert feed(scheduler, "worse", 0.9) == STOP


def test_a_preset_goes_on_after_the_median_rule_would_have_stopped_it() -> None:
    scheduler = MedianStopping(METRIC, "min", min_epochs=1, min_trials=1)
    feed(scheduler, "a", 0.1, 0.1, 0.1)
    assert feed(scheduler, "0000", 0.9, 0.9, 0.9, preset="equal-weights") == CONTINUE


def test_the_value_of_a_trials_end_counts_once_and_an_interrupted_one_has_none() -> None:
    scheduler = MedianStopping(METRIC, "min", min_epochs=1, min_trials=1)
    feed(scheduler, "a", 0.2, 0.4)
    scheduler.on_trial_complete(None, trial("a"), {EPOCHS: 2, METRIC: 0.4})  # it was stopped after this epoch
    scheduler.on_trial_complete(None, trial("b"), {"trial_interrupted": True, "done": True})
    assert feed(scheduler, "c", 0.21, 0.29) == CONTINUE  # the mean of a is 0.3, not 0.333
    assert feed(scheduler, "d", 0.21, 0.31) == CONTINUE
    assert feed(scheduler, "e", 0.31) == STOP


def test_a_trial_that_crashed_trains_epochs_again_and_they_count_once() -> None:
    scheduler = MedianStopping(METRIC, "min", min_epochs=1, min_trials=1)
    feed(scheduler, "a", 0.5, 0.1, 0.1)
    before = dict(scheduler._means[3])
    feed(scheduler, "a", 0.5, 0.1, 0.1)
    assert scheduler._means[3] == before
