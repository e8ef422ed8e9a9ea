"""The rules of early stopping: they keep to their contract, and decide as Ray's own schedulers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from sweep.early_stopping import AshaRule, EarlyStopping, MedianRule, early_stopping, max_epochs
from tests.contracts.early_stopping import MakeRule, RuleContract
from tests.sweeping import TINY_TRAINER, tiny_spec

TIME, METRIC = "epochs", "value"
STOP = str(TrialScheduler.STOP)
LONGEST = 7


class TestAsha(RuleContract):
    @pytest.fixture
    def make_rule(self) -> MakeRule:
        return lambda: AshaRule(first=1, longest=9, eta=3)


class TestMedian(RuleContract):
    @pytest.fixture
    def make_rule(self) -> MakeRule:
        return lambda: MedianRule(min_epochs=2, min_trials=3)


finite = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(
    curves=st.lists(st.lists(finite, min_size=1, max_size=LONGEST), min_size=2, max_size=9),
    first=st.integers(1, 3),
    eta=st.sampled_from([2, 2.5, 3, 4]),
    mode=st.sampled_from(["min", "max"]),
    median=st.booleans(),
    data=st.data(),
)
def test_every_rule_decides_as_rays_own(
    curves: list[list[float]], first: int, eta: float, mode: str, median: bool, data: st.DataObject
) -> None:
    rays: Any
    if median:
        rays = MedianStoppingRule(TIME, METRIC, mode, first, 2, min_time_slice=math.inf)  # it never pauses
        rule: Any = MedianRule(first, 2)
    else:
        rays = AsyncHyperBandScheduler(
            TIME, METRIC, mode, max_t=LONGEST, grace_period=first, reduction_factor=eta, stop_last_trials=False
        )
        rule = AshaRule(first, LONGEST, eta)
    ours = EarlyStopping(rule, 1.0 if mode == "min" else -1.0)
    trials = [Named(str(place)) for place in range(len(curves))]
    for trial in trials:
        rays.on_trial_add(None, trial)
    epochs = [0] * len(curves)
    going = list(range(len(curves)))
    while going:
        place = data.draw(st.sampled_from(going))
        value = curves[place][epochs[place]]
        epochs[place] += 1
        stopped = rays.on_trial_result(None, trials[place], {TIME: epochs[place], METRIC: value}) == STOP
        assert ours.stops(place, epochs[place], value) == stopped
        if stopped or epochs[place] == len(curves[place]):
            going.remove(place)


class Named(SimpleNamespace):
    """What Ray's schedulers use of a trial."""

    def __init__(self, name: str) -> None:
        super().__init__(trial_id=name)

    def __hash__(self) -> int:
        return hash(self.trial_id)


def feed(stopping: EarlyStopping, trial: str, *values: float) -> bool:
    """What is said about the last of these values."""
    return [stopping.stops(trial, epochs, value) for epochs, value in enumerate(values, 1)][-1]


def test_only_trials_that_came_as_far_count_for_the_median() -> None:
    stopping = EarlyStopping(MedianRule(min_epochs=1, min_trials=3))
    for name in ("a", "b"):
        feed(stopping, name, 0.5, 0.4)
    feed(stopping, "c", 0.5)
    assert not feed(stopping, "bad", 0.45, 0.45)  # two came as far
    feed(stopping, "d", 0.5, 0.4)
    assert feed(stopping, "worse", 0.9)


def test_a_value_that_is_told_twice_counts_once_in_the_mean() -> None:
    stopping = EarlyStopping(MedianRule(min_epochs=1, min_trials=1))
    feed(stopping, "a", 0.2, 0.4)
    stopping.stops("a", 2, 0.4)
    assert not feed(stopping, "c", 0.21, 0.29)  # the mean of a is 0.3, not 0.333
    assert not feed(stopping, "d", 0.21, 0.31)
    assert feed(stopping, "e", 0.31)


# --- of a spec


ASHA = {"type": "hyperband", "min_iter": 1, "eta": 3}
MEDIAN = {"type": "median", "min_iter": 2, "min_trials": 2}
EITHER = pytest.mark.parametrize("block", [ASHA, MEDIAN], ids=lambda block: block["type"])


@EITHER
@pytest.mark.parametrize(("goal", "sign"), [("minimize", 1.0), ("maximize", -1.0)])
def test_the_worse_trials_of_the_metrics_goal_are_stopped(block: dict[str, Any], goal: str, sign: float) -> None:
    trainer = {**TINY_TRAINER, "epochs": 6}
    metric = {"name": "eval/pred_skill", "goal": goal}
    stopping = early_stopping(tiny_spec(early_terminate=block, trainer=trainer, metric=metric))
    assert stopping is not None
    values = {"best": 0.1, "good": 0.2, "bad": 0.9}
    stops = dict.fromkeys(values, False)
    for epochs in range(1, 5):
        for trial, value in values.items():
            stops[trial] |= stopping.stops(trial, epochs, sign * value)
    assert (stops["best"], stops["bad"]) == (False, True)


@EITHER
def test_a_first_decision_at_a_trials_end_is_none(block: dict[str, Any]) -> None:
    assert early_stopping(tiny_spec(early_terminate={**block, "min_iter": TINY_TRAINER["epochs"]})) is None
    assert early_stopping(tiny_spec()) is None


def test_of_searched_epochs_the_longest_trial_counts() -> None:
    spec = tiny_spec(parameters={"epochs": {"values": [3, 9, 5]}, "alpha": {"min": 0.1, "max": 0.9}})
    assert max_epochs(spec) == 9
