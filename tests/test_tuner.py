"""What of Ray's part can be shown without starting Ray; tests/test_run.py runs whole sweeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from model.errors import ConfigError
from sweep.resources import Resources
from sweep.searcher import EPOCHS
from sweep.study import SweepStudy
from sweep.tuner import AshaKeepingPresets, max_concurrent
from tests.sweeping import tiny_spec

METRIC = "objective/value"


def asha(max_t: int = 9) -> AshaKeepingPresets:
    return AshaKeepingPresets(
        time_attr=EPOCHS, metric=METRIC, mode="min", max_t=max_t, grace_period=1, reduction_factor=3
    )


def trial(name: str, preset: str | None = None) -> Any:
    return SimpleNamespace(trial_id=f"ray-{name}", config={"trial": name, "preset": preset})


def decide(scheduler: AshaKeepingPresets, who: Any, epochs: int, value: float) -> str:
    return scheduler.on_trial_result(None, who, {EPOCHS: epochs, METRIC: value})


def test_the_worse_trials_are_stopped_and_presets_never() -> None:
    scheduler = asha()
    good, bad, preset = trial("0000"), trial("0001"), trial("0002", "equal-weights")
    for who in (good, bad, preset):
        scheduler.on_trial_add(None, who)
    assert decide(scheduler, good, 1, 0.5) == TrialScheduler.CONTINUE
    assert decide(scheduler, bad, 1, 0.9) == TrialScheduler.STOP
    assert decide(scheduler, preset, 1, 0.9) == TrialScheduler.CONTINUE


def test_a_resumed_sweep_decides_as_an_uninterrupted_one(tmp_path: Path) -> None:
    study = SweepStudy(tmp_path, "tiny", tiny_spec().space)
    first, second = study.next().number, study.next().number
    study.report(first, 0, 0.5)
    study.report(second, 0, 0.7)
    scheduler = asha()
    scheduler.replay(study)
    resumed, new = trial(f"{first:04d}"), trial("0007")
    scheduler.on_trial_add(None, resumed)
    scheduler.on_trial_add(None, new)
    assert decide(scheduler, new, 1, 0.9) == TrialScheduler.STOP
    assert decide(scheduler, resumed, 1, 0.5) == TrialScheduler.CONTINUE  # this rung decided about it before


@pytest.mark.parametrize(
    ("resources", "nodes", "most"),
    [
        ({}, [{"CPU": 2.0}], 2),
        ({"cpu": 0.5}, [{"CPU": 2.0}], 4),
        ({"cpu": 2, "max_concurrent": 4}, [{"CPU": 16.0}], 4),
        ({"cpu": 4, "gpu": 0.3}, [{"CPU": 64.0, "GPU": 1.0}], 3),
        ({"cpu": 0.1}, [{"CPU": 0.3}], 3),
        ({"cpu": 6}, [{"CPU": 8.0}, {"CPU": 16.0}], 3),
        ({"gpu": 1}, [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}], 4),
    ],
)
def test_as_many_trials_run_as_fit(resources: dict[str, Any], nodes: list[dict[str, float]], most: int) -> None:
    assert max_concurrent(Resources(**resources), nodes) == most


@pytest.mark.parametrize(
    ("resources", "nodes"), [({"gpu": 1}, [{"CPU": 8.0}]), ({"cpu": 16}, [{"CPU": 8.0}, {"CPU": 8.0}])]
)
def test_resources_that_no_node_has_are_an_error_that_says_what_is_there(
    resources: dict[str, Any], nodes: list[dict[str, float]]
) -> None:
    with pytest.raises(ConfigError, match=r"the largest node that Ray has here offers 8 CPU and 0 GPU"):
        max_concurrent(Resources(**resources), nodes)
