"""sweep/search_checks.py: parts of a search that do not go together are refused, with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.configfile import validated
from sweep.spec import SweepSpec
from tests.specs import ALPHA, fails, make

TWO = [{"name": "eval/loss_static"}, {"name": "eval/loss_dynamic"}]
WIDE = ALPHA | {"mode": {"values": ["joint", "dynamic"]}, "ema_decay": {"min": 0.9, "max": 0.99}}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"metrics": TWO, "metric": {"name": "epoch/train_loss"}}, ["metric and metrics are both given"]),
        ({"metrics": TWO[:1]}, ["a Pareto front needs two or more", "write metric"]),
        ({"metrics": TWO[:1] * 2}, ["'eval/loss_static' is named twice"]),
        (
            {"metrics": TWO, "early_terminate": {"type": "hyperband", "min_iter": 2}},
            ["early_terminate with metrics", "leave early_terminate out"],
        ),
        ({"metrics": TWO, "search": {"sampler": "cmaes"}}, ["search.sampler = 'cmaes' optimises one metric", "nsgaii"]),
        ({"metrics": TWO, "search": {"stop": {"plateau": {"trials": 4}}}}, ["search.stop.plateau with metrics"]),
        ({"metrics": TWO, "confirm": {"top_k": 1, "seeds": [1, 2]}}, ["confirm with metrics"]),
        (
            {"method": "random", "search": {"sampler": "tpe"}},
            ["method = 'random' with search.sampler = 'tpe'", "bayes"],
        ),
        ({"search": {"sampler": "gpp"}}, ["search.sampler = 'gpp'", "'tpe', 'gp', 'cmaes'"]),
        ({"search": {"stop": {"accelerator_hours": 2}}}, ["accelerator_hours, but resources.gpu = 0", "time_budget_s"]),
        ({"search": {"stop": {"time_budget_s": 0}}}, ["search.stop.time_budget_s = 0"]),
        ({"early_terminate": {"type": "median"}}, ["must have min_iter; for example {type: median"]),
        ({"early_terminate": {"type": "median", "min_iter": 2, "eta": 3}}, ["eta: of type hyperband"]),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2, "min_trials": 3}}, ["min_trials belongs to type"]),
        ({"search": {"conditions": {"ema": {"mode": "joint"}}}}, ["'ema' is not searched", "Searched: alpha"]),
        (
            {"parameters": WIDE, "search": {"conditions": {"ema_decay": {"mode": "static"}}}},
            ["search.conditions.ema_decay: mode = 'static' never happens"],
        ),
        (
            {
                "parameters": WIDE,
                "search": {"conditions": {"ema_decay": {"mode": "joint"}, "mode": {"ema_decay": 0.9}}},
            },
            ["search.conditions.ema_decay: it depends on itself"],
        ),
        ({"search": {"pbt": {"parameters": ["mask_ratio"]}}}, ["'mask_ratio' cannot change while a trial trains"]),
        ({"search": {"pbt": {"parameters": ["base_lr"]}}}, ["search.pbt.parameters: 'base_lr' is not searched"]),
        (
            {"search": {"pbt": {}}, "early_terminate": {"type": "median", "min_iter": 2}},
            ["search.pbt and early_terminate are both given"],
        ),
        (
            {"search": {"pbt": {}}, "parameters": ALPHA | {"encoder.depth": {"values": [1, 2]}}},
            ["search.pbt: encoder.depth is searched", "fix it in trainer"],
        ),
        ({"confirm": {"top_k": 0, "seeds": [1, 2]}}, ["confirm.top_k = 0"]),
        ({"confirm": {"top_k": 2, "seeds": [1]}}, ["confirm.seeds = [1]"]),
        ({"confirm": {"top_k": 2, "seeds": [1, 1]}}, ["one is named twice"]),
        ({"confirm": {"top_k": 2, "seeds": [0, 1]}}, ["confirm.seeds = [0, 1] has 0, the seed that the search itself"]),
        (
            {"confirm": {"top_k": 2, "seeds": [1, 2]}, "parameters": ALPHA | {"seed": {"min": 3, "max": 9}}},
            ["a searched seed is picked for luck"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(
    tmp_path: Path, content: dict[str, Any], parts: list[str]
) -> None:
    message = fails(tmp_path, **content)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "content",
    [
        {"metrics": TWO, "search": {"sampler": "nsgaii"}},
        {"early_terminate": {"type": "median", "min_iter": 2}},
        {"parameters": WIDE, "search": {"conditions": {"ema_decay": {"mode": "joint"}}, "stop": {"time_budget_s": 9}}},
        {"search": {"pbt": {"every_epochs": 2}, "warm_start": "results/first"}},
        {"confirm": {"top_k": 2, "seeds": [1, 2, 3]}, "search": {"stop": {"plateau": {"trials": 4}}}},
    ],
)
def test_a_resolved_spec_makes_an_equal_one(content: dict[str, Any]) -> None:
    spec = make(**content)
    assert validated(SweepSpec, spec.resolved(), "again") == spec


def test_w_and_b_gets_what_it_knows_of_several_metrics_and_median_stopping() -> None:
    config = make(metrics=TWO).wandb_sweep_config()
    assert config["metric"] == {"name": "eval/loss_static", "goal": "minimize"}
    assert "metrics" not in config
    assert "early_terminate" not in make(early_terminate={"type": "median", "min_iter": 2}).wandb_sweep_config()


def test_a_value_that_trains_only_where_its_condition_holds_is_fine_with_the_condition() -> None:
    parameters = ALPHA | {"mode": {"values": ["joint", "dynamic"]}, "weighting": {"values": ["fixed", "uncertainty"]}}
    with pytest.raises(ValueError, match="cannot be trained"):
        make(parameters=parameters)
    spec = make(parameters=parameters, search={"conditions": {"weighting": {"mode": "joint"}}})
    grid = {"mode": parameters["mode"], "weighting": parameters["weighting"], "alpha": {"values": [0.25, 0.5]}}
    conditions = {"weighting": {"mode": "joint"}}
    listed = make(parameters=grid, method="grid", run_cap=None, search={"conditions": conditions})
    assert spec.num_trials == 16
    assert listed.num_trials == len(listed.space.grid()) == 6
