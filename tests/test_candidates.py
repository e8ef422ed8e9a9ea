"""Which configs are confirmed: the best, the presets, and a baseline where there can be one."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.candidates import Candidates, how_to_confirm, most_candidates, pick
from sweep.outcome import Outcome
from sweep.study import Record
from tests.confirming import SEARCH, confirm_spec, trial
from tests.sweeping import TINY_TRAINER, tiny_spec


def names(candidates: Candidates) -> list[str]:
    return [candidate.name for candidate in candidates.configs]


def test_the_best_complete_trials_and_the_presets_are_confirmed_with_equal_weights_as_the_baseline() -> None:
    candidates = pick(confirm_spec(), SEARCH)
    assert names(candidates) == ["trial 0004", "trial 0002", "equal-weights", "balanced-weights"]
    assert [candidate.source for candidate in candidates.configs] == ["0004", "0002", "0000", "0001"]
    assert [candidate.baseline for candidate in candidates.configs] == [False, False, True, False]
    assert candidates.notes == ()


def test_the_highest_are_the_best_where_the_metric_is_maximised() -> None:
    spec = confirm_spec(1, metric={"name": "eval/static_skill", "goal": "maximize"})
    assert names(pick(spec, SEARCH)) == ["equal-weights", "balanced-weights"]


def test_a_config_is_confirmed_once_and_under_its_presets_name() -> None:
    twice = [trial(0, 0.4, 0.5), trial(1, 0.4, 0.5), trial(2, 0.5, 0.5, "equal-weights"), trial(3, 0.6, 0.6)]
    candidates = pick(confirm_spec(2), twice)
    assert names(candidates) == ["equal-weights", "trial 0003"]
    assert candidates.configs[0].baseline


def test_too_few_finished_trials_are_all_confirmed_and_that_is_said() -> None:
    candidates = pick(confirm_spec(9), SEARCH)
    assert len(candidates.configs) == 5
    assert "confirm.top_k = 9, but the configs that trained to their end are 5" in candidates.notes[0]


def test_a_baseline_that_diverged_in_the_search_is_confirmed_all_the_same_and_another_such_preset_is_not() -> None:
    records = [
        trial(0, None, 0.5, "equal-weights", Outcome.DIVERGED),
        trial(1, None, 0.75, "balanced-weights", Outcome.DIVERGED),
        trial(2, 0.6, 0.6),
    ]
    candidates = pick(confirm_spec(1), records)
    assert names(candidates) == ["trial 0002", "equal-weights"]
    assert candidates.configs[1].source == "0000"


def test_without_an_equal_weights_preset_it_is_added_with_the_trainers_own_values() -> None:
    candidates = pick(confirm_spec(1, search={"presets": []}), [trial(0, 0.6, 0.6)])
    added = candidates.configs[-1]
    assert (added.name, added.source, added.baseline) == ("equal-weights", None, True)
    assert added.values == {"alpha": 0.5, "base_lr": 0.03}


@pytest.mark.parametrize(
    ("parameters", "values", "why"),
    [
        ({"base_lr": {"min": 0.01, "max": 0.3}}, {"base_lr": 0.1}, "alpha is not searched"),
        ({"alpha": {"min": 0.6, "max": 0.9}}, {"alpha": 0.7}, "the space has no equal weights"),
        (
            {"alpha": {"min": 0.1, "max": 0.9}, "base_lr": {"min": 0.1, "max": 0.3}},
            {"alpha": 0.7, "base_lr": 0.2},
            "lie outside the space",
        ),
    ],
)
def test_no_baseline_says_why(parameters: dict[str, Any], values: dict[str, Any], why: str) -> None:
    records = [Record(0, "0000", values, None, Outcome.COMPLETE, 0.5, 3, None)]
    candidates = pick(confirm_spec(1, parameters=parameters, search={"presets": []}), records)
    assert names(candidates) == ["trial 0000"]
    assert why in candidates.notes[-1]


@pytest.mark.parametrize(("search", "most"), [({}, 4), ({"presets": []}, 3), ({"presets": [{"alpha": 0.7}]}, 4)])
def test_the_plan_counts_the_most_configs_there_can_be(search: dict[str, Any], most: int) -> None:
    assert most_candidates(confirm_spec(2, search=search)) == most


def test_the_seeds_that_are_proposed_leave_out_the_searchs_own() -> None:
    assert "[1, 2, 4, 5, 6]" in how_to_confirm(tiny_spec(trainer={**TINY_TRAINER, "seed": 3}))
