"""sweep/space.py: W&B's grammar, Optuna's distributions, and values there and back."""

import math
from decimal import Decimal

import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.space import MAX_PROBES, QUANTILE_EDGE, Space, flatten, parse_entry

optuna.logging.set_verbosity(optuna.logging.WARNING)

BETAS = [[0.9, 0.95], [0.9, 0.99]]
EVERY_KIND = {
    "alpha": {"min": 0.1, "max": 0.9},
    "base_lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 4e-3},
    "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
    "batch_size": {"distribution": "q_log_uniform_values", "min": 8, "max": 64, "q": 8},
    "accum_iter": {"min": 1, "max": 4},
    "data.frame_stride": {"values": [1, 2, 4]},
    "data.hflip": {"values": [0.0, 0.5], "probabilities": [0.25, 0.75]},
    "betas": {"values": BETAS},
    "clip_grad": {"values": [None, 1.0]},
    "weight_decay": {"distribution": "log_normal", "mu": -3.0, "sigma": 0.5},
    "min_lr": {"distribution": "inv_log_uniform", "min": 12.7, "max": 13.8},
    "decoder.depth": {"distribution": "q_normal", "mu": 3, "sigma": 0.5},
    "epochs": {"value": 4},
}

KINDS = ["int_uniform", "uniform", "log_uniform", "q_uniform", "q_log_uniform_values", "q_log_normal", "normal", "x"]


def suggestions(space, count, seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [study.ask(space.distributions).params for _ in range(count)]


def same(value, other):
    return value == (pytest.approx(other, rel=1e-10) if isinstance(other, float) else other)


def is_multiple(value, q):
    return Decimal(repr(value)) % Decimal(repr(q)) == 0


# --- what Optuna gets ------------------------------------------------------------------------------------------------


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
        ({"values": [1, "a", None]}, CategoricalDistribution([1, "a", None])),
        ({"values": [[1, 2], {"a": 1}]}, CategoricalDistribution(["[1, 2]", '{"a": 1}'])),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, FloatDistribution(0, 1)),
    ],
)
def test_each_distribution_of_wandb_becomes_the_one_of_optuna(entry, distribution):
    assert Space({"p": entry}).distributions == {"p": distribution}


def test_a_constant_is_not_searched():
    space = Space({"alpha": {"value": 0.5}, "epochs": {"distribution": "constant", "value": 4}})
    assert space.distributions == {}
    assert space.constants == {"alpha": 0.5, "epochs": 4}
    assert space.grid() == [{}]


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
yaml_keys = st.sampled_from(["distribution", "value", "values", "probabilities", "min", "max", "q", "mu", "sigma", 3])


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
    keys = ("mu", "sigma") if "normal" in kind else ("min", "max")
    entry = {"distribution": kind, **dict(zip(keys, numbers, strict=True))}
    try:
        parameter = parse_entry(entry | {"q": q} if kind.startswith("q_") else entry)
    except ValueError:
        return
    assert all(parameter.contains(value) for value in parameter.probes())
    assert parameter.distribution is not None


def test_nested_parameters_become_dotted_names():
    nested = {"data": {"parameters": {"synthetic": {"parameters": {"frames": {"value": 8}}}, "hflip": {"values": [0]}}}}
    assert flatten(nested) == {"data.synthetic.frames": {"value": 8}, "data.hflip": {"values": [0]}}


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


# --- values ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_suggestion_lies_in_its_range_and_trains(seed):
    space, base = Space(EVERY_KIND), TrainConfig()
    for params in suggestions(space, 5, seed):
        values = space.to_values(params)
        assert values.keys() == params.keys() == EVERY_KIND.keys() - {"epochs"}
        assert all(space.parameters[name].contains(value) for name, value in values.items())
        assert 0.1 <= values["alpha"] <= 0.9
        assert is_multiple(values["mask_ratio"], 0.05)
        assert values["batch_size"] in range(8, 65, 8)
        assert values["betas"] in BETAS
        assert values["data.hflip"] in (0.0, 0.5)
        assert math.exp(-13.8) <= values["min_lr"] <= math.exp(-12.7)
        config = space.to_config(base, values)
        assert config.epochs == 4
        assert config.data.frame_stride == values["data.frame_stride"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_values_go_to_optuna_and_back(seed):
    space = Space(EVERY_KIND)
    quantiles = {"data.hflip", "weight_decay", "decoder.depth"}
    for params in suggestions(space, 5, seed):
        values = space.to_values(params)
        again = space.from_values(values)
        assert all(same(value, values[name]) for name, value in space.to_values(again).items())
        assert all(same(again[name], params[name]) for name in params.keys() - quantiles)
        study = optuna.create_study()
        study.enqueue_trial(again)
        assert study.ask(space.distributions).params == again  # Optuna takes them as they are


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


@given(st.floats(QUANTILE_EDGE, 1 - QUANTILE_EDGE), st.floats(-10, 10), st.floats(0.01, 10), st.booleans())
def test_normal_quantiles_come_back(quantile, mu, sigma, log):
    parameter = parse_entry({"distribution": "log_normal" if log else "normal", "mu": mu, "sigma": sigma})
    assert parameter.from_value(parameter.to_value(quantile)) == pytest.approx(quantile, abs=1e-6)


@given(
    st.floats(QUANTILE_EDGE, 1 - QUANTILE_EDGE),
    st.floats(-10, 10),
    st.floats(0.1, 3),
    st.sampled_from([1, 0.5, 0.05, 3]),
    st.booleans(),
)
def test_quantised_normals_come_back_exactly(quantile, mu, sigma, q, log):
    kind = "q_log_normal" if log else "q_normal"
    parameter = parse_entry({"distribution": kind, "mu": mu, "sigma": sigma, "q": q})
    value = parameter.to_value(quantile)
    assert is_multiple(value, q)
    assert parameter.to_value(parameter.from_value(value)) == value


def test_a_normal_has_its_median_at_mu_and_a_preset_comes_out_as_written():
    parameter = parse_entry({"distribution": "normal", "mu": 0.05, "sigma": 0.01})
    assert parameter.to_value(0.5) == 0.05
    for value in (0.03, 0.041, 0.0725):
        assert parameter.to_value(parameter.from_value(value)) == value


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_weighted_values_have_their_probabilities_and_never_one_without(weights):
    probabilities = [weight / sum(weights) for weight in weights]
    parameter = parse_entry({"values": list(range(len(weights))), "probabilities": probabilities})
    count = 600  # divisible by most sums of weights; quantiles in the middle of 600 equal cells
    drawn = [parameter.to_value((i + 0.5) / count) for i in range(count)]
    for value, probability in enumerate(probabilities):
        assert abs(drawn.count(value) - count * probability) <= 1
        assert parameter.contains(value) == (probability > 0)
    assert probabilities[parameter.to_value(0.0)] > 0
    assert probabilities[parameter.to_value(1.0)] > 0


def test_lists_and_mappings_are_values_like_others():
    space = Space({"betas": {"values": BETAS}, "encoder": {"values": [{"width": 64}, {"width": 128, "depth": 2}]}})
    params = space.from_values({"betas": (0.9, 0.99), "encoder": {"width": 64}})
    assert all(isinstance(stored, str) for stored in params.values())
    config = space.to_config(TrainConfig(), space.to_values(params))
    assert config.betas == (0.9, 0.99)
    assert (config.encoder.width, config.encoder.depth) == (64, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.95}, "alpha = 0.95; must be a number from 0.1 to 0.9"),
        ({"alpha": "much"}, "alpha = 'much'; must be a number"),
        ({"mask_ratio": 0.52}, "mask_ratio = 0.52; must be a multiple of 0.05 from 0.5 to 0.9"),
        ({"accum_iter": 1.5}, "accum_iter = 1.5; must be a whole number from 1 to 4"),
        ({"data.frame_stride": 3}, "data.frame_stride = 3; must be one of 1, 2, 4"),
        ({"weight_decay": 9.0}, "weight_decay = 9.0; must be a number from .* 3.09 sigma"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0; must be a number"),
        ({"alfa": 0.5}, "'alfa' is not searched; did you mean 'alpha'"),
        ({"epochs": 4}, "'epochs' is not searched; it is a constant"),
    ],
)
def test_a_value_outside_the_space_says_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        Space(EVERY_KIND).from_values(values)


def test_a_value_without_probability_is_outside():
    with pytest.raises(ValueError, match=r"alpha = 0\.5; has probability 0"):
        Space({"alpha": {"values": [0.1, 0.5], "probabilities": [1, 0]}}).from_values({"alpha": 0.5})


# --- grid, presets, configs ------------------------------------------------------------------------------------------


def test_the_grid_holds_every_combination_and_the_last_parameter_changes_fastest():
    space = Space(
        {
            "epochs": {"min": 1, "max": 2},
            "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.7, "q": 0.1},
            "alpha": {"value": 0.5},
        }
    )
    assert space.grid_size == 6
    assert space.grid() == [{"epochs": e, "mask_ratio": m} for e in (1, 2) for m in (0.5, 0.6, 0.7)]


def test_a_continuous_parameter_has_no_grid():
    space = Space({"alpha": {"min": 0.1, "max": 0.9}})
    assert space.grid_size is None
    with pytest.raises(ValueError, match="alpha is continuous: it has no grid; give values, or a q_ distribution"):
        space.grid()


@pytest.mark.parametrize("entry", EVERY_KIND.values())
def test_probes_are_values_of_the_space_and_hold_both_ends(entry):
    parameter = parse_entry(entry)
    if parameter is not None:
        assert all(parameter.contains(value) for value in parameter.probes())
        count = 3 if parameter.count is None else parameter.count
        assert parameter.value_at(0) in parameter.probes()
        assert parameter.value_at(count - 1) in parameter.probes()


def test_a_long_range_is_probed_in_few_places():
    parameter = parse_entry({"min": 0, "max": 2**31 - 1})
    assert len(parameter.probes()) <= MAX_PROBES
    assert {0, 2**31 - 1} <= set(parameter.probes())


def test_fill_preset_takes_the_rest_from_the_shared_config_where_the_space_has_it():
    space = Space(EVERY_KIND)
    base = TrainConfig(base_lr=1e-2, mask_ratio=0.72, weight_decay=0.05, min_lr=2e-6, decoder={"depth": 3})
    assert space.fill_preset({"alpha": 0.75}, base) == {
        "alpha": 0.75,  # base_lr is out of its range, mask_ratio off its grid: left to the sampler
        "batch_size": 32,
        "accum_iter": 1,
        "data.frame_stride": 1,
        "data.hflip": 0.5,
        "betas": [0.9, 0.95],
        "clip_grad": 1.0,
        "weight_decay": 0.05,
        "min_lr": 2e-6,
        "decoder.depth": 3,
    }


def test_equal_bases_and_values_give_equal_configs_and_the_base_stays_as_it_was():
    space, base = Space(EVERY_KIND), TrainConfig(seed=3)
    values = space.fill_preset({"alpha": 0.75, "data.hflip": 0.0}, base)
    config = space.to_config(base, values)
    assert config == space.to_config(TrainConfig(seed=3), values)
    assert (config.alpha, config.data.hflip, config.epochs, config.seed) == (0.75, 0.0, 4, 3)
    assert base == TrainConfig(seed=3)


def test_a_config_that_training_refuses_says_where_it_comes_from():
    with pytest.raises(ConfigError, match=r"trial 7: mask_ratio = 0\.999 of 36 patches leaves no visible patch"):
        Space({}).to_config(TrainConfig(), {"mask_ratio": 0.999}, where="trial 7")
