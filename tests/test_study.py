"""The study tells every trial as what it is, and goes on after its driver's end as if nothing had happened."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweep.study import JOURNAL, Outcome, Record, SweepStudy, best
from tests.sweeping import tiny_spec

SPACE = tiny_spec().space


def open_study(folder: Path, **options: Any) -> SweepStudy:
    return SweepStudy(folder, "tiny", SPACE, **({"seed": 3, "startup_trials": 2} | options))


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.load_study(study_name="tiny", storage=storage).get_trials()


def run_one(study: SweepStudy, value: float, outcome: Outcome = Outcome.COMPLETE) -> dict[str, Any]:
    suggestion = study.next()
    study.report(suggestion.number, 0, value)
    study.finish(suggestion.number, outcome)
    return suggestion.values


def test_presets_come_first_under_their_names_and_the_sampler_fills_the_rest(tmp_path: Path) -> None:
    first = [("equal-weights", {"alpha": 0.5, "base_lr": 0.05}), ("balanced-weights", {"alpha": 0.75})]
    study = open_study(tmp_path, first=first)
    one, two, three = study.next(), study.next(), study.next()
    assert (one.number, one.preset, one.values) == (0, "equal-weights", {"alpha": 0.5, "base_lr": 0.05})
    assert (two.preset, two.values["alpha"]) == ("balanced-weights", 0.75)
    assert 0.01 <= two.values["base_lr"] <= 0.3
    assert three.preset is None


def test_presets_are_not_enqueued_again_when_the_study_is_opened_again(tmp_path: Path) -> None:
    first = [("equal-weights", {"alpha": 0.5})]
    run_one(open_study(tmp_path, first=first), 1.0)
    assert open_study(tmp_path, first=first).next().preset is None


def test_presets_that_a_driver_was_killed_before_it_enqueued_come_next(tmp_path: Path) -> None:
    first = [("equal-weights", {"alpha": 0.5}), ("balanced-weights", {"alpha": 0.75})]
    open_study(tmp_path, first=first[:1])
    resumed = open_study(tmp_path, first=first)
    assert [resumed.next().preset for _ in range(3)] == ["equal-weights", "balanced-weights", None]


def test_a_driver_killed_while_presets_wait_changes_no_later_trial(tmp_path: Path) -> None:
    first = [("equal-weights", {"alpha": 0.5}), ("balanced-weights", {"alpha": 0.75})]
    (tmp_path / "parts").mkdir()
    whole = open_study(tmp_path, first=first)
    uninterrupted = [run_one(whole, 1.0) for _ in range(4)]
    assert [run_one(open_study(tmp_path / "parts", first=first), 1.0) for _ in range(4)] == uninterrupted


def test_every_outcome_is_told_as_what_it_is(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    numbers = [study.next().number for _ in range(5)]
    for number in numbers:
        study.report(number, 0, 2.0 + number)
        study.report(number, 1, 1.0 + number)
    study.finish(0, Outcome.COMPLETE)
    study.finish(1, Outcome.PRUNED, "stopped early after 2 epochs")
    study.finish(2, Outcome.DIVERGED, "loss_pred = nan at update 7")
    study.finish(3, Outcome.FAILED, "out of memory")
    trials = stored(tmp_path)
    assert [t.state for t in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    assert trials[0].value == 1.0
    assert trials[1].intermediate_values == {0: 3.0, 1: 2.0}
    assert trials[2].constraints == {"diverged": 1.0}
    records = study.records()
    assert [r.outcome for r in records] == [*[*Outcome][1:], Outcome.RUNNING]
    assert [r.reason for r in records][1:3] == ["stopped early after 2 epochs", "loss_pred = nan at update 7"]
    assert (records[1].value, records[1].epochs) == (2.0, 2)


def test_a_value_that_is_not_finite_or_was_reported_before_is_left_out(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    number = study.next().number
    study.report(number, 0, 1.5)
    study.report(number, 0, 9.0)
    study.report(number, 1, math.nan)
    assert study.intermediate_values() == {number: {0: 1.5}}


def test_what_a_dead_driver_left_running_is_handed_out_first_with_its_number_and_values(tmp_path: Path) -> None:
    dead = open_study(tmp_path, first=[("equal-weights", {"alpha": 0.5})])
    run_one(dead, 1.0)
    lost = [dead.next(), dead.next()]
    dead.report(lost[0].number, 0, 2.0)
    study = open_study(tmp_path)
    assert study.unfinished == 2
    assert [study.next(), study.next()] == lost
    assert study.next().number == 3
    study.report(lost[0].number, 1, 1.5)
    study.finish(lost[0].number, Outcome.COMPLETE)
    assert study.record(lost[0].trial).value == 1.5


def test_a_released_trial_stays_running_for_the_next_driver(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    number = study.next().number
    study.release(number)
    assert study.record(f"{number:04d}").outcome is Outcome.RUNNING
    assert open_study(tmp_path).next().number == number


def record(number: int, outcome: Outcome, value: float | None) -> Record:
    return Record(number, f"{number:04d}", {}, None, outcome, value, 3, None)


def test_the_best_trial_is_one_that_trained_to_its_end() -> None:
    records = [
        record(0, Outcome.COMPLETE, 1.0),
        record(1, Outcome.PRUNED, 0.1),
        record(2, Outcome.COMPLETE, 0.5),
        record(3, Outcome.DIVERGED, 0.0),
        record(4, Outcome.COMPLETE, 0.5),
    ]
    assert best(records, "minimize") == records[2]
    assert best(records, "maximize") == records[0]
    assert best(records[1:2], "minimize") is None


def test_a_study_of_other_goals_is_not_gone_on_with(tmp_path: Path) -> None:
    open_study(tmp_path)
    with pytest.raises(ValueError, match="its goals are minimize; the spec's are maximize"):
        open_study(tmp_path, goals=["maximize"])


def test_several_metrics_make_a_study_of_several_goals(tmp_path: Path) -> None:
    study = open_study(tmp_path, goals=["minimize", "maximize"])
    for number, outcome in enumerate((Outcome.COMPLETE, Outcome.DIVERGED)):
        study.next()
        study.report(number, 0, 3.0, 0.1)
        study.report(number, 1, 2.0, math.nan)  # not known: the epoch before stays
        study.report(number, 2, 1.0, 0.2)
        study.finish(number, outcome)
    one, two = open_study(tmp_path, goals=["minimize", "maximize"]).records()
    assert (one.objectives, one.value, one.epochs, one.outcome) == ((1.0, 0.2), 1.0, 3, Outcome.COMPLETE)
    assert two.outcome is Outcome.DIVERGED
    assert stored(tmp_path)[0].values == [1.0, 0.2]


def test_the_time_of_a_trial_and_of_the_search_is_added_up_over_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1000.0, 60.0)  # a minute between two looks at it
    monkeypatch.setattr("sweep.study.time", SimpleNamespace(monotonic=lambda: next(clock)))
    study = open_study(tmp_path)
    study.next()
    study.release(0, seconds=10.0)
    again = open_study(tmp_path)
    again.next()
    again.report(0, 0, 1.0)
    assert again.finish(0, Outcome.COMPLETE, seconds=5.0).seconds == 15.0
    assert open_study(tmp_path).search_s == 180.0  # one minute of each driver


def test_optuna_dashboard_and_others_can_load_the_study_by_name(tmp_path: Path) -> None:
    run_one(open_study(tmp_path), 1.25)
    assert [t.value for t in stored(tmp_path)] == [1.25]


def test_a_larger_run_cap_later_still_tries_what_is_first(tmp_path: Path) -> None:
    first = [(None, {"alpha": value, "base_lr": 0.05}) for value in (0.2, 0.4, 0.6)]
    values = [run_one(open_study(tmp_path, first=first), 1.0)["alpha"] for _ in range(3)]
    assert values == [0.2, 0.4, 0.6]


def test_a_trial_whose_driver_was_killed_while_it_asked_gets_its_parameters_later(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    killed, whole = open_study(tmp_path / "killed"), open_study(tmp_path / "whole")
    killed._study._storage.create_new_trial(killed._study._study_id)  # what `ask` writes before the parameters
    assert open_study(tmp_path / "killed").next() == whole.next()
