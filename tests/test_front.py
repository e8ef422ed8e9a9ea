"""Sweeps of several metrics end with a Pareto front; a sweep can start from what an earlier one found."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from model.config import TrainConfig
from model.configfile import validated
from model.errors import UserError
from sweep.front import front_of
from sweep.outcome import Outcome
from sweep.plan import first_trials
from sweep.report.answer import answer
from sweep.report.data import read_results
from sweep.results import ResultsFolder
from sweep.run import run
from sweep.spec import SweepSpec
from sweep.study import Record
from sweep.warm_start import WarmStart
from tests.inline import inline_runner
from tests.sweeping import tiny_content, tiny_spec

TWO = [{"name": "eval/loss_static"}, {"name": "eval/pred_skill", "goal": "maximize"}]


def record(number: int, objectives: tuple[float, ...], outcome: Outcome = Outcome.COMPLETE) -> Record:
    value = objectives[0] if objectives else None
    return Record(number, f"{number:04d}", {"alpha": 0.5}, None, outcome, value, 3, None, objectives)


def test_the_front_holds_what_no_trial_beats_in_all_metrics_the_best_of_the_first_one_first() -> None:
    records = [
        record(0, (3.0, 0.9)),
        record(1, (1.0, 0.1)),
        record(2, (2.0, 0.05)),  # worse than 1 in both
        record(3, (0.5, 0.99), Outcome.PRUNED),
        record(4, (0.1, 0.99), Outcome.DIVERGED),
        record(5, (), Outcome.FAILED),
    ]
    assert [each.number for each in front_of(records, tiny_spec(metrics=TWO))] == [1, 0]
    assert front_of(records, tiny_spec()) == []


def test_what_an_earlier_sweep_found_best_is_tried_after_the_presets_and_each_config_once() -> None:
    spec = tiny_spec(search={"presets": [{"alpha": 0.5, "base_lr": 0.1}]})
    known, new = {"alpha": 0.5, "base_lr": 0.1}, {"alpha": 0.3, "base_lr": 0.2}
    warm = WarmStart(first=(("a-0001", known), ("a-0002", new), ("b-0001", new)))
    assert first_trials(spec, warm) == [("equal-weights", known), (None, new)]


def _run(content: dict[str, Any], folder: Path, *, resume: bool = False) -> tuple[int, str]:
    console = Console(record=True, width=160)
    with inline_runner():
        code = run(validated(SweepSpec, content, "test"), ResultsFolder(folder), console, resume=resume)
    return code, console.export_text()


def test_a_sweep_of_two_metrics_and_a_sweep_that_starts_from_it(tmp_path: Path) -> None:
    earlier, later = tmp_path / "earlier", tmp_path / "later"
    search = {"startup_trials": 2, "sampler": "auto"}
    code, shown = _run(tiny_content(metrics=TWO, search=search, run_cap=4), earlier)
    assert code == 0
    assert "Pareto front: " in shown
    with (earlier / "pareto.csv").open() as file:
        names = [row["trial"] for row in csv.DictReader(file)]
    assert names == [trial.name for trial in read_results(earlier).front]
    assert names
    for name in names:
        TrainConfig.model_validate(yaml.safe_load((earlier / f"pareto/{name}.yaml").read_text()))
    assert not (earlier / "best.yaml").exists()
    assert "no trial is the best" in answer(read_results(earlier))
    assert "Pareto front" in (earlier / "report.html").read_text()

    content = tiny_content(search={**search, "warm_start": str(earlier)}, run_cap=3)
    code, shown = _run(content, later)
    assert code == 0
    assert "4 of 4 trials are known to the sampler" in shown
    shutil.rmtree(earlier)  # the sweep does not need it any more
    code, shown = _run(content | {"run_cap": 4}, later, resume=True)
    assert code == 0
    assert "4 trials: 4 complete" in shown


def test_a_sweep_cannot_start_from_a_folder_that_is_no_sweep(tmp_path: Path) -> None:
    content = tiny_content(search={"warm_start": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"search\.warm_start: .*none"):
        _run(content, tmp_path / "results")
    assert not (tmp_path / "results").exists()
