"""sweep/space.py: suggestions, presets and grids -> values -> TrainConfig."""

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.grammar import parse_entry
from sweep.space import Space
from tests.specs import is_multiple

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


def suggestions(space, count, seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [study.ask(space.distributions).params for _ in range(count)]


def same(value, other):
    return value == (pytest.approx(other, rel=1e-10) if isinstance(other, float) else other)


def test_a_constant_is_not_searched():
    space = Space({"alpha": {"value": 0.5}, "epochs": {"distribution": "constant", "value": 4}})
    assert space.distributions == {}
    assert space.constants == {"alpha": 0.5, "epochs": 4}
    assert space.grid() == [{}]


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


def conditional() -> Space:
    entries = {
        "mode": {"values": ["joint", "dynamic"]},
        "weighting": {"values": ["fixed", "famo"]},
        "ema_decay": {"values": [0.9, 0.99]},
    }
    return Space(entries, {"weighting": {"mode": "joint"}, "ema_decay": {"weighting": ["famo"]}})


def test_a_parameter_whose_condition_does_not_hold_is_drawn_and_dropped() -> None:
    space = conditional()
    drawn = {"mode": "joint", "weighting": "famo", "ema_decay": 0.9}
    assert space.to_values(drawn) == drawn
    assert space.to_values(drawn | {"weighting": "fixed"}) == {"mode": "joint", "weighting": "fixed"}
    assert space.to_values(drawn | {"mode": "dynamic"}) == {"mode": "dynamic"}  # nor what depends on what is dropped
    assert set(space.distributions) == set(drawn)


def test_a_grid_with_conditions_has_each_trial_once() -> None:
    assert conditional().grid() == [
        {"mode": "joint", "weighting": "fixed"},
        {"mode": "joint", "weighting": "famo", "ema_decay": 0.9},
        {"mode": "joint", "weighting": "famo", "ema_decay": 0.99},
        {"mode": "dynamic"},
    ]


def test_a_value_at_an_end_of_a_continuous_range_is_noticed() -> None:
    entries = {
        "alpha": {"min": 0.1, "max": 0.9},
        "base_lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1e-1},
        "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
    }
    space = Space(entries)
    assert space.at_ends({"alpha": 0.5, "base_lr": 0.0999, "mask_ratio": 0.9}) == ["base_lr"]
    assert space.at_ends({"alpha": 0.1, "base_lr": 0.0015, "mask_ratio": 0.6}) == ["alpha"]
