"""sweep/spec.py: YAML -> SweepSpec; errors, warnings, defaults, and the W&B sweep config in it."""

import copy
import pickle

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.spec import DEFAULT_TRIALS, MAX_GRID, SweepSpec, load_spec

FULL = """
description: which weights, which learning rate
entity: lab
parameters:
  alpha:      {min: 0.1, max: 0.9}
  base_lr:    {distribution: log_uniform_values, min: 1.0e-4, max: 4.0e-3}
  mask_ratio: {distribution: q_uniform, min: 0.5, max: 0.9, q: 0.05}
  data: {parameters: {frame_stride: {values: [1, 2]}}}
early_terminate: {type: hyperband, min_iter: 2, eta: 3}
run_cap: 16
trainer:    {epochs: 9, clip_grad: null, data: {hflip: 0.0}}
objective:  {loss: reference, settle_epochs: 2}
search:     {seed: 1, startup_trials: 4}
resources:  {cpu: 0.5, max_concurrent: 2}
wandb:      {mode: offline}
"""
ALPHA = {"alpha": {"min": 0.1, "max": 0.9}}


def load(tmp_path, text, *overrides, name="alpha_beta.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_spec(path, overrides)


def make(**content):
    return SweepSpec.model_validate({"name": "s", "parameters": ALPHA, "run_cap": 16} | content)


def fails(tmp_path, **content):
    """The message that a spec file of this content is refused with."""
    content = {"parameters": ALPHA} | content
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, yaml.safe_dump(content), name="s.yaml")
    return str(caught.value)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_full_spec_loads_and_nested_parameters_get_dotted_names(tmp_path):
    spec = load(tmp_path, FULL)
    assert spec.name == "alpha_beta"  # the file's stem
    assert list(spec.parameters) == ["alpha", "base_lr", "mask_ratio", "data.frame_stride"]
    assert list(spec.space.distributions) == list(spec.parameters)
    assert spec.trainer == TrainConfig(epochs=9, clip_grad=None, data={"hflip": 0.0})
    assert spec.presets == ({"alpha": 0.5}, {"alpha": 0.75})
    assert spec.num_trials == 16
    assert spec.warnings() == []


def test_a_plain_wandb_sweep_file_runs_unchanged(tmp_path):
    text = """
program: train.py
command: ["${env}", python, "${program}", "${args}"]
method: random
metric: {name: eval/pred_skill, goal: maximize, target: 0.9}
controller: {type: local}
parameters:
  base_lr: {distribution: log_uniform, min: -9.2, max: -5.5}
  batch_size: {values: [16, 32], probabilities: [0.5, 0.5]}
  epochs: {value: 3}
"""
    spec = load(tmp_path, text)
    assert spec.search.sampler == "random"
    assert spec.presets == ()  # alpha is not searched
    assert spec.space.constants == {"epochs": 3}
    assert spec.wandb_sweep_config() == yaml.safe_load(text) | {"name": "alpha_beta", "project": "tactile-sweep"}


def test_overrides_change_the_spec_and_a_given_name_wins_over_the_files(tmp_path):
    spec = load(tmp_path, FULL, "name=other", "run_cap=3", "parameters.alpha.max=0.8", "trainer.epochs=12")
    assert (spec.name, spec.run_cap, spec.trainer.epochs) == ("other", 3, 12)
    assert spec.parameters["alpha"] == {"min": 0.1, "max": 0.8}


def test_a_block_whose_lines_are_all_commented_out_is_absent(tmp_path):
    spec = load(tmp_path, "parameters: {alpha: {min: 0.1, max: 0.9}}\nname:\ntrainer:\n  # epochs: 3\nsearch:\n")
    assert spec.trainer == TrainConfig()
    assert spec.name == "alpha_beta"


def test_a_spec_is_frozen_and_travels_between_processes():
    spec = make()
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(ValueError, match="frozen"):
        spec.run_cap = 3


@pytest.mark.parametrize(
    ("method", "sampler", "expected"),
    [("bayes", None, "tpe"), ("random", None, "random"), ("bayes", "random", "random")],
)
def test_the_method_decides_the_sampler_unless_it_is_given(method, sampler, expected):
    assert make(method=method, search={"sampler": sampler}).search.sampler == expected


@pytest.mark.parametrize(
    ("parameters", "presets"),
    [
        (ALPHA, ({"alpha": 0.5}, {"alpha": 0.75})),
        (ALPHA | {"beta": {"min": 0.2, "max": 0.9}}, ({"alpha": 0.5, "beta": 0.5}, {"alpha": 0.75, "beta": 0.25})),
        (ALPHA | {"beta": {"min": 0.3, "max": 0.9}}, ({"alpha": 0.5, "beta": 0.5},)),  # the other is outside
        ({"alpha": {"min": 0.6, "max": 0.9}}, ({"alpha": 0.75},)),
        ({"alpha": {"value": 0.5}, "seed": {"values": [1, 2]}}, ()),
        ({"base_lr": {"min": 1e-4, "max": 1e-3}}, ()),
    ],
)
def test_equal_and_balanced_weights_come_first_where_the_space_has_them(parameters, presets):
    assert make(parameters=parameters).presets == presets


def test_given_presets_replace_the_default_ones():
    assert make(search={"presets": []}).presets == ()
    assert make(search={"presets": [{"alpha": 0.3}]}).presets == ({"alpha": 0.3},)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"parameters": {}}, ["parameters: {}; must be a mapping of names to ranges"]),
        ({"parameters": {"alpha": 0.5}}, ["parameters.alpha: 0.5; must be a mapping, for example {value: 0.5}"]),
        ({"parameters": {"mask_ration": {"value": 1}}}, ["'mask_ration'", "did you mean 'mask_ratio'?", "Known:"]),
        ({"parameters": {"frame_stride": {"value": 1}}}, ["did you mean 'data.frame_stride'?"]),
        ({"parameters": {"data": {"value": {}}, "data.hflip": {"value": 0}}}, ["'data' and 'data.hflip' are both"]),
        (
            {"parameters": {"alpha": {"min": 2, "max": 1}, "seed": {"values": []}}},
            ["s.yaml: parameters.alpha: min = 2 is not below max = 1", "s.yaml: parameters.seed: values is empty"],
        ),
        ({"metod": "grid"}, ["unknown key 'metod'", "did you mean 'method'?"]),
        ({"method": "tpe"}, ["method = 'tpe'", "'bayes', 'random' or 'grid'"]),
        ({"metric": {"name": "eval/static_skil"}}, ["metric.name: 'eval/static_skil'", "did you mean 'eval/static_sk"]),
        ({"metric": {"name": "batch/loss_total"}}, ["not reported at epoch ends"]),
        ({"name": ".."}, ["'..' cannot name the results folder"]),
        ({"name": "a/b"}, ["use letters, digits, '.', '_' and '-'"]),
        ({"name": "a" * 101}, ["at most 100 characters"]),
        ({"run_cap": 0}, ["run_cap = 0; must be greater than 0"]),
        ({"trainer": {"lr": 1e-3}}, ["trainer: unknown key 'lr' = 0.001; give base_lr"]),
        ({"trainer": {"epochs": 0}}, ["trainer.epochs = 0; must be greater than 0"]),
        ({"objective": {"target": 1}}, ["objective.target = 1; must be less than 1"]),
        ({"resources": {"cpu": 0}}, ["resources.cpu = 0"]),
        ({"wandb": {"init_timeout_s": 0}}, ["wandb.init_timeout_s = 0"]),
        ({"retries": {"max_failures": -1}}, ["retries.max_failures = -1"]),
        ({"confirm": {"top_k": 1, "seeds": []}}, ["confirm.seeds = []"]),
        ({"early_terminate": {"type": "hyperband"}}, ["early_terminate: must have min_iter, or max_iter and s"]),
        ({"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}}, ["max_iter = 2 is below eta = 3"]),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, ["early_terminate.eta = 1"]),
        ({"search": {"presets": [{"alfa": 0.5}]}}, ["search.presets.0: 'alfa' is not searched; did you mean 'alpha'?"]),
        ({"search": {"presets": [{}, {"alpha": 0.95}]}}, ["search.presets.1: alpha = 0.95; must be a number from 0.1"]),
        ({"method": "grid"}, ["parameters.alpha: a grid needs single values", "q_ distribution"]),
        ({"method": "grid", "search": {"sampler": "tpe"}}, ["search: sampler = 'tpe': method grid tries every"]),
    ],
)
def test_a_fault_in_the_file_names_file_key_value_and_remedy(tmp_path, content, parts):
    message = fails(tmp_path, **content)
    assert "s.yaml: " in message
    for part in parts:
        assert part in message


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
        ({"precision": {"values": ["fp32", "fp16"]}}, ["parameters.precision: the value 'fp16'"]),
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


def test_weights_that_may_both_be_zero_are_fine_one_at_a_time():
    unit = {"min": 0.0, "max": 1.0}
    assert make(parameters={"alpha": unit, "beta": unit}, search={"presets": []}).presets == ()


def test_a_missing_file_names_those_beside_it(tmp_path):
    (tmp_path / "alpha_beta.yaml").touch()
    with pytest.raises(ConfigError, match=r"no such file. did you mean 'alpha_beta.yaml'"):
        load_spec(tmp_path / "alfa_beta.yaml")


# --- grid, rungs -----------------------------------------------------------------------------------------------------

GRID = {"alpha": {"values": [0.25, 0.5, 0.75]}, "seed": {"min": 0, "max": 1}}


@pytest.mark.parametrize(
    ("content", "trials"),
    [
        ({"run_cap": None}, DEFAULT_TRIALS),
        ({"run_cap": 40}, 40),
        ({"method": "grid", "parameters": GRID, "run_cap": None}, 6),
        ({"method": "grid", "parameters": GRID, "run_cap": 40}, 6),
        ({"method": "grid", "parameters": GRID, "run_cap": 4}, 4),
        # the trainer's seed is no point of the grid, so this preset is a trial beside it
        ({"method": "grid", "parameters": GRID, "trainer": {"seed": 9}, "search": {"presets": [{"alpha": 0.5}]}}, 7),
    ],
)
def test_num_trials_is_the_cap_the_default_or_the_grid(content, trials):
    assert make(**content).num_trials == trials


def test_a_grid_starts_with_the_default_presets_only_where_they_are_points_of_it():
    assert make(method="grid", parameters=GRID).presets == ({"alpha": 0.5}, {"alpha": 0.75})
    assert make(method="grid", parameters=GRID, trainer={"seed": 9}).presets == ()


def test_a_grid_whose_combination_cannot_be_trained_is_refused():
    # each value alone goes with the usual ones; 3 heads go with width 96 only
    parameters = {"encoder.width": {"values": [96, 128]}, "encoder.heads": {"values": [3, 4]}}
    trainer = {"encoder": {"width": 96}}
    with pytest.raises(ValueError, match=r"combination {'encoder.width': 128, 'encoder.heads': 3} cannot be trained"):
        make(method="grid", parameters=parameters, trainer=trainer)
    assert make(method="random", parameters=parameters, trainer=trainer).num_trials == 16


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


@pytest.mark.parametrize(
    ("stop", "first"),
    [
        ({"min_iter": 2}, 2),
        ({"max_iter": 27, "s": 2}, 3),
        ({"max_iter": 27, "s": 9}, 1),  # rungs below one epoch are left out, as in W&B
        ({"max_iter": 5, "s": 2, "eta": 2}, 1),
        ({"min_iter": 7, "max_iter": 27, "s": 1}, 9),
    ],
)
def test_the_first_rung_is_min_iter_or_max_iter_over_eta_to_the_s(stop, first):
    spec = make(early_terminate={"type": "hyperband"} | stop)
    assert spec.early_terminate is not None
    assert spec.early_terminate.first_rung == first


# --- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"objective": {"loss": "train"}}, "objective.loss: train does not compare across alpha"),
        ({"metric": {"name": "summary/best_loss"}}, "metric.name: summary/best_loss does not compare across alpha"),
        ({"metric": {"name": "eval/pred_skill"}}, "better when higher. Write goal: maximize"),
        ({"parameters": ALPHA | {"beta": {"min": 0.1, "max": 0.9}}}, "one degree of freedom too many"),
        ({"run_cap": None}, "run_cap is absent: 16 trials will run"),
        ({"method": "grid", "parameters": GRID, "run_cap": 4}, "run_cap = 4 cuts the grid of 6 combinations"),
        ({"run_cap": 8}, "TPE never takes over"),
        ({"confirm": {"top_k": 3, "seeds": [1, 2]}}, "does not run it yet"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 8}}, "nothing is ever stopped early"),
        ({"trainer": {"alpha": 0.3}}, "trainer.alpha is also a parameter; the parameter wins"),
        ({"parameters": {"alpha": {"min": 0, "max": 1}}, "search": {"presets": []}}, "Write 0.0 and 1.0"),
        (
            {"parameters": {"base_lr": {"distribution": "log_uniform", "min": 1e-4, "max": 4e-3}}},
            "values are 1 to 1.004. To give the values themselves, write log_uniform_values",
        ),
        (
            {"parameters": {"mask_ratio": {"distribution": "q_uniform", "min": 0.52, "max": 0.9, "q": 0.1}}},
            "min = 0.52 is no multiple of q = 0.1; values are multiples, here 0.6 to 0.9",
        ),
        (
            {"parameters": {"mask_ratio": {"distribution": "q_uniform", "min": 0.55, "max": 0.65, "q": 0.1}}},
            "min = 0.55 and max = 0.65 is no multiple of q = 0.1; values are multiples, here 0.6 to 0.6",
        ),
        ({"parameters": {"alpha": {"value": 0.5}}}, "all trials are equal"),
    ],
)
def test_what_is_probably_not_meant_is_one_warning_with_a_remedy(content, part):
    (warning,) = make(**content).warnings()
    assert part in warning


def test_a_trainer_value_that_the_presets_take_is_no_second_value_of_its_parameter():
    parameters = ALPHA | {"base_lr": {"min": 1e-4, "max": 1e-2}}
    assert make(parameters=parameters, trainer={"base_lr": 2e-3}).warnings() == []
    (warning,) = make(parameters=parameters, trainer={"base_lr": 2e-3}, search={"presets": []}).warnings()
    assert "trainer.base_lr is also a parameter" in warning


def test_loss_train_is_no_warning_where_nothing_shifts_it():
    spec = make(parameters={"base_lr": {"min": 1e-4, "max": 1e-3}}, objective={"loss": "train"})
    assert spec.warnings() == []


# --- there and back --------------------------------------------------------------------------------------------------


def test_the_resolved_spec_loads_again_to_an_equal_one_with_equal_warnings(tmp_path):
    spec = load(
        tmp_path, FULL, "trainer.alpha=0.3", "confirm={top_k: 2, seeds: [1, 2]}", "search.presets=[{alpha: 0.4}]"
    )
    text = yaml.safe_dump(spec.resolved(), sort_keys=False)
    again = load(tmp_path, text, name="spec.yaml")
    assert again == spec
    assert again.warnings() == spec.warnings()
    assert again.resolved() == spec.resolved()
    assert "device: auto" in text  # defaults are written out


def test_the_wandb_config_holds_only_wandbs_keys_and_changing_it_leaves_the_spec_alone(tmp_path):
    spec = load(tmp_path, FULL)
    config = spec.wandb_sweep_config()
    assert config == {
        "name": "alpha_beta",
        "description": "which weights, which learning rate",
        "project": "tactile-sweep",
        "entity": "lab",
        "method": "bayes",
        "metric": {"name": "objective/value", "goal": "minimize"},
        "parameters": yaml.safe_load(FULL)["parameters"],
        "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3},
        "run_cap": 16,
    }
    config["parameters"]["data"]["parameters"]["frame_stride"]["values"].append(4)
    assert spec.parameters["data.frame_stride"] == {"values": [1, 2]}


numbers = st.floats(1e-6, 0.4)
entries = st.one_of(
    st.builds(lambda value: {"value": value}, numbers),
    st.builds(lambda values: {"values": values}, st.lists(numbers, min_size=1, max_size=4, unique=True)),
    st.builds(lambda low, size: {"min": low, "max": low + size}, numbers, st.floats(0.01, 0.5)),
    st.builds(
        lambda low, size: {"distribution": "log_uniform_values", "min": low, "max": low + size},
        numbers,
        st.floats(0.01, 0.5),
    ),
    st.builds(
        lambda first, count, q: {"distribution": "q_uniform", "min": first * q, "max": (first + count) * q, "q": q},
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([0.1, 0.05, 0.01]),
    ),
)
names = st.sampled_from(["alpha", "mask_ratio", "weight_decay", "data.hflip", "data.vflip", "base_lr"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, entries, min_size=1), st.sampled_from(["bayes", "random"]))
def test_the_wandb_config_and_the_resolved_spec_give_the_same_parameters(parameters, method):
    # mask_ratio 1e-6 masks no patch: ranges here start where every training takes them
    if "mask_ratio" in parameters:
        parameters["mask_ratio"] = {"values": [0.5, 0.75]}
    spec = make(parameters=copy.deepcopy(parameters), method=method)
    assert spec.parameters == parameters
    from_wandb = SweepSpec.model_validate(spec.wandb_sweep_config())
    assert from_wandb == spec
    assert from_wandb.space.distributions == spec.space.distributions
    assert SweepSpec.model_validate(spec.resolved()) == spec
