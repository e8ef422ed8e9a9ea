"""sweep/spec_checks.py: a space that cannot be trained somewhere is refused when the spec is made."""

import pytest

from sweep.spec_checks import MAX_CORNERS, MAX_GRID
from tests.specs import fails, make


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        (
            {"mask_ratio": {"min": 0.5, "max": 0.999}},  # 48 px in patches of 8: 36 patches
            ["parameters.mask_ratio: the value 0.999 cannot be trained", "must be between 0.0278 and 0.972"],
        ),
        (
            {"alpha": {"min": 0.5, "max": 1.5}},
            ["parameters.alpha: the value 1.5", "keep alpha within 0-1 or give beta"],
        ),
        ({"epochs": {"min": 2.0, "max": 6}}, ["parameters.epochs: the value 4.47", "must be a valid integer"]),
        ({"encoder.heads": {"min": 1, "max": 8}}, ["parameters.encoder.heads: the value 3", "not a multiple of heads"]),
        (
            {"weight_decay": {"distribution": "normal", "mu": 0.05, "sigma": 0.02}},
            ["parameters.weight_decay: the value -0.01", "must be greater than or equal to 0"],
        ),
        ({"precision": {"values": ["fp32", "fp8"]}}, ["parameters.precision: the value 'fp8'"]),
        ({"warmup_epochs": {"value": 9}}, ["warmup_epochs = 9.0 is longer than epochs = 8"]),
    ],
)
def test_a_value_anywhere_in_the_space_that_training_refuses_is_an_error_at_load(tmp_path, entries, parts):
    message = fails(tmp_path, parameters=entries)
    for part in parts:
        assert part in message


def test_a_preset_that_training_refuses_is_an_error_at_load(tmp_path):
    parameters = {"warmup_epochs": {"min": 0.0, "max": 4.0}, "epochs": {"values": [2, 4]}}
    message = fails(tmp_path, parameters=parameters, search={"presets": [{"warmup_epochs": 3.0, "epochs": 2}]})
    assert "search.presets.0: {'epochs': 2, 'warmup_epochs': 3.0} cannot be trained: warmup_epochs = 3.0" in message


def test_alpha_above_one_is_fine_where_beta_is_given():
    wide = {"alpha": {"min": 0.5, "max": 2.0}}
    assert make(parameters=wide, trainer={"beta": 0.5}).parameters == wide
    assert make(parameters=wide | {"beta": {"min": 0.5, "max": 2.0}}).num_trials == 16


def test_weights_that_are_both_zero_in_one_point_of_a_continuous_space_are_fine():
    unit = {"min": 0.0, "max": 1.0}
    assert make(parameters={"alpha": unit, "beta": unit}, search={"presets": []}).presets == ()
    steps = {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5}  # here both zero is one trial in nine
    with pytest.raises(ValueError, match=r"combination {'alpha': 0\.0, 'beta': 0\.0} cannot be trained: alpha = 0 and"):
        make(parameters={"alpha": steps, "beta": steps}, search={"presets": []})


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_values_that_train_one_at_a_time_but_not_together_are_refused(method):
    # each value alone goes with the usual ones; 3 heads go with width 96 only
    parameters = {"encoder.width": {"values": [96, 128]}, "encoder.heads": {"values": [3, 4]}}
    trainer = {"encoder": {"width": 96}}
    with pytest.raises(ValueError, match=r"combination {'encoder.width': 128, 'encoder.heads': 3} cannot be trained"):
        make(method=method, parameters=parameters, trainer=trainer)


def test_ends_of_continuous_ranges_that_do_not_go_together_are_refused(tmp_path):
    # the trainer's own values, 1 and 8 epochs, go with either end of the other parameter
    parameters = {"warmup_epochs": {"min": 0.5, "max": 3.0}, "epochs": {"min": 2, "max": 8}}
    message = fails(tmp_path, parameters=parameters)
    assert message.startswith(
        f"{tmp_path / 's.yaml'}: parameters: the combination {{'epochs': 2, 'warmup_epochs': 3.0}} cannot be trained: "
        "warmup_epochs = 3.0 is longer than epochs = 2"
    )


def test_combinations_beyond_the_limit_are_left_to_their_trials():
    # 2 x 2 ends fail (see above); 5 more parameters make it 128 combinations
    parameters = {"warmup_epochs": {"min": 0.5, "max": 3.0}, "epochs": {"min": 2, "max": 8}}
    others = ["alpha", "mask_ratio", "weight_decay", "data.hflip", "data.vflip"]
    more = parameters | {name: {"min": 0.2, "max": 0.8} for name in others}
    assert 2 ** len(more) > MAX_CORNERS
    assert list(make(parameters=more).space.parameters) == list(more)
    with pytest.raises(ValueError, match="the combination"):
        make(parameters=dict(list(more.items())[:6]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": {"values": [0.1, 0.5], "probabilities": [0.5, 0.5]}}, "leave probabilities out"),
        ({"seed": {"min": 0, "max": 2**31 - 1}}, f"2147483648 combinations; must be at most {MAX_GRID}"),
    ],
)
def test_a_grid_of_weights_or_of_too_many_points_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        make(method="grid", parameters=parameters)
