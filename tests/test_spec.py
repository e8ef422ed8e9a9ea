"""sweep/spec.py: YAML -> SweepSpec; errors, defaults, and the W&B sweep config in it."""

import copy
import json
import pickle

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.spec import DEFAULT_TRIALS, SweepSpec, load_spec
from tests.specs import ALPHA, GRID, fails, load, make

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


def test_a_full_spec_loads_and_nested_parameters_get_dotted_names(tmp_path):
    spec = load(tmp_path, FULL)
    assert spec.name == "alpha_beta"  # the file's stem
    assert list(spec.parameters) == ["alpha", "base_lr", "mask_ratio", "data.frame_stride"]
    assert list(spec.space.distributions) == list(spec.parameters)
    assert spec.trainer == TrainConfig(epochs=9, clip_grad=None, data={"hflip": 0.0})
    assert spec.presets == ({"alpha": 0.5}, {"alpha": 0.75})
    assert spec.num_trials == 16
    (warning,) = spec.warnings()
    assert warning.startswith("data.frame_stride: changes what is evaluated")


def test_a_plain_wandb_sweep_file_runs_unchanged(tmp_path):
    text = """
program: train.py
command: ["${env}", python, "${program}", "${args}"]
method: random
metric: {name: eval/pred_skill, goal: maximize, target: 0.9, impute: latest, impute_while_running: best}
controller: {type: local}
apiVersion: "2.0"
kind: sweep
job: lab/tactile/train:latest
image_uri: lab/tactile:1
parameters:
  base_lr: {distribution: log_uniform, min: -9.2, max: -5.5}
  batch_size: {values: [16, 32], probabilities: [0.5, 0.5]}
  epochs: {value: 3}
"""
    spec = load(tmp_path, text)
    assert spec.trainer == TrainConfig()
    assert spec.search.sampler == "random"
    assert spec.presets == ()  # alpha is not searched
    assert spec.space.constants == {"epochs": 3}
    assert spec.wandb_sweep_config() == yaml.safe_load(text) | {"name": "alpha_beta", "project": "tactile-sweep"}


@pytest.mark.parametrize(
    ("given", "folder"), [("My sweep (lr & alpha)", "My-sweep-lr-alpha"), ("触觉 alpha", "触觉-alpha"), ("a: b", "a-b")]
)
def test_a_free_text_of_wandb_names_a_folder(tmp_path, given, folder):
    assert load(tmp_path, FULL, f"name={given!r}").name == folder


def test_a_sweep_file_of_wandb_without_blocks_of_ours_is_a_spec(tmp_path):
    text = """
program: train.py
name: From W&B's page
method: bayes
metric: {name: objective/value, goal: minimize, target: 0.1, impute: worst, impute_while_running: latest}
parameters:
  alpha: {min: 0.1, max: 0.9}
  base_lr: {distribution: q_log_uniform_values, min: 1.0e-3, max: 0.06, q: 0.001}
  clip_grad: {values: [null, 1.0]}
  seed: {values: [1, 2, 3], probabilities: [0.2, 0.3, 0.5]}
  data: {parameters: {frame_stride: {value: 2}}}
early_terminate: {type: hyperband, s: 2, eta: 3, max_iter: 27, strict: true}
run_cap: 3
controller: {type: local}
command: ["${env}", python3, "${program}", "${args}"]
"""
    spec = load(tmp_path, text)
    assert (spec.name, spec.num_trials) == ("From-W-B-s-page", 3)
    assert set(spec.space.parameters) == {"alpha", "base_lr", "clip_grad", "seed"}


def test_overrides_change_the_spec_and_a_given_name_wins_over_the_files(tmp_path):
    spec = load(tmp_path, FULL, "name=other", "run_cap=3", "parameters.alpha.max=0.8", "trainer.epochs=12")
    assert (spec.name, spec.run_cap, spec.trainer.epochs) == ("other", 3, 12)
    assert spec.parameters["alpha"] == {"min": 0.1, "max": 0.8}


def test_a_block_whose_lines_are_all_commented_out_is_absent(tmp_path):
    spec = load(tmp_path, "parameters: {alpha: {min: 0.1, max: 0.9}}\nname:\ntrainer:\n  # epochs: 3\nsearch:\n")
    assert spec.trainer == TrainConfig()
    assert spec.name == "alpha_beta"


def test_an_empty_trainer_is_the_default_one(tmp_path):
    assert load(tmp_path, "parameters: {alpha: {min: 0.1, max: 0.9}}\ntrainer: {}\n").trainer == TrainConfig()


def test_yaml_anchors_repeat_a_range_and_merge_keys_change_it(tmp_path):
    text = """
parameters:
  alpha: &share {min: 0.2, max: 0.8}
  data.hflip: *share
  mask_ratio: {<<: *share, distribution: q_uniform, q: 0.1}
"""
    spec = load(tmp_path, text)
    assert spec.parameters == {
        "alpha": {"min": 0.2, "max": 0.8},
        "data.hflip": {"min": 0.2, "max": 0.8},
        "mask_ratio": {"distribution": "q_uniform", "min": 0.2, "max": 0.8, "q": 0.1},
    }
    assert "&" not in yaml.safe_dump(spec.resolved())


def test_a_json_file_is_a_spec_file(tmp_path):
    content = {"parameters": {"base_lr": {"distribution": "log_uniform_values", "min": 1e-05, "max": 1e-3}}}
    spec = load(tmp_path, json.dumps(content, indent=2), name="lr.json")
    assert spec.parameters == content["parameters"]
    assert spec.name == "lr"


def test_a_spec_is_frozen_and_travels_between_processes():
    spec = make()
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(ValueError, match="frozen"):
        spec.run_cap = 3


@pytest.mark.parametrize(
    ("method", "sampler", "expected"),
    [("bayes", None, "auto"), ("random", None, "random"), ("bayes", "random", "random")],
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
        ({"method": "custom"}, ["method = 'custom': W&B's schedulers do not run here", "write method: bayes (TPE)"]),
        (
            {"method": "custom", "scheduler": {"engine": "optuna"}},
            ["scheduler = {'engine': 'optuna'}", "leave scheduler"],
        ),
        ({"metrics": [{"name": "a"}, {"name": "b"}]}, ["metrics.0.name: 'a' is not reported"]),
        ({"kind": "sweeps"}, ["kind = 'sweeps'; must be 'sweep'"]),
        ({"metric": {"impute": "mean"}}, ["metric.impute = 'mean'; must be 'latest', 'best' or 'worst'"]),
        ({"metric": {"name": "eval/static_skil"}}, ["metric.name: 'eval/static_skil'", "did you mean 'eval/static_sk"]),
        ({"metric": {"name": "batch/loss_total"}}, ["not reported at epoch ends"]),
        ({"name": ".."}, ["'..' cannot name the results folder"]),
        ({"metric": {"name": "val_loss"}}, ["did you mean 'eval/reference_loss'?"]),
        ({"metric": {"name": "loss"}}, ["did you mean 'epoch/train_loss'?"]),
        ({"name": "(!)"}, ["'(!)' cannot name the results folder"]),
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


def test_a_missing_file_names_those_beside_it(tmp_path):
    (tmp_path / "alpha_beta.yaml").touch()
    with pytest.raises(ConfigError, match=r"no such file. did you mean 'alpha_beta.yaml'"):
        load_spec(tmp_path / "alfa_beta.yaml")


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
