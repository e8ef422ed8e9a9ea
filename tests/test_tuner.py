"""What of Ray's part can be shown without starting Ray; tests/test_run.py runs whole sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from model.errors import ConfigError
from sweep.outcome import Outcome
from sweep.resources import Resources
from sweep.results import ResultsFolder
from sweep.study import SweepStudy
from sweep.tuner import Search, max_concurrent, run_trials
from tests.inline import Inline
from tests.sweeping import tiny_spec


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


class Recorder(Inline):
    """An engine that runs nothing."""

    handed: Search

    def fit(self, search: Search) -> None:
        self.handed = search


class Nobody:
    """A watcher who looks away."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.mark.parametrize("search", [True, False], ids=["search", "confirmation"])
def test_runs_of_a_confirmation_are_neither_stopped_early_nor_left_out(tmp_path: Path, search: bool) -> None:
    spec = tiny_spec(
        early_terminate={"type": "hyperband", "min_iter": 1}, metric={"name": "eval/loss_static", "target": 1}
    )
    study = SweepStudy(tmp_path, spec.name, spec.space, sampler="random")
    number = study.next().number
    study.report(number, 0, 0.5)
    study.finish(number, Outcome.COMPLETE)
    engine, watcher = Recorder(), Nobody()
    run_trials(spec, ResultsFolder(tmp_path), study, "uid", 3, watcher, search=search, engine=engine)
    assert (type(engine.handed.scheduler) is not FIFOScheduler) == search
    assert (engine.handed.searcher.suggest("a") == Searcher.FINISHED) == search
