"""sweep/grammar.py: W&B's grammar of `parameters`."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.grammar import flatten, nest, parse_entry
from sweep.quantiles import QUANTILE_EDGE

KINDS = [
    *("int_uniform", "uniform", "log_uniform", "q_uniform", "q_log_uniform_values"),
    *("normal", "q_log_normal", "beta", "q_beta", "x"),
]
OWN_KEYS = {"normal": ("mu", "sigma"), "q_log_normal": ("mu", "sigma"), "beta": ("a", "b"), "q_beta": ("a", "b")}


@pytest.mark.parametrize(
    ("entry", "distribution"),
    [
        ({"min": 1, "max": 5}, IntDistribution(1, 5)),
        ({"min": 1, "max": 5.0}, FloatDistribution(1, 5)),
        ({"distribution": "uniform", "min": 1, "max": 5}, FloatDistribution(1, 5)),
        ({"distribution": "int_uniform", "min": 1.0, "max": 5}, IntDistribution(1, 5)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1}, FloatDistribution(1e-4, 1, log=True)),
        ({"distribution": "inv_log_uniform_values", "min": 1e-4, "max": 1}, FloatDistribution(1e-4, 1, log=True)),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, FloatDistribution(math.exp(-2), 1, log=True)),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 2}, FloatDistribution(math.exp(-2), 1, log=True)),
        ({"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05}, FloatDistribution(0.5, 0.9, step=0.05)),
        ({"distribution": "q_uniform", "min": 0.52, "max": 0.93, "q": 0.1}, FloatDistribution(0.6, 0.9, step=0.1)),
        ({"distribution": "q_uniform", "min": 1, "max": 9, "q": 2}, IntDistribution(2, 8, step=2)),
        ({"distribution": "q_uniform", "min": 1.5, "max": 4.5}, IntDistribution(2, 4)),  # q is 1, as in W&B
        ({"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8}, IntDistribution(1, 8, log=True)),
        ({"distribution": "normal"}, FloatDistribution(QUANTILE_EDGE, 1 - QUANTILE_EDGE)),
        ({"distribution": "q_beta", "a": 2, "b": 5, "q": 0.1}, FloatDistribution(QUANTILE_EDGE, 1 - QUANTILE_EDGE)),
        ({"values": [1, "a", None]}, CategoricalDistribution([1, "a", None])),
        ({"values": [[1, 2], {"a": 1}]}, CategoricalDistribution(["[1, 2]", '{"a": 1}'])),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, FloatDistribution(0, 1)),
    ],
)
def test_each_distribution_of_wandb_becomes_the_one_of_optuna(entry, distribution):
    assert parse_entry(entry).distribution == distribution


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0.5, r"0.5; must be a mapping, for example {value: 0.5}"),
        ([1, 2], r"must be a mapping, for example {values: \[1, 2\]}"),
        ({}, "says no range; give value, values, or min and max"),
        ({"min": 1}, "says no range"),
        ({"frame_stride": {"values": [1]}}, "names within names go under parameters"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "unknown distribution 'unifrom'; did you mean 'uniform'"),
        ({"distribution": "uniform", "min": 0.1}, "uniform needs max"),
        ({"distribution": "constant"}, "constant needs value"),
        ({"min": 0.1, "max": 0.9, "q": 0.1}, "'q' has no meaning for uniform .*; it belongs to q_uniform"),
        ({"values": [1], "maximum": 2}, "'maximum' has no meaning for categorical"),
        ({"distribution": "normal", "mus": 2}, "did you mean 'mu'"),
        ({"min": "0.1", "max": 0.9}, "min = '0.1'; must be a number"),
        ({"min": False, "max": True}, "min = False; must be a number"),
        ({"min": 0.0, "max": math.inf}, "max = inf; must be a number"),
        ({"min": 0.9, "max": 0.1}, "min = 0.9 is not below max = 0.1; swap them"),
        ({"min": 1, "max": 1}, "write value for a fixed one"),
        ({"distribution": "int_uniform", "min": 1.5, "max": 3}, "min = 1.5; must be a whole number"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "above 0. .*exponents of e belong to log_uniform"),
        ({"distribution": "q_log_uniform_values", "min": -1, "max": 1}, "exponents of e belong to q_log_uniform"),
        ({"distribution": "log_uniform", "min": 0, "max": 8000}, "to give the values themselves, write log_uniform_v"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "q = 0; must be > 0"),
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.9, "q": 1}, "no multiple of q = 1 lies from 0.1 to 0.9"),
        ({"distribution": "normal", "sigma": 0}, "sigma = 0; must be > 0"),
        ({"distribution": "log_normal", "mu": 900}, "values too large"),
        ({"distribution": "beta", "a": 0}, "a = 0; must be from 0.1 to 10000"),
        ({"distribution": "beta", "b": math.nan}, "b = nan; must be a number"),
        ({"distribution": "beta", "min": 0, "max": 1}, r"'min' has no meaning for beta \(a, b\)"),
        ({"distribution": "q_beta", "q": 1e-300}, "q = 1e-300 cuts 0-1 into more than 2.53 steps"),
        ({"values": []}, "values is empty"),
        ({"values": 3}, "values = 3; must be a list"),
        ({"values": [1, 2, 1]}, "values has 1 twice"),
        ({"values": [1, 2], "probabilities": [1]}, "probabilities has 1 numbers for 2 values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "sum to 1.1; must be >= 0 and sum to 1"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, "must be >= 0"),
        ({"values": [1, 2], "probabilities": [0.5, "x"]}, "probabilities = 'x'; must be a number"),
    ],
)
def test_an_impossible_entry_says_what_is_wrong_and_what_to_write(entry, message):
    with pytest.raises(ValueError, match=message):
        parse_entry(entry)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
yaml_keys = st.sampled_from(
    ["distribution", "value", "values", "probabilities", "min", "max", "q", "mu", "sigma", "a", 3]
)


@settings(deadline=None)
@given(st.dictionaries(yaml_keys, yaml_values | st.sampled_from(KINDS), max_size=4) | yaml_values)
def test_whatever_yaml_holds_is_a_parameter_or_a_value_error(entry):
    try:
        parameter = parse_entry(entry)
    except ValueError:
        return
    if parameter is not None:
        assert parameter.contains(parameter.value_at(0))
        assert not parameter.contains(object())


# a q of 17 digits: Optuna warns that the range is not its multiple to the last digit, and we round anyway
@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(KINDS), st.tuples(*[st.floats() | st.integers() | st.floats(-9, 9)] * 2).map(sorted), st.floats(0)
)
def test_whatever_numbers_a_range_has_it_holds_its_own_probes_or_is_a_value_error(kind, numbers, q):
    entry = {"distribution": kind, **dict(zip(OWN_KEYS.get(kind, ("min", "max")), numbers, strict=True))}
    try:
        parameter = parse_entry(entry | {"q": q} if kind.startswith("q_") else entry)
    except ValueError:
        return
    assert all(parameter.contains(value) for value in parameter.probes())
    assert parameter.distribution is not None


def test_nested_parameters_become_dotted_names():
    nested = {"data": {"parameters": {"synthetic": {"parameters": {"frames": {"value": 8}}}, "hflip": {"values": [0]}}}}
    flat = {"data.synthetic.frames": {"value": 8}, "data.hflip": {"values": [0]}}
    assert flatten(nested) == flat
    assert nest(flat) == nested


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "must be a mapping of names to ranges"),
        (3, "must be a mapping of names to ranges"),
        ({"data": {"parameters": None}}, "must be a mapping of names to ranges"),
        ({"data": {"parameters": {"hflip": {"value": 0}}, "value": 1}}, "data: parameters must stand alone"),
        ({"data": {"parameters": {"hflip": {}}}, "data.hflip": {}}, "'data.hflip' is given twice"),
    ],
)
def test_parameters_that_cannot_be_flattened_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        flatten(entries)
