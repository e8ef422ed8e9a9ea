"""Our study behind Ray's Searcher interface, driven by the calls that Ray makes."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.blocks import MetricSettings, Plateau, Stop
from sweep.searcher import DIVERGED, EPOCHS, FINISHED, INTERRUPTED, StudySearcher
from sweep.stopping import StopRules
from sweep.study import Outcome, SweepStudy
from tests.sweeping import tiny_spec

SPEC = tiny_spec()
METRIC = "objective/value"


def make(folder: Path, num_trials: int = 3, **options: Any) -> tuple[SweepStudy, StudySearcher]:
    study = SweepStudy(folder, "tiny", SPEC.space, sampler="random")
    defaults: dict[str, Any] = {
        "metrics": [MetricSettings(name=METRIC)],
        "make_config": lambda values: SPEC.space.to_config(SPEC.trainer, values),
        "crash_reason": lambda number: f"crash of {number}",
    }
    return study, StudySearcher(study, num_trials, **defaults | options)


def result(epochs: int, value: float, **more: Any) -> dict[str, Any]:
    return {EPOCHS: epochs, METRIC: value, FINISHED: False, DIVERGED: None, INTERRUPTED: False, **more}


def test_a_suggestion_is_a_whole_config_under_the_trials_one_id(tmp_path: Path) -> None:
    _, searcher = make(tmp_path)
    suggestion = searcher.suggest("ray-id")
    assert isinstance(suggestion, dict)
    assert suggestion["trial"] == "0000"
    config = TrainConfig.model_validate(suggestion["config"])
    assert config.alpha == suggestion["values"]["alpha"]
    assert config.epochs == SPEC.trainer.epochs


def test_it_is_finished_after_the_trials_asked_for(tmp_path: Path) -> None:
    _, searcher = make(tmp_path, num_trials=2)
    assert isinstance(searcher.suggest("a"), dict)
    assert isinstance(searcher.suggest("b"), dict)
    assert searcher.suggest("c") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("last", "outcome", "value"),
    [
        (result(2, 0.5, **{FINISHED: True}), Outcome.COMPLETE, 0.5),
        (result(2, 0.5), Outcome.PRUNED, 0.5),
        (result(1, math.nan, **{DIVERGED: "loss_pred = nan"}), Outcome.DIVERGED, 0.9),
        ({INTERRUPTED: True}, Outcome.RUNNING, 0.9),
    ],
)
def test_a_trial_ends_as_what_its_last_result_says(
    tmp_path: Path, last: dict[str, Any], outcome: Outcome, value: float
) -> None:
    study, searcher = make(tmp_path)
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, 0.9))
    searcher.on_trial_complete("a", last)
    assert (study.record("0000").outcome, study.record("0000").value) == (outcome, value)


def test_a_crashed_trial_fails_with_its_reason(tmp_path: Path) -> None:
    study, searcher = make(tmp_path)
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    assert (study.record("0000").outcome, study.record("0000").reason) == (Outcome.FAILED, "crash of 0")


@pytest.mark.parametrize("cause", ["the user stops the sweep", "Ray has died"])
def test_a_trial_that_crashes_of_what_ends_the_sweep_is_left_for_the_next_driver(tmp_path: Path, cause: str) -> None:
    study, searcher = make(tmp_path)
    searcher.suggest("a")
    searcher.stopping = cause == "the user stops the sweep"
    searcher.machine_failed = lambda: cause == "Ray has died"
    searcher.on_trial_complete("a", error=True)
    assert study.record("0000").outcome is Outcome.RUNNING
    resumed = make(tmp_path)[1].suggest("b")
    assert isinstance(resumed, dict)
    assert resumed["trial"] == "0000"


def test_values_that_do_not_go_together_are_a_failed_trial_and_the_next_is_tried(tmp_path: Path) -> None:
    def picky(values: dict[str, Any]) -> TrainConfig:
        if study.records()[-1].number == 0:
            raise ConfigError("trial: min_lr is above the peak")
        return SPEC.space.to_config(SPEC.trainer, values)

    study, searcher = make(tmp_path, make_config=picky)
    suggestion = searcher.suggest("a")
    assert isinstance(suggestion, dict)
    assert suggestion["trial"] == "0001"
    assert (study.record("0000").outcome, study.record("0000").reason) == (
        Outcome.FAILED,
        "trial: min_lr is above the peak",
    )


def test_no_new_trial_starts_once_a_rule_ends_the_search(tmp_path: Path) -> None:
    metric = MetricSettings(name=METRIC, target=0.6)
    _, searcher = make(tmp_path, rules=StopRules(Stop(), [metric]))
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_complete("a", result(3, 0.7, **{FINISHED: True}))
    assert not searcher.stopping
    searcher.on_trial_complete("b", result(3, 0.6, **{FINISHED: True}))
    assert searcher.suggest("c") == Searcher.FINISHED
    assert searcher.ended_by == "objective/value 0.6 reached its target 0.6"


def test_a_rule_knows_what_ended_before_and_lets_begun_trials_end(tmp_path: Path) -> None:
    _, searcher = make(tmp_path)
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_complete("a", result(3, 0.6, **{FINISHED: True}))
    _, resumed = make(tmp_path, rules=StopRules(Stop(), [MetricSettings(name=METRIC, target=0.6)]))
    assert isinstance(resumed.suggest("b"), dict)
    assert resumed.suggest("c") == Searcher.FINISHED


def test_of_several_metrics_each_must_have_a_value(tmp_path: Path) -> None:
    metrics = [MetricSettings(name=name) for name in ("eval/loss_static", "eval/loss_dynamic")]
    study = SweepStudy(tmp_path, "tiny", SPEC.space, goals=["minimize", "minimize"])
    _, searcher = study, StudySearcher(study, 2, metrics, lambda values: SPEC.trainer, str)
    for ray_id, row in (("a", {"eval/loss_static": 1.0, "eval/loss_dynamic": 2.0}), ("b", {"eval/loss_static": 1.0})):
        searcher.suggest(ray_id)
        searcher.on_trial_result(ray_id, result(1, 0.5, **row))
        searcher.on_trial_complete(ray_id, result(2, 0.5, **row, **{FINISHED: True}))
    one, two = study.records()
    assert (one.outcome, one.objectives) == (Outcome.COMPLETE, (1.0, 2.0))
    assert (two.outcome, two.reason) == (Outcome.FAILED, "eval/loss_dynamic has no value")


def test_tune_can_pickle_it(tmp_path: Path) -> None:
    _, searcher = make(tmp_path)
    pickle.loads(pickle.dumps(searcher))


def test_a_resumed_search_counts_trials_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    def rules() -> StopRules:
        return StopRules(Stop(plateau=Plateau(trials=3)), [MetricSettings(name=METRIC)])

    _, live = make(tmp_path, num_trials=9, rules=rules())
    for ray_id in "abcde":
        live.suggest(ray_id)
    for ray_id, value in (("a", 0.9), ("c", 1.0), ("d", 1.0), ("b", 0.5), ("e", 1.0)):
        live.on_trial_complete(ray_id, result(3, value, **{FINISHED: True}))
    _, resumed = make(tmp_path, num_trials=4, rules=rules())
    assert isinstance(live.suggest("f"), dict)
    assert isinstance(resumed.suggest("f"), dict)


def test_what_a_crashed_trial_took_counts_as_cost(tmp_path: Path) -> None:
    rules = StopRules(Stop(accelerator_hours=1), [MetricSettings(name=METRIC)], gpus=1)
    study, searcher = make(tmp_path, rules=rules)
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, 0.9, time_total_s=3700.0))
    searcher.on_trial_complete("a", error=True)
    assert study.record("0000").seconds == 3700.0
    assert searcher.suggest("b") == Searcher.FINISHED
