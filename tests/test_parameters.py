"""sweep/parameters.py: values of one parameter there and back, and the few that stand for all."""

from decimal import Decimal

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sweep.grammar import parse_entry
from sweep.parameters import MAX_PROBES, Steps, WeightedChoice
from tests.specs import is_multiple


@given(st.integers(1, 1000), st.integers(0, 3), st.integers(-500, 500), st.integers(1, 300))
def test_quantised_values_are_round_multiples_within_the_range(digits, places, first, count):
    q = float(Decimal(digits).scaleb(-places))
    low, high = q * first, q * (first + count + 0.5)  # with float drift, off the grid above
    assume(low < high)
    parameter = parse_entry({"distribution": "q_uniform", "min": low, "max": high, "q": q})
    for value in parameter.probes():
        assert low <= value <= high
        assert is_multiple(value, q)
        assert parameter.to_value(parameter.from_value(value)) == value


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_weighted_values_have_their_probabilities_and_never_one_without(weights):
    probabilities = [weight / sum(weights) for weight in weights]
    parameter = WeightedChoice(tuple(range(len(weights))), tuple(probabilities))
    count = 600  # divisible by most sums of weights; quantiles in the middle of 600 equal cells
    drawn = [parameter.to_value((i + 0.5) / count) for i in range(count)]
    for value, probability in enumerate(probabilities):
        assert abs(drawn.count(value) - count * probability) <= 1
        assert parameter.contains(value) == (probability > 0)
    assert probabilities[parameter.to_value(0.0)] > 0
    assert probabilities[parameter.to_value(1.0)] > 0


def test_a_weighted_value_comes_back_where_sums_of_probabilities_are_rounded():
    parameter = WeightedChoice(tuple("abcd"), (0.1, 0.2, 0.3, 0.4))
    assert [parameter.to_value(parameter.from_value(value)) for value in "abcd"] == [*"abcd"]


@pytest.mark.parametrize(
    ("entry", "middle"),
    [
        ({"min": 0.0, "max": 1.0}, 0.5),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, 1e-2),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 10_000, "q": 1}, 100),
        ({"distribution": "normal", "mu": 3.0, "sigma": 2.0}, 3.0),
        ({"distribution": "log_normal", "mu": 0.0, "sigma": 1.0}, 1.0),
    ],
    ids=lambda entry: entry.get("distribution", "uniform") if isinstance(entry, dict) else "",
)
def test_half_of_what_is_drawn_is_below_the_middle_of_the_scale(entry, middle):
    parameter = parse_entry(entry)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [parameter.to_value(study.ask({"x": parameter.distribution}).params["x"]) for _ in range(300)]
    assert 0.4 < sum(value < middle for value in drawn) / len(drawn) < 0.6


def test_a_value_without_probability_is_outside():
    with pytest.raises(ValueError, match="has probability 0"):
        WeightedChoice((0.1, 0.5), (1, 0)).from_value(0.5)


def test_a_long_range_is_probed_in_few_places():
    parameter = Steps(1, 0, 2**31 - 1)
    assert len(parameter.probes()) <= MAX_PROBES
    assert {0, 2**31 - 1} <= set(parameter.probes())
