"""Ranking a search anew: the sweep's own numbers come back to the last bit, another objective ranks otherwise."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import TrainConfig
from model.configfile import load_yaml
from model.errors import DataError
from model.sinks import read_csv
from sweep.objective import ObjectiveSettings, score
from sweep.outcome import Outcome
from sweep.rescore import load_specs, main
from sweep.rescoring import Rescoring, rescore
from sweep.scored import Ledger, past_trials, read_trial
from tests.inline import sweep
from tests.past_sweeps import Past, past_sweep, write_trial
from tests.sweeping import TINY_TRAINER, tiny_content, tiny_spec

SPEC = tiny_spec()
TRIALS = tuple(Past({"alpha": 0.2 + 0.1 * n, "base_lr": 0.02 * (n + 1)}) for n in range(6))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not folded."""
    monkeypatch.setenv("COLUMNS", "200")


def rescored(results: Path, *overrides: str) -> Rescoring:
    return rescore(results, *load_specs(results, overrides))


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error that the command ends with."""
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def prints(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says where all is well, in one line."""
    assert main([*map(str, arguments)]) == 0
    return " ".join(capsys.readouterr().out.split())


def objectives() -> st.SearchStrategy[ObjectiveSettings]:
    weight = st.sampled_from([0.0, 0.5, 2.0]) | st.floats(0, 10)
    return st.builds(
        ObjectiveSettings,
        loss=st.sampled_from(["reference", "train"]),
        contribution_weight=weight,
        ratio_weight=weight,
        target=st.floats(0.01, 0.99),
        settle_epochs=st.integers(0, 5),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six complete trials, a pruned and a diverged one."""
    more = (
        Past({"alpha": 0.85, "base_lr": 0.2}, Outcome.PRUNED, epochs=1, last={"eval/reference_loss": 1e-6}),
        Past({"alpha": 0.15, "base_lr": 0.3}, Outcome.DIVERGED, epochs=2, nan_in="batch"),
    )
    return past_sweep(tmp_path_factory.mktemp("rescore") / "results", SPEC, *TRIALS, *more)


# --- the same numbers ---


def test_without_set_every_stored_value_comes_back_to_the_last_bit(results: Path) -> None:
    outcome = rescored(results)
    assert all(trial.new == trial.old and trial.new_rank == trial.old_rank for trial in outcome.trials)
    for trial in outcome.trials:
        stored = read_csv(results / "trials" / trial.trial / "epoch.csv")[-1]["objective/value"]
        assert trial.new == (None if trial.outcome is Outcome.DIVERGED else (stored,))
    assert outcome.correlation == pytest.approx(1)


@settings(max_examples=25)
@given(own=objectives(), other=objectives(), epochs=st.integers(1, 6))
def test_a_trial_scores_under_any_settings_as_if_it_had_run_under_them(
    tmp_path_factory: pytest.TempPathFactory, own: ObjectiveSettings, other: ObjectiveSettings, epochs: int
) -> None:
    spec = tiny_spec(objective=own.model_dump())
    folder = tmp_path_factory.mktemp("trial") / "0000"
    write_trial(folder, spec, Past({"alpha": 0.5}, epochs=epochs), seed=epochs)
    rows, batches = read_csv(folder / "epoch.csv"), read_csv(folder / "batch.csv")
    trial = read_trial(folder, Ledger())
    assert [r["objective/value"] for r in trial.scored(own).reports] == [r["objective/value"] for r in rows]
    for epoch, report in enumerate(trial.scored(other).reports):
        expected = score(rows[: epoch + 1], batches, other)
        assert {name: report[name] for name in expected} == expected


def test_the_csv_of_all_trials_holds_the_very_numbers(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranks.csv"
    assert main([str(results), "--set", "objective.ratio_weight=0", "--out", str(out)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    outcome = rescored(results, "objective.ratio_weight=0")
    assert len(rows) == len(TRIALS) + 2
    for row, trial in zip(rows, outcome.trials, strict=True):
        assert row["trial"] == trial.trial
        assert float(row["alpha"]) == trial.values["alpha"]
        if trial.new:
            assert float(row["new/objective/value"]) == trial.new[0]
            parts = [float(row[f"objective/{name}"]) for name in ("loss", "imbalance")]
            assert trial.new[0] == parts[0] + 0.5 * parts[1]


# --- another ranking ---


def test_another_objective_ranks_by_its_own_values(results: Path) -> None:
    outcome = rescored(results, "objective.ratio_weight=0", "objective.contribution_weight=0")
    complete = [trial for trial in outcome.trials if trial.outcome is Outcome.COMPLETE]
    values = [trial.new[0] for trial in complete if trial.new]
    assert values == sorted(values)
    assert [trial.new_rank for trial in complete] == [1, 2, 3, 4, 5, 6]
    assert values == [trial.parts["objective/loss"] for trial in complete]


def test_the_rank_correlation_is_that_of_spearman_over_complete_trials(tmp_path: Path) -> None:
    spec = tiny_spec(metric={"name": "eval/loss_static"})
    places = [(0, 1), (1, 0), (2, 2), (3, 4), (4, 3)]
    lasts = [{"eval/loss_static": float(a), "eval/loss_dynamic": float(b)} for a, b in places]
    pruned = Past({"alpha": 0.5}, Outcome.PRUNED, epochs=1, last={"eval/loss_static": -9.0, "eval/loss_dynamic": 9.0})
    results = past_sweep(tmp_path / "r", spec, *(Past({"alpha": 0.5}, last=last) for last in lasts), pruned)
    # 1 - 6 * sum of squared rank differences / (n (n^2 - 1))
    assert rescored(results, "metric.name=eval/loss_dynamic").correlation == pytest.approx(1 - 6 * 4 / (5 * 24))


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_another_metric_ranks_by_its_goal(results: Path, goal: str) -> None:
    outcome = rescored(results, "metric.name=eval/pred_skill", f"metric.goal={goal}")
    values = [trial.new[0] for trial in outcome.trials if trial.new_rank and trial.new]
    assert len(values) == 6
    assert values == sorted(values, reverse=goal == "maximize")


def test_turning_the_goal_round_turns_no_rank_correlation_round(tmp_path: Path) -> None:
    losses = [{"eval/loss_static": n, "eval/static_skill": 1.0 - n} for n in range(4)]
    spec = tiny_spec(metric={"name": "eval/loss_static"})
    results = past_sweep(tmp_path / "r", spec, *(Past({"alpha": 0.5}, last=last) for last in losses))
    outcome = rescored(results, "metric.name=eval/static_skill", "metric.goal=maximize")
    assert outcome.correlation == pytest.approx(1)
    assert [trial.trial for trial in outcome.best] == [trial.trial for trial in outcome.old_best] == ["0000"]


def test_the_training_loss_can_be_the_loss_and_invites_the_usual_warning(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = rescored(results, "objective.loss=train")
    for trial in outcome.trials:
        if trial.outcome is Outcome.COMPLETE:
            rows = read_csv(results / "trials" / trial.trial / "epoch.csv")
            assert trial.parts["objective/loss"] == min(row["epoch/train_loss"] for row in rows)
    assert "note: objective.loss: train does not compare" in prints(capsys, results, "--set", "objective.loss=train")


def test_summary_best_loss_can_be_the_metric(results: Path) -> None:
    outcome = rescored(results, "metric.name=summary/best_loss")
    rows = read_csv(results / "trials" / outcome.best[0].trial / "epoch.csv")
    assert outcome.best[0].new == (rows[-1]["epoch/best_loss_so_far"],)


def test_a_pruned_trial_is_shown_without_a_rank_however_good_it_was(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = next(trial for trial in rescored(results).trials if trial.outcome is Outcome.PRUNED)
    assert pruned.new is not None
    assert pruned.new_rank is pruned.old_rank is None
    shown = prints(capsys, results, "--set", "objective.ratio_weight=0")
    assert "- - 0006 stopped early" in shown
    assert "Another objective would have stopped others" in shown


def test_a_diverged_trial_has_no_value_under_any_metric(results: Path) -> None:
    for overrides in ((), ("metric.name=eval/loss_static",)):
        diverged = next(t for t in rescored(results, *overrides).trials if t.outcome is Outcome.DIVERGED)
        assert diverged.new is diverged.old is diverged.new_rank is None


def test_the_terminal_says_which_trial_is_best_now_and_was_before(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = rescored(results).best[0].trial
    shown = prints(capsys, results)
    assert f"best: trial {best}, as before" in shown
    assert "(Spearman): 1.000" in shown
    other = rescored(results, "metric.name=objective/value", "metric.goal=maximize").best[0].trial
    shown = prints(capsys, results, "--set", "metric.goal=maximize")
    assert f"best: trial {other}; it was trial {best}" in shown
    assert "(Spearman): -1.000" in shown


def test_best_writes_a_config_that_trains(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.yaml"
    assert main([str(results), "--set", "objective.ratio_weight=0", "--best", str(out)]) == 0
    winner = rescored(results, "objective.ratio_weight=0").best[0]
    assert TrainConfig.model_validate(load_yaml(out)).alpha == winner.values["alpha"]
    assert f"under objective.ratio_weight=0 (trial {winner.trial}" in out.read_text(encoding="utf-8")


def test_nothing_is_written_unless_asked_for(results: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    assert main([str(results), "--set", "objective.ratio_weight=0"]) == 0
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


# --- several metrics ---


def test_of_several_metrics_the_pareto_front_is_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tiny_spec(metrics=[{"name": "objective/value"}, {"name": "eval/loss_dynamic"}])
    points = [(0.1, 0.9), (0.9, 0.1), (1.0, 1.0)]
    lasts = [{"eval/reference_loss": a, "eval/loss_dynamic": b} for a, b in points]
    results = past_sweep(tmp_path / "r", spec, *(Past({"alpha": 0.5}, epochs=3, last=last) for last in lasts))
    weights = ("objective.ratio_weight=0", "objective.contribution_weight=0")
    outcome = rescored(results, *weights)
    values = {trial.trial: trial.new for trial in outcome.trials}
    front = {
        name
        for name, point in values.items()
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in values.values()
        )
    }
    assert {trial.trial for trial in outcome.best} == front
    assert outcome.correlation is None
    shown = prints(capsys, results, "--set", weights[0], "--set", weights[1])
    assert f"Pareto front: trials {', '.join(sorted(front))}" in shown
    assert "of several metrics there is a front" in fails(capsys, results, "--best", tmp_path / "b.yaml")
    error = fails(capsys, results, "--set", "metric.name=eval/loss_pred")
    assert "optimises several metrics (objective/value, eval/loss_dynamic)" in error


# --- unfinished, damaged, old ---


def test_a_sweep_under_way_ranks_what_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = Past({"alpha": 0.5}, Outcome.RUNNING, epochs=1)
    done_but_not_in_the_table_yet = Past({"alpha": 0.6}, Outcome.RUNNING)
    results = past_sweep(tmp_path / "r", SPEC, TRIALS[0], half, done_but_not_in_the_table_yet)
    ranks = {trial.trial: trial.new_rank for trial in rescored(results).trials}
    assert sorted(name for name, rank in ranks.items() if rank) == ["0000", "0002"]
    assert "not ended, so without a rank: 0001" in prints(capsys, results)


def test_where_nothing_is_complete_there_is_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = past_sweep(tmp_path / "r", SPEC, Past({"alpha": 0.5}, Outcome.PRUNED, epochs=1))
    assert "no trial trained to its end, so none has a rank" in prints(capsys, results)
    assert "--best: no trial trained to its end" in fails(capsys, results, "--best", tmp_path / "b.yaml")


def test_a_folder_without_a_sweep_or_without_trials_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no folder; give the results folder" in fails(capsys, tmp_path / "none")
    assert "holds no sweep (it has no spec.yaml)" in fails(capsys, tmp_path)
    assert "holds no trial yet" in fails(capsys, past_sweep(tmp_path / "r", SPEC))


def damaged(results: Path, file: str, line: int, column: str, cell: str) -> None:
    """Put `cell` into a trial's CSV file; lines count from 1, the header's."""
    path = results / "trials" / file
    lines = path.read_text(encoding="utf-8").split("\n")
    cells = lines[line - 1].split(",")
    cells[lines[0].split(",").index(column)] = cell
    lines[line - 1] = ",".join(cells)
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "column"),
    [("epoch.csv", "eval/reference_loss"), ("batch.csv", "batch/loss_ratio"), ("batch.csv", "batch/epoch")],
)
def test_a_damaged_cell_is_named_by_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, column: str
) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:2])
    damaged(results, f"0001/{file}", 3, column, "0.5x")
    error = fails(capsys, results)
    assert f"0001/{file}: line 3 is damaged" in error
    assert "or to do without that trial" in error


def test_a_line_cut_in_the_middle_is_damage_but_an_unfinished_last_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:1])
    value = rescored(results).best[0].new
    path = results / "trials/0000/batch.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "0.5,0.1,2", encoding="utf-8")
    assert rescored(results).best[0].new == value
    path.write_text(text + "0.5,0.1,2\n", encoding="utf-8")
    assert "line 14 is damaged" in fails(capsys, results)


def test_nan_in_a_complete_trial_means_that_it_diverged_and_file_and_line_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:2])
    damaged(results, "0001/batch.csv", 5, "batch/lr", "nan")  # a column that no objective reads
    shown = prints(capsys, results)
    assert "0001/batch.csv, line 5: batch/lr = nan: trial 0001 diverged" in shown
    assert [trial.trial for trial in rescored(results).best] == ["0000"]


def test_changed_rows_are_noticed_since_the_stored_value_does_not_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:2])
    damaged(results, "0001/epoch.csv", 4, "epoch/actual_static_contribution", "0.123")
    shown = prints(capsys, results, "--set", "objective.ratio_weight=0")
    assert "reported other values than their rows give under the sweep's objective: 0001" in shown


@pytest.mark.parametrize(
    ("file", "column", "key"),
    [
        ("batch.csv", "batch/loss_ratio", "ratio_weight"),
        ("epoch.csv", "epoch/actual_static_contribution", "contribution_weight"),
    ],
)
def test_columns_that_an_older_version_did_not_write_are_missed_only_by_a_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, column: str, key: str
) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:2])
    path = results / "trials/0001" / file
    path.write_text(path.read_text(encoding="utf-8").replace(column, "batch/unknown"), encoding="utf-8")
    error = fails(capsys, results)
    assert f"0001/{file}: has no column {column}, but objective.{key} = 0.5 needs" in error
    assert f"give objective.{key} = 0" in error
    assert len(rescored(results, f"objective.{key}=0").trials) == 2


def test_without_batch_csv_the_instability_is_unknown(tmp_path: Path) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:1])
    (results / "trials/0000/batch.csv").unlink()
    with pytest.raises(DataError, match=r"batch\.csv: is missing, but objective\.ratio_weight = 0\.5 needs"):
        rescored(results)


def test_an_epoch_without_the_loss_is_an_error(tmp_path: Path) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:1])
    damaged(results, "0000/epoch.csv", 2, "eval/reference_loss", "")
    with pytest.raises(DataError, match=r"has no eval/reference_loss in epoch 0, but objective\.loss = 'reference'"):
        rescored(results)


def test_a_metric_that_no_trial_has_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = past_sweep(tmp_path / "r", SPEC, Past({"alpha": 0.5}, last={"eval/pred_skill": None}))
    error = fails(capsys, results, "--set", "metric.name=eval/pred_skill")
    assert "no trial's epoch.csv has a value of eval/pred_skill" in error


def test_trials_whose_folder_is_gone_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:2])
    (results / "trials/0000").rename(tmp_path / "gone")
    assert "without files, so left out: 0000" in prints(capsys, results)


@pytest.mark.parametrize("text", ["trial,state\n0000,lost\n", "state\ncomplete\n"], ids=["state", "columns"])
def test_a_damaged_table_of_trials_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:1])
    (results / "trials.csv").write_text(text, encoding="utf-8")
    assert "trials.csv: damaged" in fails(capsys, results)


# --- options ---


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("search.seed=1", "rescoring trains nothing, so only the objective and the metric can be set"),
        ("ratio_weight=0", "did you mean 'objective.ratio_weight'?"),
        ("objective.ratio_wieght=0", "did you mean 'objective.ratio_weight'?"),
        ("objective.contribution_weight=-1", "objective.contribution_weight = -1; must be greater than or equal to 0"),
        ("objective.ratio_weight=.nan", "objective.ratio_weight = nan; must be"),
        ("objective.loss=other", "objective.loss = 'other'; must be 'reference' or 'train'"),
        ("metric.name=eval/los_static", "did you mean 'eval/loss_static'?"),
        ("metric.goal=up", "metric.goal = 'up'; must be 'minimize' or 'maximize'"),
        ("metric.target=1", "only the objective and the metric can be set"),
        ("objective.ratio_weight", "must be KEY=VALUE"),
    ],
)
def test_an_override_that_cannot_be_is_an_error_that_says_why(
    results: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert message in fails(capsys, results, "--set", option)


@pytest.mark.parametrize("option", ["--out", "--best"])
def test_the_record_of_the_sweep_is_never_written_over(
    results: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert "lies in the results folder" in fails(capsys, results, option, results / "best.yaml")


def test_a_file_that_cannot_be_written_is_an_error(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give a file that you may write to" in fails(capsys, results, "--out", tmp_path)


# --- confirmation ---


def test_the_means_of_confirmed_configs_are_scored_anew_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = past_sweep(tmp_path / "r", SPEC, *TRIALS[:2])
    rows = [["trial", "candidate", "seed", "state", "value"]]
    for number, (candidate, state) in enumerate([("best", "complete"), ("best", "complete"), ("equal", "diverged")]):
        name = f"c{number:04d}"
        write_trial(results / "trials" / name, SPEC, Past({"alpha": 0.3}), seed=100 + number)
        rows.append([name, candidate, str(number), state, ""])
    with (results / "confirm.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    (mean,) = rescored(results, "metric.name=objective/loss").confirmed
    lasts = [read_csv(results / f"trials/c000{n}/epoch.csv")[-1] for n in (0, 1)]
    assert (mean.candidate, mean.runs) == ("best", 2)
    assert mean.old == sum(row["objective/value"] for row in lasts) / 2
    assert mean.new == sum(row["objective/loss"] for row in lasts) / 2
    assert "confirmed configs: means over their seeds" in prints(capsys, results)
    (results / "confirm.csv").write_text("trial,candidate\nc0000,best\n", encoding="utf-8")
    assert "confirm.csv: damaged" in fails(capsys, results)


# --- a real sweep ---


def test_a_real_sweep_scores_as_it_did_to_the_last_bit(tmp_path: Path) -> None:
    content = tiny_content(
        run_cap=6,
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3},
        trainer={**TINY_TRAINER, "clip_grad": None},
        search={"presets": [{"alpha": 0.5}, {"alpha": 0.4, "base_lr": 1e30}], "startup_trials": 2},
        parameters={"alpha": {"min": 0.1, "max": 0.9}, "base_lr": {"values": [0.01, 0.03, 0.1, 1e30]}},
        wandb={"mode": "disabled"},
    )
    spec, results = tmp_path / "tiny.yaml", tmp_path / "results"
    spec.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = sweep(spec, results)
    assert done.code == 0, done.err
    outcome = rescored(results)
    assert {trial.trial for trial in outcome.trials} == {f"{number:04d}" for number in range(6)}
    with (results / "trials.csv").open(newline="", encoding="utf-8") as file:
        states = {row["trial"]: Outcome(row["state"]) for row in csv.DictReader(file)}
    assert {trial.trial: trial.outcome for trial in outcome.trials} == states
    assert Outcome.DIVERGED in states.values()
    assert not [trial.trial for trial in outcome.trials if not trial.reproduced or trial.surprise]
    own = outcome.then.objective
    for trial in past_trials(results):
        stored = read_csv(trial.folder / "epoch.csv")
        sound = [row for row in stored if math.isfinite(row["objective/value"])]
        for row, report in zip(sound, trial.scored(own).reports, strict=True):
            assert {name: report[name] for name in row} == row
    best: dict[str, Any] = load_yaml(results / "best.yaml")
    assert best["alpha"] == outcome.best[0].values["alpha"]
