"""Early stopping within a search: searcher, scheduler and study, driven by the calls that Ray makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sweep.results import ResultsFolder
from sweep.run import run
from sweep.schedulers import CONTINUE, STOP, make_scheduler
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, INTERRUPTED, StudySearcher
from sweep.spec import SweepSpec
from sweep.stopping import StopRules
from sweep.study import Outcome, Record, SweepStudy
from tests.inline import inline_runner
from tests.sweeping import TINY_TRAINER, tiny_spec

METRIC = "objective/value"
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


@EVERY
def test_in_a_whole_sweep_presets_train_to_their_end_and_none_stays_running(tmp_path: Path, kind: str) -> None:
    spec = spec_of(kind, run_cap=8, wandb={"mode": "disabled"}, resources={"cpu": 0.5, "max_concurrent": 2})
    with inline_runner():
        assert run(spec, ResultsFolder(tmp_path / "results"), Console(quiet=True)) == 0
    study = SweepStudy(tmp_path / "results", spec.name, spec.space)
    assert len(study.records()) == 8
    assert [record.outcome for record in presets(study)] == [Outcome.COMPLETE] * 2
    for record in study.records():
        assert record.outcome is (Outcome.COMPLETE if record.epochs == EPOCHS_OF_A_TRIAL else Outcome.PRUNED)
        assert sorted(study.intermediate_values()[record.number]) == list(range(record.epochs))


@STOPPING
def test_a_preset_goes_on_where_another_trial_of_the_same_values_is_stopped(tmp_path: Path, kind: str) -> None:
    spec = spec_of(kind)
    scheduler = make_scheduler(spec, SweepStudy(tmp_path, spec.name, spec.space))
    for name in ("0002", "0003", "0004"):
        good = SimpleNamespace(config={"trial": name, "preset": None})
        for epochs in range(1, EPOCHS_OF_A_TRIAL):
            scheduler.on_trial_result(None, good, {EPOCHS: epochs, METRIC: 0.1})
    said = {}
    for name, preset in (("0000", "equal-weights"), ("0005", None)):
        bad = SimpleNamespace(config={"trial": name, "preset": preset})
        said[preset] = {scheduler.on_trial_result(None, bad, {EPOCHS: epochs, METRIC: 0.9}) for epochs in (1, 2, 3)}
    assert said["equal-weights"] == {CONTINUE}
    assert STOP in said[None]


def test_an_interrupted_trial_has_no_value_and_the_last_one_of_another_counts(tmp_path: Path) -> None:
    spec = spec_of("median", early_terminate={"type": "median", "min_iter": 1, "min_trials": 1})
    scheduler = make_scheduler(spec, SweepStudy(tmp_path, spec.name, spec.space))
    one, two, three = (SimpleNamespace(config={"trial": name, "preset": None}) for name in ("0001", "0002", "0003"))
    scheduler.on_trial_complete(None, one, {INTERRUPTED: True, "done": True})
    assert scheduler.on_trial_result(None, two, {EPOCHS: 1, METRIC: 0.9}) == CONTINUE
    scheduler.on_trial_complete(None, two, {EPOCHS: 2, METRIC: 0.1})
    assert scheduler.on_trial_result(None, three, {EPOCHS: 1, METRIC: 0.8}) == CONTINUE
    assert scheduler.on_trial_result(None, three, {EPOCHS: 2, METRIC: 0.8}) == STOP
