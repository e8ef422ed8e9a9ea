"""What a confirmation shows is said with its uncertainty, and no more than it shows."""

from __future__ import annotations

import json
import math

import pytest

from sweep.candidates import Candidate, Candidates
from sweep.conclusion import Conclusion, conclude
from sweep.outcome import Outcome
from sweep.statistics import Verdict
from sweep.study import Record
from tests.confirming import SEEDS, run_of, runs_of
from tests.sweeping import tiny_spec

METRIC = tiny_spec().metric
THREE = Candidates(
    (
        Candidate("trial 0004", {"alpha": 0.7}, "0004"),
        Candidate("trial 0002", {"alpha": 0.6}, "0002"),
        Candidate("equal-weights", {"alpha": 0.5}, "0000", baseline=True),
    )
)
EQUAL = [0.9, 1.0, 1.1]


def concluded(*records: Record, candidates: Candidates = THREE) -> Conclusion:
    return conclude(METRIC, SEEDS, candidates, records)


def test_the_best_confirmed_mean_is_chosen_and_the_answer_has_its_numbers() -> None:
    conclusion = concluded(*runs_of(0.7, [0.52, 0.6, 0.71]), *runs_of(0.6, [0.81, 0.9, 1.0]), *runs_of(0.5, EQUAL))
    assert conclusion.confirmed
    assert conclusion.chosen == "trial 0004"
    assert [row.verdict for row in conclusion.rows] == ["better", "better", "baseline"]
    assert conclusion.answer == (
        "alpha 0.7: objective/value 0.61 (95 % 0.19 to 1.03, 3 seeds), "
        "0.390 better than equal weights (0.354 to 0.426): better."
    )


def test_intervals_hold_for_all_configs_at_once() -> None:
    """Three configs: means at level 1 - 0.05 / 3, two differences at 1 - 0.05 / 2 (t with 2 degrees: 7.649, 6.205)."""
    conclusion = concluded(
        *runs_of(0.7, [0.5, 0.6, 0.7]), *runs_of(0.6, [0.8, 0.9, 1.0]), *runs_of(0.5, [0.9, 1.2, 1.2])
    )
    row = conclusion.rows[0]
    assert row.mean is not None
    assert row.mean.high == pytest.approx(0.6 + 7.6488 * 0.1 / math.sqrt(3), abs=1e-4)
    assert row.gain is not None
    assert row.gain.high == pytest.approx(0.5 + 6.2053 * 0.1 / math.sqrt(3), abs=1e-4)


def test_when_no_difference_is_shown_the_answer_says_so_plainly() -> None:
    conclusion = concluded(*runs_of(0.7, [0.7, 1.2, 0.9]), *runs_of(0.6, [1.8, 1.9, 2.0]), *runs_of(0.5, EQUAL))
    assert conclusion.chosen == "trial 0004"
    assert conclusion.answer.endswith(": no difference shown.")
    assert [row.verdict for row in conclusion.rows] == ["no difference shown", "worse", "baseline"]


def test_equal_weights_that_are_best_are_named_as_such() -> None:
    conclusion = concluded(*runs_of(0.7, [1.9, 2.0, 2.1]), *runs_of(0.6, [1.8, 1.9, 2.0]), *runs_of(0.5, EQUAL))
    assert conclusion.chosen == "equal-weights"
    assert "these are the equal weights themselves" in conclusion.answer


def test_a_config_with_a_diverged_run_is_neither_better_nor_chosen_and_that_is_said() -> None:
    lucky = [run_of(0.7, 1, 0.1), run_of(0.7, 2, 0.2), run_of(0.7, 3, 0.05, Outcome.DIVERGED)]
    conclusion = concluded(*lucky, *runs_of(0.6, [0.81, 0.9, 1.0]), *runs_of(0.5, EQUAL))
    assert conclusion.chosen == "trial 0002"
    row = conclusion.rows[0]
    assert row.verdict is Verdict.NO_DIFFERENCE
    assert [run.value for run in row.runs] == [0.1, 0.2, None]
    assert "trial 0004: 1 of 3 runs diverged and have no value; it cannot be called better" in conclusion.notes[0]


def test_nothing_is_worse_than_a_baseline_that_diverged() -> None:
    base = [run_of(0.5, 1, 0.5), run_of(0.5, 2, 0.6), run_of(0.5, 3, None, Outcome.DIVERGED)]
    conclusion = concluded(*runs_of(0.7, [100.5, 100.6, 1.0]), *runs_of(0.6, [0.8, 0.9, 1.0]), *base)
    assert [row.verdict for row in conclusion.rows] == ["no difference shown", "no difference shown", "baseline"]
    assert "nothing is called worse than it" in conclusion.notes[0]


def test_a_failed_run_is_left_out_and_named() -> None:
    runs = [run_of(0.7, 1, 0.5), run_of(0.7, 2, 0.6), run_of(0.7, 3, None, Outcome.FAILED)]
    conclusion = concluded(*runs, *runs_of(0.6, [0.8, 0.9, 1.0]), *runs_of(0.5, EQUAL))
    assert conclusion.rows[0].gain is not None
    assert conclusion.rows[0].gain.n == 2
    assert "trial 0004: 1 of 3 runs failed" in conclusion.notes[0]
    assert conclusion.confirmed


def test_when_every_config_diverged_none_is_recommended() -> None:
    runs = [run_of(alpha, seed, None, Outcome.DIVERGED) for alpha in (0.5, 0.6, 0.7) for seed in SEEDS]
    conclusion = concluded(*runs)
    assert conclusion.chosen is None
    assert not conclusion.confirmed
    assert "No config can be recommended" in conclusion.answer


def test_an_unfinished_confirmation_is_no_answer_yet() -> None:
    conclusion = concluded(
        run_of(0.7, 1, 0.5), run_of(0.6, 1, 0.6), run_of(0.5, 1, 0.9), run_of(0.7, 2, 0.4, Outcome.RUNNING)
    )
    assert conclusion.runs_left == 6
    assert not conclusion.confirmed
    assert conclusion.answer.startswith("So far, with 6 runs to go: alpha 0.7: objective/value 0.5 (1 seed)")
    assert concluded().answer == "No run of the confirmation has a value yet."
    assert [row.said for row in concluded().rows] == ["not yet known", "not yet known", "baseline"]


def test_without_a_baseline_there_are_means_and_no_verdict() -> None:
    alone = Candidates((Candidate("trial 0004", {"alpha": 0.7}, "0004"),), ("No baseline: alpha is not searched.",))
    conclusion = concluded(*runs_of(0.7, [0.5, 0.6, 0.7]), candidates=alone)
    assert conclusion.rows[0].verdict is Verdict.NO_BASELINE
    assert conclusion.rows[0].gain is None
    assert conclusion.confirmed
    assert "no baseline, so no gain can be stated" in conclusion.answer


def test_runs_of_other_configs_and_seeds_do_not_count() -> None:
    others = [*runs_of(0.8, [0.0, 0.0, 0.0]), run_of(0.7, 9, 0.0)]
    runs = [*runs_of(0.7, [0.5, 0.6, 0.7]), *runs_of(0.6, [0.8, 0.9, 1.0]), *runs_of(0.5, EQUAL)]
    with_others = concluded(*others, *runs)
    assert (with_others.rows, with_others.answer) == (concluded(*runs).rows, concluded(*runs).answer)
    (note,) = with_others.notes
    assert "other seeds (9) are in confirm.csv and are not counted" in note


def test_a_config_of_which_a_run_failed_is_not_chosen_for_the_seeds_that_went_well() -> None:
    lucky = [run_of(0.7, 1, 0.1), *(run_of(0.7, seed, None, Outcome.FAILED) for seed in (2, 3))]
    conclusion = concluded(*lucky, *runs_of(0.6, [0.2, 0.9, 1.0]), *runs_of(0.5, EQUAL))
    assert conclusion.chosen == "trial 0002"
    assert "trial 0004: 2 of 3 runs failed, so it is not chosen" in conclusion.notes[0]


def test_before_all_have_run_configs_are_compared_on_the_seeds_that_they_share() -> None:
    ahead = [run_of(0.7, 1, 0.5), run_of(0.7, 2, 9.0)]
    conclusion = concluded(*ahead, run_of(0.6, 1, 0.6), run_of(0.5, 1, 0.9))
    assert conclusion.chosen == "trial 0004"


def test_of_a_maximised_metric_the_highest_mean_is_chosen() -> None:
    skill = tiny_spec(metric={"name": "eval/static_skill", "goal": "maximize"}).metric
    runs = [*runs_of(0.7, [0.5, 0.6, 0.7]), *runs_of(0.6, [0.8, 0.9, 1.0]), *runs_of(0.5, [0.1, 0.2, 0.3])]
    assert conclude(skill, SEEDS, THREE, runs).chosen == "trial 0002"


def test_of_two_runs_of_a_pair_the_first_that_ended_counts() -> None:
    for again in (
        [run_of(0.7, 1, None, Outcome.RUNNING), run_of(0.7, 1, 0.4)],
        [run_of(0.7, 1, 0.4), run_of(0.7, 1, 9.0)],
    ):
        first = concluded(*again).rows[0].runs[0]
        assert (first.outcome, first.value) == (Outcome.COMPLETE, 0.4)


def test_a_conclusion_reads_back_from_its_file() -> None:
    conclusion = concluded(*runs_of(0.7, [0.5, 0.6, 0.7]), run_of(0.5, 1, 1.0))
    assert Conclusion.model_validate_json(json.dumps(conclusion.model_dump(mode="json"))) == conclusion
