"""What a search found is trained again with fresh seeds, and only that is called the answer."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from model.config import TrainConfig
from model.configfile import load_yaml, validated
from model.errors import ConfigError
from model.metrics import Level
from model.sinks import CsvSink, Event, read_csv
from sweep.conclusion import Conclusion
from sweep.confirm import Confirmation
from sweep.findings import write_best, write_conclusion
from sweep.outcome import Outcome
from sweep.plan import make_plan
from sweep.report.page import write_report
from sweep.results import ResultsFolder
from sweep.study import SweepStudy
from sweep.terminal import print_conclusion, print_next_steps, print_plan
from sweep.trial_table import TrialTable
from tests.confirming import SEARCH, confirm_spec, trial
from tests.inline import Inline, looking_at_each_update, sweep
from tests.sweeping import table, tiny_spec, trial_folders, write_spec
from tests.test_report import Page


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    return ResultsFolder(tmp_path)


def run_pairs(confirmation: Confirmation, count: int | None = None) -> list[tuple[str | None, int]]:
    """Run so many pairs, or all; each gets a value of its own."""
    pairs = []
    for _ in range(confirmation.to_run if count is None else count):
        suggestion = confirmation.next()
        pairs.append((suggestion.preset, suggestion.values["seed"]))
        confirmation.report(suggestion.number, 2, suggestion.values["alpha"] + suggestion.values["seed"] / 100)
        confirmation.finish(suggestion.number, Outcome.COMPLETE)
    return pairs


def test_pairs_are_run_seed_by_seed_under_ids_of_their_own(folder: ResultsFolder) -> None:
    confirmation = Confirmation(folder, confirm_spec(1, (5, 7)), SEARCH)
    configs = ["trial 0004", "equal-weights", "balanced-weights"]
    assert confirmation.num_runs == confirmation.to_run == 6
    assert run_pairs(confirmation) == [(name, seed) for seed in (5, 7) for name in configs]
    assert [record.trial for record in confirmation.records()] == [f"c{number:04d}" for number in range(6)]
    assert confirmation.to_run == 0
    conclusion = confirmation.conclude()
    assert conclusion.confirmed
    assert conclusion.chosen == "equal-weights"
    assert [run.trial for run in conclusion.rows[0].runs] == ["c0000", "c0003"]


def test_the_search_in_the_same_journal_is_left_alone(folder: ResultsFolder) -> None:
    spec = confirm_spec()
    search = SweepStudy(folder.path, spec.name, spec.space, sampler="random")
    number = search.next().number
    search.report(number, 0, 0.5)
    search.finish(number, Outcome.COMPLETE)
    run_pairs(Confirmation(folder, spec, search.records()))
    assert [record.trial for record in search.records()] == ["0000"]


def test_what_was_interrupted_goes_on_under_its_id_and_nothing_is_run_twice(folder: ResultsFolder) -> None:
    first = Confirmation(folder, confirm_spec(1), SEARCH)
    before = run_pairs(first, 4)
    lost = first.next()
    again = Confirmation(folder, confirm_spec(1), SEARCH)
    assert again.to_run == 5
    assert again.next() == lost
    again.report(lost.number, 2, 0.5)
    again.finish(lost.number, Outcome.COMPLETE)
    pairs = [*before, (lost.preset, lost.values["seed"]), *run_pairs(again)]
    assert len(pairs) == len(set(pairs)) == 9
    assert again.conclude().confirmed


def test_more_seeds_and_more_configs_run_only_what_is_missing(folder: ResultsFolder) -> None:
    run_pairs(Confirmation(folder, confirm_spec(1, (1, 2)), SEARCH))
    wider = Confirmation(folder, confirm_spec(2, (1, 2, 3)), SEARCH)
    new = ["trial 0004", "trial 0002", "equal-weights", "balanced-weights"]
    assert run_pairs(wider) == [("trial 0002", 1), ("trial 0002", 2), *((name, 3) for name in new)]
    assert wider.conclude().confirmed


def test_runs_stay_valid_for_their_configs_when_more_search_trials_change_the_best(folder: ResultsFolder) -> None:
    run_pairs(Confirmation(folder, confirm_spec(1, (1, 2)), SEARCH))
    longer = Confirmation(folder, confirm_spec(1, (2, 1)), [*SEARCH, trial(7, 0.01, 0.25)])
    assert run_pairs(longer) == [("trial 0007", 2), ("trial 0007", 1)]
    conclusion = longer.conclude()
    assert [row.name for row in conclusion.rows] == ["trial 0007", "equal-weights", "balanced-weights"]
    assert [run.trial for run in conclusion.rows[1].runs] == ["c0004", "c0001"]


def test_going_on_with_fewer_seeds_finishes_at_once(folder: ResultsFolder) -> None:
    run_pairs(Confirmation(folder, confirm_spec(1), SEARCH), 6)  # two whole seeds
    assert Confirmation(folder, confirm_spec(1, (1, 2)), SEARCH).to_run == 0


def test_a_driver_killed_while_it_enqueued_costs_no_run_and_doubles_none(folder: ResultsFolder) -> None:
    killed = Confirmation(folder, confirm_spec(1), SEARCH)
    values = {"alpha": 0.7, "base_lr": 0.03, "seed": 1}
    killed._study.enqueue_trial(killed.space.from_values(values), user_attrs={"preset": "trial 0004"})
    pairs = run_pairs(Confirmation(folder, confirm_spec(1), SEARCH))
    assert len(pairs) == len(set(pairs)) == 9


def test_a_crashed_run_is_not_started_again_by_the_next_session(folder: ResultsFolder) -> None:
    confirmation = Confirmation(folder, confirm_spec(1), SEARCH)
    confirmation.finish(confirmation.next().number, Outcome.FAILED, "out of memory")
    run_pairs(confirmation)
    assert Confirmation(folder, confirm_spec(1), SEARCH).to_run == 0


# --- what is said and written ---------------------------------------------------------------------------------------


def printed(say: Callable[[Console], None]) -> str:
    """What a terminal of 80 columns shows, in one line."""
    console = Console(file=io.StringIO(), record=True, width=80)
    say(console)
    return " ".join(console.export_text().split())


def test_the_plan_tells_the_cost_and_what_the_seeds_can_show(folder: ResultsFolder) -> None:
    plan = make_plan(confirm_spec())
    text = printed(lambda console: print_plan(plan, folder, console))
    assert "at most 4 configs x 3 seeds = 12 more trainings of all epochs" in text
    assert "from 4.4 times its standard deviation" in text


@pytest.mark.parametrize(("first", "words"), [(1, "after 1 epoch,"), (2, "after 2 epochs,")])
def test_the_plan_says_when_a_trial_is_first_stopped(folder: ResultsFolder, first: int, words: str) -> None:
    plan = make_plan(tiny_spec(early_terminate={"type": "hyperband", "min_iter": first, "eta": 3}))
    assert words in printed(lambda console: print_plan(plan, folder, console))


def test_the_terminal_has_a_line_for_each_config_and_the_answer(folder: ResultsFolder) -> None:
    confirmation = Confirmation(folder, confirm_spec(9), SEARCH)
    run_pairs(confirmation)
    conclusion = confirmation.conclude()
    text = printed(lambda console: print_conclusion(conclusion, console))
    for words in (
        "equal-weights 3 0.520 - baseline 0.463 to 0.577",
        "balanced-weights",
        "Bonferroni",
        "note: confirm.top_k",
    ):
        assert words in text
    assert text.endswith(conclusion.answer)


def test_when_nothing_trained_to_its_end_there_is_nothing_to_confirm(folder: ResultsFolder) -> None:
    text = printed(lambda console: print_next_steps(confirm_spec(), folder, None, False, console))
    assert "nothing to confirm: no trial trained to its end" in text


def test_best_yaml_is_the_confirmed_config_and_says_with_what_numbers(folder: ResultsFolder) -> None:
    spec = confirm_spec(1)
    confirmation = Confirmation(folder, spec, SEARCH)
    run_pairs(confirmation)
    conclusion = confirmation.conclude()
    config = write_best(spec, folder, SEARCH[4], conclusion)
    text = folder.best_file.read_text()
    assert text.startswith(f"# confirmed: {conclusion.answer}\n")
    assert config.weights == (0.5, 0.5)
    assert validated(TrainConfig, load_yaml(folder.best_file), "best.yaml") == config


def test_best_yaml_and_the_terminal_call_an_unconfirmed_pick_just_that(folder: ResultsFolder) -> None:
    spec = tiny_spec()
    best = write_best(spec, folder, SEARCH[4])
    pick_only = "picked by the search from one seed, not confirmed"
    assert folder.best_file.read_text().startswith(f"# {pick_only}; to confirm: ")
    text = printed(lambda console: print_next_steps(spec, folder, best, False, console))
    assert "--set confirm='{top_k: 2, seeds: [1, 2, 3, 4, 5]}' --resume" in text


def test_unfinished_confirmation_leaves_the_searchs_pick_in_best_yaml(folder: ResultsFolder) -> None:
    spec = confirm_spec(1)
    confirmation = Confirmation(folder, spec, SEARCH)
    run_pairs(confirmation, 3)
    write_best(spec, folder, SEARCH[4], confirmation.conclude())
    assert folder.best_file.read_text().startswith("# picked by the search from one seed, not confirmed yet")


def concluded_folder(folder: ResultsFolder, runs: int | None = None) -> Conclusion:
    """Leaves what a sweep of these trials leaves for its report."""
    spec = confirm_spec(1)
    folder.open(spec, resume=False)
    trials = TrialTable(folder, spec)
    for record in SEARCH:
        sink = CsvSink(folder.trial_folder(record.trial))
        if record.value is not None:
            sink.log(Event(Level.EPOCH, {"epoch": 0, "objective/value": record.value}))
        sink.close(0)
        trials.update(record)
    trials.write()
    confirmation = Confirmation(folder, spec, SEARCH)
    run_pairs(confirmation, runs)
    conclusion = confirmation.conclude()
    folder.close()
    return write_conclusion(folder, conclusion)


def test_the_report_has_the_answer_on_top_and_each_seeds_value(folder: ResultsFolder) -> None:
    conclusion = concluded_folder(folder)
    page = Page(write_report(folder.path))
    assert f"Confirmed with fresh seeds: {conclusion.answer}" in page.words
    assert '<td class="n">0.520<td class="n">0.476 to 0.564' in page.html
    traces, _ = page.plots["objective/value / config"]
    assert len(traces["a seed's run"]["y"]) == 9
    means = traces["mean and 95 % interval"]
    assert means["x"] == ["trial 0004", "equal-weights", "balanced-weights"]
    assert means["y"] == pytest.approx([0.72, 0.52, 0.77])
    assert all(means["error_y"]["array"])


def test_the_report_of_an_unfinished_confirmation_calls_the_pick_a_pick(folder: ResultsFolder) -> None:
    concluded_folder(folder, runs=4)
    words = Page(write_report(folder.path)).words
    assert "It is picked by the search from one seed, not confirmed yet" in words
    assert "So far, with 5 runs to go" in words


def test_a_damaged_conclusion_is_named_in_the_report(folder: ResultsFolder) -> None:
    concluded_folder(folder)
    folder.conclusion_file.write_text("{}")
    words = Page(write_report(folder.path)).words
    assert "confirm.json: cannot be read" in words
    assert "not confirmed" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"confirm": {"top_k": 0, "seeds": [1, 2]}}, "top_k"),
        ({"confirm": {"top_k": 1, "seeds": [1]}}, "seeds"),
        ({"confirm": {"top_k": 1, "seeds": [1, 1]}}, "named twice"),
        ({"confirm": {"top_k": 1, "seeds": [0, 1]}}, "the seed that the search itself trains with"),
        ({"search": {"pbt": {}, "startup_trials": 2}}, "no config to train again"),
        ({"parameters": {"alpha": {"min": 0.1, "max": 0.9}, "seed": {"values": [1, 2]}}}, "picked for luck"),
    ],
)
def test_a_confirmation_that_cannot_be_is_refused_with_its_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_spec(**{"confirm": {"top_k": 1, "seeds": [1, 2]}, **changes})


# --- whole sweeps ---------------------------------------------------------------------------------------------------


def test_a_sweep_is_confirmed_later_and_its_answer_is_best_yaml(tmp_path: Path) -> None:
    spec, results = write_spec(tmp_path, run_cap=3), tmp_path / "results"
    done = sweep(spec, results)
    assert done.code == 0, done.out + done.err
    assert "best.yaml: picked by the search from one seed, not confirmed; to confirm: " in done.out
    assert not (results / "confirm.csv").exists()
    done = sweep(spec, results, "--set", "confirm={top_k: 1, seeds: [3, 4]}", "--resume")
    assert done.code == 0, done.out + done.err
    conclusion = Conclusion.model_validate_json((results / "confirm.json").read_text())
    assert conclusion.confirmed
    assert conclusion.answer in done.out
    rows = table(results, "confirm.csv")
    assert len(rows) == 2 * len(conclusion.rows)
    assert [row["seed"] for row in rows] == ["3"] * len(conclusion.rows) + ["4"] * len(conclusion.rows)
    values = {run.trial: run.value for row in conclusion.rows for run in row.runs}
    for row in rows:
        folder = results / "trials" / row["trial"]
        assert load_yaml(folder / "config.yaml")["seed"] == int(row["seed"])
        epochs = read_csv(folder / "epoch.csv")
        assert len(epochs) == int(row["epochs_done"]) == 3
        assert values[row["trial"]] == epochs[-1]["objective/value"] == float(row["objective/value"])
    assert (results / "best.yaml").read_text().startswith(f"# confirmed: {conclusion.answer}")
    assert "Confirmed with fresh seeds" in (results / "report.html").read_text()
    again = sweep(spec, results, "--set", "confirm={top_k: 1, seeds: [3, 4]}", "--resume")
    assert again.code == 0, again.out + again.err
    assert again.engine.order == []
    assert table(results, "confirm.csv") == rows


def test_a_confirmation_that_is_interrupted_goes_on_and_trains_nothing_twice(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, run_cap=2, confirm={"top_k": 1, "seeds": [1, 2]})
    results = tmp_path / "results"

    def ctrl_c(trial: str, epochs: int) -> None:
        if (trial, epochs) == ("c0001", 1):
            os.kill(os.getpid(), signal.SIGINT)

    with looking_at_each_update():
        done = sweep(spec, results, engine=Inline(before_epoch=ctrl_c))
    assert done.code == 130, done.out + done.err
    assert "So far" in done.out
    assert "not confirmed yet" in (results / "best.yaml").read_text()
    assert [row["state"] for row in table(results, "confirm.csv")] == ["complete", "running"]
    before = {folder.name: (folder / "batch.csv").read_bytes() for folder in trial_folders(results)}
    assert len(read_csv(results / "trials/c0001/batch.csv")) in range(6, 12)
    done = sweep(spec, results, "--resume")
    assert done.code == 0, done.out + done.err
    rows = table(results, "confirm.csv")
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert len({(row["alpha"], row["base_lr"], row["seed"]) for row in rows}) == 4
    after = {folder.name: (folder / "batch.csv").read_bytes() for folder in trial_folders(results)}
    assert after.keys() == {"0000", "0001", "c0000", "c0001", "c0002", "c0003"}
    assert all(after[name].startswith(rows) for name, rows in before.items())
    assert all(len(read_csv(folder / "batch.csv")) == 3 * 6 for folder in trial_folders(results))
    assert (results / "best.yaml").read_text().startswith("# confirmed: ")
