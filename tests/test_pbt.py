"""The population's turn: who copies whom, with which values. Pure; tests/test_population.py trains populations."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.blocks import Pbt
from sweep.grammar import parse_entry
from sweep.parameters import Parameter
from sweep.pbt import Change, can_change, perturbed, redrawn, turn
from tests.specs import ALPHA, fails

ENTRIES: list[dict[str, Any]] = [
    {"min": 0.1, "max": 0.9},
    {"distribution": "log_uniform_values", "min": 1e-4, "max": 4e-3},
    {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
    {"distribution": "q_log_uniform_values", "min": 0.01, "max": 1.0, "q": 0.01},
    {"min": -3, "max": 40},
    {"values": [0.25, 0.5, 0.75]},
    {"values": [0.5]},
    {"values": [0.1, 0.2, 0.3], "probabilities": [0.5, 0.0, 0.5]},
]


def parameter_of(entry: dict[str, Any]) -> Parameter:
    parameter = parse_entry(entry)
    assert parameter is not None
    return parameter


def turned(scores: dict[str, float], *, epochs: int = 1, presets: tuple[str, ...] = (), **options: Any) -> list[Change]:
    values = {trial: {"alpha": 0.5} for trial in scores}
    parameters = {"alpha": parameter_of(ALPHA["alpha"])}
    return turn(Pbt(**options), parameters, epochs, scores, values, presets, seed=0)


@given(entry=st.sampled_from(ENTRIES), seed=st.integers(0, 2**32), steps=st.integers(1, 30))
def test_values_stay_inside_the_space_however_often_they_change(entry: dict[str, Any], seed: int, steps: int) -> None:
    parameter, draws = parameter_of(entry), random.Random(seed)
    assert can_change(parameter)
    value = redrawn(parameter, draws)
    for _ in range(steps):
        assert parameter.contains(value)
        value = perturbed(parameter, value, draws)
    assert parameter.contains(value)


def test_a_number_is_perturbed_by_a_fifth_a_choice_to_the_one_beside_it() -> None:
    draws = random.Random(0)
    numbers = {perturbed(parameter_of(ENTRIES[0]), 0.5, draws) for _ in range(50)}
    assert numbers == {0.4, 0.6}
    choices = {perturbed(parameter_of({"values": [1, 2, 4, 8]}), 2, draws) for _ in range(50)}
    assert choices == {1, 4}


def test_a_coarse_step_is_taken_where_a_fifth_is_less_than_one() -> None:
    parameter = parameter_of({"distribution": "q_uniform", "min": 0.25, "max": 1.0, "q": 0.25})
    assert {perturbed(parameter, 0.5, random.Random(seed)) for seed in range(20)} == {0.25, 0.75}


@given(
    scores=st.dictionaries(st.text("0123456789", min_size=4, max_size=4), st.floats(0, 1), max_size=12),
    quantile=st.floats(0.01, 0.5),
    epochs=st.integers(1, 9),
)
def test_the_worst_copy_the_best_and_nobody_does_both(scores: dict[str, float], quantile: float, epochs: int) -> None:
    changes = turned(scores, epochs=epochs, quantile=quantile)
    copying, copied = {change.trial for change in changes}, {change.source for change in changes}
    assert not copying & copied
    assert len(changes) == len(copying) <= len(scores) / 2
    assert all(scores[change.source] <= scores[change.trial] for change in changes)


def test_presets_are_copied_but_never_copy_and_change_no_other_draw() -> None:
    scores = {"0000": 0.9, "0001": 0.1, "0002": 0.5, "0003": 0.8}
    free = turned(scores, quantile=0.5)
    kept = turned(scores, quantile=0.5, presets=("0000", "0001"))
    assert [change.trial for change in free] == ["0003", "0000"]
    assert kept == free[:1]


def test_the_seed_and_the_epoch_alone_fix_the_draws() -> None:
    scores = {f"{number:04d}": number / 10 for number in range(8)}
    backwards = dict(reversed(scores.items()))
    assert turned(scores, resample=0.5) == turned(backwards, resample=0.5)
    assert turned(scores, epochs=1, resample=1) != turned(scores, epochs=2, resample=1)


def test_one_trial_alone_changes_nothing() -> None:
    assert turned({"0000": 0.5}) == []
    assert turned({}) == []


def test_a_change_reads_as_a_line_of_its_trials_config() -> None:
    change = Change(epochs=3, trial="0004", source="0001", values={"alpha": 0.4, "base_lr": 0.001})
    assert str(change) == "after 3 epochs: weights of trial 0001, alpha 0.4, base_lr 0.001"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"parameters": ALPHA | {"batch_size": {"values": [8, 16]}}}, ["batch_size is searched", "same model, data"]),
        (
            {"parameters": {"alpha": {"distribution": "beta", "a": 2, "b": 2}}},
            ["alpha has a normal or beta distribution", "write uniform"],
        ),
        ({"trainer": {"weighting": "famo"}}, ["weighting = 'famo' moves the weights", "weighting: fixed"]),
        ({"trainer": {"epochs": 1}}, ["every_epochs = 1, but trials train for 1 epochs", "give less"]),
        ({"run_cap": 3}, ["of 3 trials 2 are presets", "raise run_cap"]),
        ({"metric": {"name": "objective/value", "target": 0.1}}, ["metric.target", "leave metric.target out"]),
        ({"search": {"pbt": {}, "stop": {"time_budget_s": 60}}}, ["search.stop", "starts at once"]),
    ],
)
def test_what_a_population_cannot_do_is_refused_and_says_why(
    tmp_path: Path, content: dict[str, Any], parts: list[str]
) -> None:
    message = fails(tmp_path, **{"run_cap": 8, "search": {"pbt": {}}} | content)
    assert all(part in message for part in parts), message
