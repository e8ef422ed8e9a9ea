"""sweep/report/answer.py: the answer names gains over both presets, with what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reporting import COMPLETE, FAILED, Ending, sweep_folder
from specs import ALPHA, make

from sweep.candidates import pick
from sweep.conclusion import conclude
from sweep.findings import write_conclusion
from sweep.report.answer import answer
from sweep.report.data import read_results
from sweep.results import ResultsFolder
from sweep.study import Outcome, Record

SEEDS = (1, 2, 3)


def told(folder: Path) -> str:
    return answer(read_results(folder))


def confirmed(folder: Path, *values: tuple[float | None, ...], done: int = 3, **content: Any) -> str:
    """The answer of a sweep whose trial 0002 is the best, confirmed with these values.

    Args:
        values: of the runs of trial 0002, equal weights and balanced weights, by seed; None of one that diverged.
        done: runs of each that have ended.
    """
    spec = make(confirm={"top_k": 1, "seeds": SEEDS}, **content)
    made = sweep_folder(folder, *(Ending(COMPLETE, (value,)) for value in (0.9, 0.8, 0.7)), spec=spec)
    results = read_results(made)
    candidates = pick(spec, [trial.record for trial in results.trials])
    records = [
        Record(
            number=number,
            trial=f"c{number:04d}",
            values=candidate.values | {"seed": seed},
            preset=None,
            outcome=Outcome.DIVERGED if value is None else COMPLETE,
            value=value,
            epochs=8,
            reason=None,
        )
        for candidate, row in zip(candidates.configs, values, strict=True)
        for number, (seed, value) in enumerate(zip(SEEDS[:done], row, strict=False))
    ]
    write_conclusion(ResultsFolder(made), conclude(spec.metric, SEEDS, candidates, records))
    return told(made)


def test_unconfirmed_best_is_compared_with_both_presets_and_called_no_proof(tmp_path):
    text = told(sweep_folder(tmp_path / "r", *(Ending(COMPLETE, (value,)) for value in (1.0, 0.8, 0.5))))
    assert "That is better by 0.5 (50.0%) than the equal-weights preset (trial 0000: 1)." in text
    assert "It is better by 0.3 (37.5%) than the balanced-weights preset (trial 0001: 0.8)." in text
    assert text.count("One seed each is no proof") == 1
    assert "to confirm: the same command with --set confirm=" in text


def test_best_that_is_the_balanced_preset_is_called_that(tmp_path):
    text = told(sweep_folder(tmp_path / "r", Ending(COMPLETE, (1.0,)), Ending(COMPLETE, (0.8,))))
    assert "It is the balanced-weights preset itself." in text


def test_preset_that_failed_gives_no_gain(tmp_path):
    endings = [Ending(COMPLETE, (1.0,)), Ending(FAILED, reason="killed"), Ending(COMPLETE, (0.5,))]
    text = told(sweep_folder(tmp_path / "r", *endings))
    assert "The balanced-weights preset (trial 0001) is failed, so no gain over it can be stated." in text
    assert "better by 0.5" in text


def test_confirmed_answer_has_intervals_against_both_presets_and_says_how_sure_it_is(tmp_path):
    text = confirmed(tmp_path / "r", (0.50, 0.51, 0.49), (0.90, 0.905, 0.893), (0.80, 0.812, 0.788))
    assert text.startswith("Confirmed with fresh seeds: ")
    assert "better than equal weights (0.3" in text
    # differences 0.3, 0.302, 0.298: mean 0.3, t(0.9875, 2) * 0.002 / sqrt(3) = 0.0072
    assert "Against the balanced weights it is 0.3000 better (95 % 0.2928 to 0.3072): better." in text
    assert "How sure: the interval of the difference to equal weights leaves out 0" in text
    assert "One seed" not in text


def test_difference_that_seeds_do_not_show_is_not_called_one(tmp_path):
    text = confirmed(tmp_path / "r", (0.5, 0.9, 0.7), (0.8, 0.7, 0.75), (0.8, 0.7, 0.75))
    assert "How sure: 3 seeds cannot tell it from equal weights" in text
    assert "no difference shown" in text


def test_equal_weights_that_are_confirmed_have_no_gain_over_themselves(tmp_path):
    text = confirmed(tmp_path / "r", (0.9, 0.9, 0.91), (0.5, 0.51, 0.5), (0.8, 0.8, 0.81))
    assert "these are the equal weights themselves" in text
    assert "How sure" not in text


def test_confirmation_that_is_under_way_is_called_that_after_the_search_s_pick(tmp_path):
    text = confirmed(tmp_path / "r", (0.5,), (0.9,), (0.8,), done=1)
    assert "Trial 0002 is the best of the 3 trials" in text
    assert "not confirmed yet: the same command with --resume goes on" in text
    assert "So far, with 6 runs to go" in text


def test_confirmation_in_which_all_configs_diverged_sends_nobody_to_resume_it(tmp_path):
    text = confirmed(tmp_path / "r", (0.5, None, 0.5), (None, 0.9, 0.9), (0.8, 0.8, None))
    assert "The confirmation is done. No config can be recommended" in text
    assert "--resume" not in text


@pytest.mark.parametrize(("value", "at_end"), [(0.1, True), (0.2, False)])
def test_best_at_the_end_of_a_range_asks_for_a_wider_one(tmp_path, value, at_end):
    spec = make(parameters=ALPHA)
    presets = (("equal-weights", {"alpha": 0.5}), (None, {"alpha": value}))
    endings = [Ending(COMPLETE, (0.9,)), Ending(COMPLETE, (0.5,))]
    text = told(sweep_folder(tmp_path / "r", *endings, presets=presets, spec=spec))
    assert ("alpha lies at an end of the range: the best may lie beyond, so widen parameters.alpha." in text) is at_end
