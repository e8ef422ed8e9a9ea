"""The contract of a sampler: repeatable, resumable, and it learns from every outcome as what it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sweep.outcome import Outcome
from sweep.space import Space
from sweep.study import SweepStudy, Values

SPACE = Space(
    {
        "alpha": {"min": 0.1, "max": 0.9},
        "base_lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1e-1},
        "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
    }
)
MIXED = Space(
    {
        "alpha": {"min": 0.1, "max": 0.9},
        "encoder.depth": {"min": 1, "max": 4},
        "weighting": {"values": ["fixed", "uncertainty"]},
        "mode": {"values": ["joint", "dynamic"]},
        "seed": {"values": [1]},
    },
    conditions={"weighting": {"mode": "joint"}},
)


def bowl(values: Values) -> float:
    """Least, 0, at alpha 0.3, base_lr 0.01, mask_ratio 0.6."""
    lr = math.log10(values["base_lr"] / 0.01)
    return (values["alpha"] - 0.3) ** 2 + lr**2 / 4 + (values["mask_ratio"] - 0.6) ** 2


def search(study: SweepStudy, trials: int) -> list[Values]:
    """A search with every kind of end: high rates diverge, bad trials are stopped early, every 7th crashes."""
    seen = []
    for _ in range(trials):
        suggestion = study.next()
        number, value = suggestion.number, bowl(suggestion.values)
        study.report(number, 0, value + 1.0)
        if suggestion.values["base_lr"] > 0.07:
            study.finish(number, Outcome.DIVERGED)
        elif number % 7 == 6:
            study.finish(number, Outcome.FAILED, "crash")
        elif value > 0.25:
            study.finish(number, Outcome.PRUNED)
        else:
            study.report(number, 1, value)
            study.finish(number, Outcome.COMPLETE)
        seen.append(suggestion.values)
    return seen


def study_of(folder: Path, sampler: str, space: Space = SPACE, **options: Any) -> SweepStudy:
    folder.mkdir(exist_ok=True)
    return SweepStudy(folder, "s", space, sampler=sampler, **{"startup_trials": 6, "seed": 3, **options})


class SamplerContract:
    """What every sampler keeps to that sweep/samplers.py makes by a name.

    class TestMySampler(SamplerContract):
        @pytest.fixture
        def sampler(self) -> str:
            return "mine"
    """

    @pytest.fixture
    def sampler(self) -> str:
        raise NotImplementedError

    def test_same_seed_same_suggestions_and_another_seed_others(self, tmp_path: Path, sampler: str) -> None:
        one, two = (search(study_of(tmp_path / name, sampler), 12) for name in ("a", "b"))
        assert one == two
        assert search(study_of(tmp_path / "c", sampler, seed=4), 12) != one

    def test_a_study_opened_anew_before_every_trial_suggests_the_same(self, tmp_path: Path, sampler: str) -> None:
        whole = search(study_of(tmp_path / "whole", sampler), 12)
        assert [search(study_of(tmp_path / "parts", sampler), 1)[0] for _ in range(12)] == whole

    def test_every_value_is_one_of_the_space_and_no_two_trials_are_equal(self, tmp_path: Path, sampler: str) -> None:
        seen = search(study_of(tmp_path, sampler), 20)
        for values in seen:
            assert SPACE.to_values(SPACE.from_values(values)) == values
        assert len({tuple(values.values()) for values in seen}) == 20

    def test_whole_numbers_categories_single_values_and_conditions(self, tmp_path: Path, sampler: str) -> None:
        study = study_of(tmp_path, sampler, MIXED)
        seen = []
        for number in range(14):
            values = study.next().values
            study.report(number, 0, values["alpha"])
            study.finish(number, Outcome.COMPLETE)
            seen.append(values)
        assert all(("weighting" in values) == (values["mode"] == "joint") for values in seen)
        assert {values["encoder.depth"] for values in seen} <= {1, 2, 3, 4}
        assert all(values["seed"] == 1 for values in seen)
        assert {values["mode"] for values in seen} == {"joint", "dynamic"}

    def test_a_space_of_one_point_gives_that_point(self, tmp_path: Path, sampler: str) -> None:
        study = study_of(tmp_path, sampler, Space({"alpha": {"values": [0.5]}, "mask_ratio": {"value": 0.6}}))
        for number in range(9):
            assert study.next().values == {"alpha": 0.5}
            study.report(number, 0, 1.0)
            study.finish(number, Outcome.COMPLETE)


class LearningSamplerContract:
    """Beside `SamplerContract`: of a sampler that models what it is told. Used as that one."""

    @pytest.fixture
    def sampler(self) -> str:
        raise NotImplementedError

    def test_it_keeps_away_from_where_trials_diverge(self, tmp_path: Path, sampler: str) -> None:
        study = study_of(tmp_path, sampler, startup_trials=12)
        diverged = []
        for number in range(40):  # where alpha is high all trials diverge, after the best first epoch of all
            values = study.next().values
            diverged.append(values["alpha"] > 0.5)
            study.report(number, 0, -9.0 if diverged[-1] else bowl(values))
            study.finish(number, Outcome.DIVERGED if diverged[-1] else Outcome.COMPLETE)
        assert sum(diverged[:12]) >= 4
        assert sum(diverged[-16:]) <= 4

    def test_it_keeps_away_from_where_trials_were_stopped_early(self, tmp_path: Path, sampler: str) -> None:
        study = study_of(tmp_path, sampler, startup_trials=12)
        stopped = []
        for number in range(40):
            values = study.next().values
            stopped.append(values["alpha"] > 0.5)
            study.report(number, 0, 2.0 + (3.0 if stopped[-1] else bowl(values)))
            if not stopped[-1]:
                study.report(number, 1, bowl(values))
            study.finish(number, Outcome.PRUNED if stopped[-1] else Outcome.COMPLETE)
        assert sum(stopped[:12]) >= 4
        assert sum(stopped[-16:]) <= 4

    def test_it_gets_nearer_to_the_best_and_nearer_than_chance(self, tmp_path: Path, sampler: str) -> None:
        trials = 240 if sampler.startswith("nsga") else 40  # generations take their time

        def late(name: str, folder: Path) -> float:
            values = [bowl(values) for values in search(study_of(folder, name), trials)][-20:]
            return sorted(values)[len(values) // 2]

        assert late(sampler, tmp_path / "model") < 0.5 * late("random", tmp_path / "random")


class SeveralMetricsContract:
    """Beside `SamplerContract`: of a sampler that optimises several metrics at once. Used as that one."""

    @pytest.fixture
    def sampler(self) -> str:
        raise NotImplementedError

    def test_several_metrics_are_optimised_at_once(self, tmp_path: Path, sampler: str) -> None:
        study = study_of(tmp_path, sampler, goals=["minimize", "maximize"])
        for number in range(14):
            values = study.next().values
            study.report(number, 0, bowl(values), values["alpha"])
            study.finish(number, Outcome.DIVERGED if values["base_lr"] > 0.05 else Outcome.COMPLETE)
        records = study.records()
        assert all(len(record.objectives) == 2 for record in records)
        assert len({tuple(record.values.values()) for record in records}) == 14
