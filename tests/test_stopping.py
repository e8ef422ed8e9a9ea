"""When a search is over: target, time, cost, plateau."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sweep.blocks import MetricSettings, Plateau, Stop
from sweep.outcome import Outcome
from sweep.stopping import StopRules

MINIMIZE = MetricSettings()
MAXIMIZE = MetricSettings(name="eval/pred_skill", goal="maximize")


def rules(metric: MetricSettings = MINIMIZE, gpus: float = 0.0, **stop: object) -> StopRules:
    return StopRules(Stop.model_validate(stop), [metric], gpus)


def test_without_rules_nothing_ends_a_search() -> None:
    unbounded = rules()
    for value in (1.0, 2.0, 2.0):
        unbounded.ended(Outcome.COMPLETE, [value], 1e9)
    assert unbounded.reason(1e9) is None


def test_a_plateau_is_so_many_trials_in_a_row_without_a_better_best() -> None:
    plateau = rules(plateau=Plateau(trials=3))
    for outcome, value in (
        (Outcome.COMPLETE, 1.0),
        (Outcome.COMPLETE, 1.5),
        (Outcome.PRUNED, 0.1),  # not comparable: no new best
        (Outcome.COMPLETE, 0.9),  # a better best
        (Outcome.DIVERGED, 0.2),
        (Outcome.PRUNED, 3.0),
        (Outcome.FAILED, 3.0),  # tells nothing
    ):
        plateau.ended(outcome, [value], 0.0)
        assert plateau.reason(0.0) is None
    plateau.ended(Outcome.COMPLETE, [0.9], 0.0)
    assert plateau.reason(0.0) == (
        "search.stop.plateau: none of the last 3 trials was better than the best by more than 0"
    )


def test_a_gain_up_to_min_delta_is_no_gain() -> None:
    plateau = rules(plateau=Plateau(trials=2, min_delta=0.1))
    for value in (1.0, 0.95, 0.92):
        plateau.ended(Outcome.COMPLETE, [value], 0.0)
    assert plateau.reason(0.0) is not None


def test_a_metric_that_is_maximised_gets_better_when_it_grows() -> None:
    plateau = rules(MAXIMIZE, plateau=Plateau(trials=2))
    for value in (0.1, 0.2, 0.3):
        plateau.ended(Outcome.COMPLETE, [value], 0.0)
    assert plateau.reason(0.0) is None
    target = rules(MAXIMIZE.model_copy(update={"target": 0.3}))
    target.ended(Outcome.PRUNED, [0.9], 0.0)
    assert target.reason(0.0) is None
    target.ended(Outcome.COMPLETE, [0.31], 0.0)
    assert target.reason(0.0) == "eval/pred_skill 0.31 reached its target 0.3"


def test_time_is_the_search_s_and_cost_the_trials() -> None:
    timed = rules(time_budget_s=60)
    timed.ended(Outcome.COMPLETE, [1.0], 1e6)
    assert timed.reason(59.9) is None
    assert timed.reason(60.0) == "search.stop.time_budget_s: 60 s are over"


@given(
    st.lists(st.floats(0, 7200), max_size=20),
    st.sampled_from([0.25, 1.0, 8.0]),
    st.sampled_from([*Outcome][1:]),
)
def test_accelerator_hours_are_gpus_times_time_however_trials_ended(
    seconds: list[float], gpus: float, outcome: Outcome
) -> None:
    cost = rules(gpus=gpus, accelerator_hours=4.0)
    for each in seconds:
        cost.ended(outcome, [1.0], each)
    used = sum(gpus * each for each in seconds) / 3600
    if abs(used - 4.0) > 1e-9:
        assert (cost.reason(0.0) is not None) == (used > 4.0)
