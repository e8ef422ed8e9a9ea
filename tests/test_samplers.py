"""Our samplers: each keeps to the contract, and what `auto` is, how many trials are seen, what a stopped one counts."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.blocks import SINGLE_OBJECTIVE, Sampler
from sweep.outcome import Outcome
from sweep.sampler_view import BEST_SEEN, DIVERGED, as_complete, thinned
from sweep.samplers import GP_TRIALS, best_for
from sweep.space import Space
from sweep.study import Values
from tests.contracts.samplers import (
    MIXED,
    SPACE,
    LearningSamplerContract,
    SamplerContract,
    SeveralMetricsContract,
    bowl,
    search,
    study_of,
)

SAMPLERS: tuple[str, ...] = get_args(Sampler)
MODELS = ("tpe", "gp", "cmaes", "nsgaii", "nsgaiii")  # what learns from values; auto is gp and later tpe
SEVERAL = tuple(name for name in SAMPLERS if name not in SINGLE_OBJECTIVE)


class TestEverySampler(SamplerContract):
    @pytest.fixture(params=SAMPLERS)
    def sampler(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestModels(LearningSamplerContract):
    @pytest.fixture(params=MODELS)
    def sampler(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


class TestSeveralMetrics(SeveralMetricsContract):
    @pytest.fixture(params=SEVERAL)
    def sampler(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)


def test_auto_models_few_numbers_by_a_gaussian_process_and_many_trials_or_categories_by_tpe() -> None:
    numbers, mixed = SPACE.distributions, MIXED.distributions
    assert [best_for(numbers, number) for number in (0, GP_TRIALS - 1, GP_TRIALS)] == ["gp", "gp", "tpe"]
    assert best_for(mixed, 0) == "tpe"
    assert best_for(numbers, 0, num_metrics=4) == "tpe"
    single = Space({"alpha": {"min": 0.1, "max": 0.9}, "mode": {"values": ["joint"]}}).distributions
    assert best_for(single, 0) == "gp"


@pytest.mark.parametrize("trials", [GP_TRIALS - 1, GP_TRIALS])
def test_auto_suggests_what_gp_would_for_its_first_trials_and_what_tpe_would_later(tmp_path: Path, trials: int) -> None:
    def next_of(sampler: str) -> Values:
        study = study_of(tmp_path / sampler, sampler)
        for number in range(trials):  # the same trials, whoever is asked next
            study.enqueue(None, {"alpha": 0.1 + number / 200, "base_lr": 0.01, "mask_ratio": 0.6})
            study.next()
            study.report(number, 0, abs(number - 50) / 50)
            study.finish(number, Outcome.COMPLETE)
        return study.next().values

    auto, gp, tpe = (next_of(name) for name in ("auto", "gp", "tpe"))
    assert gp != tpe
    assert auto == (gp if trials < GP_TRIALS else tpe)


def test_several_workers_at_once_are_not_given_neighbouring_points(tmp_path: Path) -> None:
    """The constant liar of TPE: without it all of these lie within 0.07 of each other, beside the best trial."""
    study = study_of(tmp_path, "tpe", Space({"alpha": {"min": 0.1, "max": 0.9}}), startup_trials=4)
    for number in range(20):
        study.enqueue(None, {"alpha": 0.1 + 0.8 * number / 20})
        study.next()
        study.report(number, 0, abs(number / 20 - 0.3))
        study.finish(number, Outcome.COMPLETE)
    together = [study.next().values["alpha"] for _ in range(24)]
    assert max(together) - min(together) > 0.3


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_takes_over_after_the_startup_trials_and_not_before(tmp_path: Path, sampler: str) -> None:
    def suggested(folder: Path, sign: float) -> list[Values]:
        study = study_of(folder, sampler, startup_trials=4)
        seen = []
        for number in range(5):
            seen.append(study.next().values)
            study.report(number, 0, sign * bowl(seen[-1]))
            study.finish(number, Outcome.COMPLETE)
        return seen

    one, other = suggested(tmp_path / "one", 1.0), suggested(tmp_path / "other", -1.0)
    assert one[:4] == other[:4]
    assert one[4] != other[4]


def test_quasi_random_points_fill_each_axis_evenly(tmp_path: Path) -> None:
    seen = search(study_of(tmp_path, "qmc"), 16)
    alphas = {int((values["alpha"] - 0.1) / 0.8 * 16) for values in seen}
    rates = {int((math.log10(values["base_lr"]) + 3) / 2 * 16) for values in seen}
    assert alphas == rates == set(range(16))


def ended(*steps: dict[int, float]) -> list[FrozenTrial]:
    """Complete trials of these values by epoch."""
    return numbered([create_trial(value=values[max(values)], intermediate_values=values) for values in steps])


def numbered(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def stopped(steps: dict[int, float], **more: Any) -> FrozenTrial:
    return create_trial(state=TrialState.PRUNED, intermediate_values=steps, **more)


def test_a_stopped_trial_is_told_with_the_usual_change_of_complete_ones() -> None:
    complete = ended({0: 5.0, 1: 3.0}, {0: 4.0, 1: 3.0}, {0: 9.0, 1: 3.0})  # it falls by 2, as a rule
    assert as_complete([*complete, stopped({0: 7.0})], [StudyDirection.MINIMIZE])[3].value == 5.0


@pytest.mark.parametrize(("direction", "worst"), [(StudyDirection.MINIMIZE, 3.0), (StudyDirection.MAXIMIZE, 1.0)])
def test_a_diverged_trial_is_told_as_bad_as_the_worst(direction: StudyDirection, worst: float) -> None:
    lucky = 0.1 if direction == StudyDirection.MINIMIZE else 9.0
    trials = [*ended({0: 1.0}, {0: 3.0}), stopped({0: lucky}, constraints={DIVERGED: 1.0})]
    assert as_complete(trials, [direction])[2].value == worst


def test_a_stopped_trial_is_never_told_as_better_than_the_best_complete_one() -> None:
    complete = ended({0: 2.0, 1: 1.0}, {0: 5.0, 1: 1.2})
    seen = as_complete([*complete, stopped({0: 2.5})], [StudyDirection.MINIMIZE])
    assert seen[2].value == 1.0  # 2.5 less the usual fall of 2.4 would be 0.1


@pytest.mark.parametrize(
    ("direction", "best"),
    [(StudyDirection.MINIMIZE, range(BEST_SEEN)), (StudyDirection.MAXIMIZE, range(1000 - BEST_SEEN, 1000))],
)
def test_of_very_many_trials_the_best_and_an_even_choice_of_the_others_are_seen(
    direction: StudyDirection, best: range
) -> None:
    trials = numbered([create_trial(value=float((7 * number) % 1000)) for number in range(1000)])
    seen = thinned(trials, 200, [direction])
    assert len(seen) == 200
    assert {trial.value for trial in seen} >= {float(value) for value in best}
    assert [trial.number for trial in seen] == sorted(trial.number for trial in seen)
    assert max(b.number - a.number for a, b in pairwise(seen)) < 20
