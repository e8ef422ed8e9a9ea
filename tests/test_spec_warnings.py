"""sweep/spec_warnings.py: what is allowed and probably not meant."""

from pathlib import Path
from typing import Any

import pytest

from sweep.spec import load_spec
from sweep.spec_warnings import warnings_of
from tests.specs import ALPHA, GRID, make

WIDE: dict[str, Any] = {"weight_decay": {"min": 0.01, "max": 0.1}}
SPECS = Path(__file__).parents[1] / "sweeps"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"objective": {"loss": "train"}}, "objective.loss: train does not compare across alpha"),
        ({"metric": {"name": "summary/best_loss"}}, "metric.name: summary/best_loss does not compare across alpha"),
        ({"metric": {"name": "eval/pred_skill"}}, "better when higher. Write goal: maximize"),
        ({"parameters": ALPHA | {"beta": {"min": 0.1, "max": 0.9}}}, "one degree of freedom too many"),
        (
            {"parameters": ALPHA | {"mode": {"values": ["joint", "dynamic"]}}},
            "mode is searched: a mode that trains",
        ),
        ({"run_cap": None}, "run_cap is absent: 16 trials will run"),
        ({"method": "grid", "parameters": GRID, "run_cap": 4}, "run_cap = 4 cuts the grid of 6 combinations"),
        ({"run_cap": 8}, "the model never takes over"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 8}}, "nothing is ever stopped early"),
        ({"trainer": {"alpha": 0.3}}, "trainer.alpha is also a parameter; the parameter wins"),
        (
            {"parameters": WIDE | {"alpha": {"min": 0, "max": 1}}, "search": {"presets": []}},
            "Write 0.0 and 1.0",
        ),
        (
            {"parameters": {"base_lr": {"distribution": "log_uniform", "min": 1e-4, "max": 4e-3}}},
            "values are 1 to 1.004. To give the values themselves, write log_uniform_values",
        ),
        (
            {"parameters": WIDE | {"mask_ratio": {"distribution": "q_uniform", "min": 0.52, "max": 0.9, "q": 0.1}}},
            "min = 0.52 is no multiple of q = 0.1; values are multiples, here 0.6 to 0.9",
        ),
        (
            {"parameters": WIDE | {"mask_ratio": {"distribution": "q_uniform", "min": 0.55, "max": 0.65, "q": 0.1}}},
            "min = 0.55 and max = 0.65 is no multiple of q = 0.1; values are multiples, here 0.6 to 0.6",
        ),
        ({"parameters": {"alpha": {"value": 0.5}}}, "a single point, so one trial runs"),
        ({"parameters": {"alpha": {"values": [0.5]}}}, "a single point, so one trial runs"),
        ({"parameters": GRID}, "6 combinations, and 16 trials run: some are trained twice"),
        (
            {"parameters": ALPHA | {"mask_kind": {"values": ["random", "block"]}}, "search": {"sampler": "cmaes"}},
            "cmaes models numbers only; mask_kind is drawn at random",
        ),
        ({"search": {"sampler": "nsgaii"}}, "16 trials are not even three"),
        ({"search": {"sampler": "gp", "startup_trials": 16}}, "the model never takes over"),
        ({"program": "train.py"}, "program: it is for W&B's agents"),
        ({"program": "x.py", "command": ["${env}", "python", "${program}"]}, "command: it is for W&B's agents"),
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


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_specs_that_come_with_the_code_load_without_a_warning(path):
    assert load_spec(path).warnings() == []


def test_a_command_that_starts_our_trial_is_no_warning():
    assert make(program="sweep/trial.py", command=["${env}", "python", "-m", "sweep.trial", "s.yaml"]).warnings() == []


def test_what_the_engine_does_not_use_is_no_warning():
    spec = make(run_cap=8, program="train.py")
    assert len(spec.warnings()) == 2
    (startup,) = warnings_of(spec, "scheduler")
    assert startup.startswith("search.startup_trials")
    assert list(warnings_of(spec, "wandb")) == []
