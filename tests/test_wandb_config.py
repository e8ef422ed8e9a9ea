"""Specs as W&B sweep configs: valid against W&B's own schema, and accepted by W&B's own client."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import ALPHA, make
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution

from model.errors import ConfigError
from sweep.agent import config_text
from sweep.spec import SweepSpec, load_spec
from sweep.wandb_config import SCHEDULER_FILE, notes, wandb_sweep_config

ROOT = Path(__file__).resolve().parents[1]
SPECS = sorted((ROOT / "sweeps").glob("*.yaml"))
PATH = Path("sweeps/s.yaml")


def check_with_wandb(config: dict[str, Any]) -> None:
    """Fails where W&B's schema, its client or its rules for schedulers refuse a config."""
    jsonschema = pytest.importorskip("jsonschema", reason="the schema's language")
    try:
        files = importlib.metadata.files("sweeps") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("W&B's package sweeps, which has the schema, is not installed")
    (schema,) = [file for file in files if file.name == "schema.json"]
    validator = jsonschema.Draft7Validator(json.loads(Path(str(schema.locate())).read_text(encoding="utf-8")))
    # as the client sends it: through JSON, and as YAML
    sent = yaml.safe_load(config_text(json.loads(json.dumps(config))))
    assert sent == config
    assert [error.message for error in validator.iter_errors(sent)] == []
    _validate_config_and_fill_distribution(sent)  # raises for ranges that it cannot tell the kind of
    # said in the schema's texts only
    assert not ({"scheduler", "early_terminate"} <= config.keys())
    assert not ({"metric", "metrics"} <= config.keys())
    assert ("scheduler" in config) == (config["method"] == "custom")
    assert "metrics" not in config or config["method"] == "custom"


@pytest.mark.parametrize("scheduler", [False, True])
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_ready_spec_is_a_valid_sweep_config(path, scheduler):
    spec = load_spec(path)
    config = wandb_sweep_config(spec, path, scheduler=scheduler)
    check_with_wandb(config)
    assert config["parameters"].keys() == {"alpha", "base_lr", "mask_ratio"}
    assert config["run_cap"] == spec.num_trials


# entries that TrainConfig takes, by parameter
ENTRIES: dict[str, list[dict[str, Any]]] = {
    "alpha": [
        {"min": 0.1, "max": 0.9},
        {"min": 0.25, "max": 1},
        {"min": 0, "max": 0.5},
        {"distribution": "uniform", "min": 0.1, "max": 0.9},
        {"distribution": "q_uniform", "min": 0.1, "max": 0.9, "q": 0.1},
        {"distribution": "beta", "a": 2, "b": 3},
        {"distribution": "q_beta", "a": 2, "b": 3.5, "q": 0.25},
        {"values": [0.25, 0.5, 0.75]},
        {"values": [0.25, 0.5], "probabilities": [0.4, 0.6]},
        {"distribution": "categorical_w_probabilities", "values": [0.25, 1], "probabilities": [0, 1]},
    ],
    "base_lr": [
        {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1},
        {"distribution": "inv_log_uniform_values", "min": 10, "max": 1000.0},
        {"distribution": "log_uniform", "min": -9, "max": -2.5},
        {"distribution": "inv_log_uniform", "min": 2, "max": 9},
        {"distribution": "q_log_uniform_values", "min": 0.001, "max": 0.1, "q": 0.001},
        {"distribution": "q_log_uniform", "min": -6, "max": -2, "q": 0.002},
        {"distribution": "log_normal", "mu": -5.0, "sigma": 0.5},
        {"value": 1e-3},
    ],
    "batch_size": [
        {"values": [8, 16]},
        {"min": 8, "max": 16},
        {"distribution": "int_uniform", "min": 8.0, "max": 16},
        {"distribution": "q_uniform", "min": 8, "max": 32, "q": 8},
    ],
    "data.frame_stride": [{"values": [1, 2]}, {"min": 1, "max": 2}],
    "norm_pix_loss": [{"values": [True, False]}, {"value": False}],
    "data.group_pattern": [{"values": ["0x1", "1e3", None]}],
}
RULES: list[dict[str, Any]] = [
    {"type": "hyperband", "min_iter": 2},
    {"type": "hyperband", "min_iter": 1, "eta": 2.5, "strict": True},
    {"type": "hyperband", "max_iter": 27, "s": 2},
    {"type": "median", "min_iter": 2, "min_trials": 3},
]
METRICS: list[dict[str, Any]] = [
    {"name": "objective/value"},
    {"name": "eval/static_skill", "goal": "maximize", "target": 1},
    {"name": "eval/reference_loss", "impute": "worst", "impute_while_running": False},
    {"name": "eval/loss_static", "impute_while_running": "latest"},
]
MAYBE: dict[str, list[Any]] = {
    "early_terminate": RULES,
    "run_cap": [1, 16],
    "description": ["first\nsecond: line", "08"],
    "entity": ["team"],
    "program": ["train.py"],
    "command": [["${env}", "python3", "${program}", "${args_no_boolean_flags}"]],
    "apiVersion": [1, 0.1, "1.0"],
    "kind": ["sweep"],
    "controller": [{"type": "cloud"}],
    "search": [{"presets": []}, {"seed": 3, "startup_trials": 2}],
}


@st.composite
def spec_contents(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(ENTRIES)), min_size=1, unique=True))
    content: dict[str, Any] = {
        "name": draw(st.sampled_from(["s", "007", "1e3", "a.b-c_d"])),
        "method": draw(st.sampled_from(["bayes", "random"])),
        "parameters": {name: draw(st.sampled_from(ENTRIES[name])) for name in names},
    }
    metrics = draw(st.lists(st.sampled_from(METRICS), max_size=3, unique_by=lambda metric: metric["name"]))
    if len(metrics) == 1:
        content["metric"] = metrics[0]
    elif metrics:
        content["metrics"] = [{k: v for k, v in metric.items() if k != "target"} for metric in metrics]
    for key, values in MAYBE.items():
        if draw(st.booleans()) and not (key == "early_terminate" and len(metrics) > 1):
            content[key] = draw(st.sampled_from(values))
    return content


@settings(max_examples=150)
@given(spec_contents(), st.booleans())
def test_every_spec_is_a_valid_sweep_config(content, scheduler):
    scheduler = scheduler and not ({"program", "command"} & content.keys())
    spec = SweepSpec.model_validate(content)
    config = wandb_sweep_config(spec, PATH, ["trainer.epochs=3"], Path("here"), scheduler)
    check_with_wandb(config)
    assert config["name"] == content["name"]
    if not scheduler:  # it is a spec, too, and comes out of it as it went in
        assert wandb_sweep_config(SweepSpec.model_validate(config), Path("other.yaml")) == config


def test_the_command_gives_the_trial_what_the_command_line_was_given():
    config = wandb_sweep_config(make(), PATH, ["trainer.epochs=3", "project=p q"], Path("out dir"))
    assert config["command"] == [
        "${env}",
        "${interpreter}",
        "-m",
        "sweep.trial",
        "sweeps/s.yaml",
        *("--set", "trainer.epochs=3", "--set", "project=p q", "--results", "out dir"),
        "${args}",
    ]


def test_a_spec_whose_name_begins_with_a_dash_is_no_option():
    assert "./-s.yaml" in wandb_sweep_config(make(), Path("-s.yaml"))["command"]


def test_a_program_or_command_of_its_own_is_kept_and_said():
    program = make(program="train.py")
    config = wandb_sweep_config(program, PATH)
    assert config["program"] == "train.py"
    assert "command" not in config
    assert any("program of the spec is kept" in note for note in notes(program))
    command = make(command=["${env}", "python3", "x.py", "${args}"])
    assert wandb_sweep_config(command, PATH)["command"] == ["${env}", "python3", "x.py", "${args}"]
    assert any("command of the spec is kept" in note for note in notes(command))


def test_a_printed_config_is_a_spec_of_ours():
    spec = SweepSpec.model_validate(wandb_sweep_config(make(), PATH))
    assert not any("is kept" in note for note in notes(spec))
    assert "scheduler" in wandb_sweep_config(spec, Path("printed.yaml"), scheduler=True)


@pytest.mark.parametrize("own", [{"program": "train.py"}, {"command": ["python3", "x.py"]}])
def test_a_scheduler_cannot_find_the_spec_of_another_program(own):
    with pytest.raises(ConfigError, match="leave it out"):
        wandb_sweep_config(make(**own), PATH, scheduler=True)


def test_searches_without_an_end_get_the_number_of_trials_that_ours_has():
    assert wandb_sweep_config(make(run_cap=None), PATH)["run_cap"] == 16
    grid = make(method="grid", parameters={"alpha": {"values": [0.25, 0.5]}}, run_cap=None)
    assert "run_cap" not in wandb_sweep_config(grid, PATH)


def test_nested_parameters_stay_nested():
    config = wandb_sweep_config(make(parameters={"data.frame_stride": {"min": 1, "max": 2}}), PATH)
    assert config["parameters"] == {"data": {"parameters": {"frame_stride": {"min": 1, "max": 2}}}}


def test_the_scheduler_form_names_our_functions_by_a_path_that_its_folder_knows():
    form = {"engine": "optuna", "optimizer": "make_study", "search_space": "suggest"}
    inside = wandb_sweep_config(make(early_terminate=RULES[0]), PATH, scheduler=True, folder=ROOT)
    assert inside["scheduler"] == form | {"source": "sweep/wandb_scheduler.py"}
    assert inside["method"] == "custom"
    assert "early_terminate" not in inside
    outside = wandb_sweep_config(make(), PATH, scheduler=True, folder=ROOT / "tests")
    assert outside["scheduler"] == form | {"source": str(SCHEDULER_FILE)}


def test_several_metrics_need_the_scheduler_form():
    spec = make(metrics=[{"name": "eval/loss_static"}, {"name": "eval/static_skill", "goal": "maximize"}])
    plain = wandb_sweep_config(spec, PATH)
    assert plain["metric"] == {"name": "eval/loss_static", "goal": "minimize"}
    assert any(note.startswith("metrics: ") for note in notes(spec))
    full = wandb_sweep_config(spec, PATH, scheduler=True)
    assert [(metric["name"], metric["goal"]) for metric in full["metrics"]] == [
        ("eval/loss_static", "minimize"),
        ("eval/static_skill", "maximize"),
    ]
    assert not any(note.startswith("metrics: ") for note in notes(spec, scheduler=True))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"search": {"sampler": "tpe"}}, "search.sampler (tpe)"),
        ({"method": "random", "search": {"sampler": "qmc"}}, "search.sampler (qmc)"),
        ({"search": {"seed": 7}}, "search.seed (7)"),
        ({"search": {"presets": [{"alpha": 0.5}]}}, "search.presets (1)"),
        ({"search": {"stop": {"time_budget_s": 60}}}, "search.stop"),
        (
            {
                "parameters": ALPHA | {"mode": {"values": ["joint", "dynamic"]}},
                "search": {"conditions": {"alpha": {"mode": "joint"}}, "presets": []},
            },
            "search.conditions",
        ),
    ],
)
def test_what_wandbs_own_search_does_not_use_is_said_and_the_scheduler_uses_it(content, word):
    spec = make(**content)
    assert any(word in note and "--scheduler" in note for note in notes(spec))
    assert not any(word in note for note in notes(spec, scheduler=True))


@pytest.mark.parametrize("scheduler", [False, True])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"method": "random", "search": {"pbt": {"every_epochs": 1}, "presets": []}}, "search.pbt"),
        ({"confirm": {"top_k": 1, "seeds": [1, 2]}}, "confirm"),
        ({"retries": {"max_failures": 1}}, "retries"),
    ],
)
def test_what_agents_never_do_is_said(content, word, scheduler):
    assert any(note.startswith(word) for note in notes(make(**content), scheduler))


def test_a_spec_without_blocks_that_wandb_lacks_needs_no_note():
    spec = make(method="grid", parameters={"mask_ratio": {"values": [0.5, 0.75]}})
    assert list(notes(spec)) == []


def test_median_stopping_is_left_out_and_said():
    spec = make(early_terminate=RULES[3])
    assert "early_terminate" not in wandb_sweep_config(spec, PATH)
    assert any("median" in note for note in notes(spec))


@pytest.mark.parametrize(("rule", "forms"), [(RULES[0], [False, True]), (RULES[3], [True])])
def test_a_metric_that_wandb_learns_at_the_end_only_stops_no_run_and_that_is_said(rule, forms):
    for scheduler in (False, True):
        late = make(early_terminate=rule, metric={"name": "summary/best_loss"})
        said = [note for note in notes(late, scheduler) if "epoch/best_loss_so_far" in note]
        assert len(said) == (scheduler in forms)
        each = make(early_terminate=rule, metric={"name": "epoch/best_loss_so_far"})
        assert not any("summary/best_loss" in note for note in notes(each, scheduler))
