"""sweep/report/*_figures.py: what the figures show of trials that were made up here."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from past_sweeps import Past, past_sweep
from reporting import COMPLETE, DIVERGED, FAILED, HOSTILE, PRUNED, RUNNING
from specs import make

from model.metrics import BATCH_NAMES, EPOCH_COLUMNS
from model.sinks import read_csv
from sweep.blocks import MetricSettings
from sweep.candidates import Candidates
from sweep.conclusion import conclude
from sweep.early_stopping import AshaRule
from sweep.report import figures as assembled
from sweep.report.as_study import MAX_STUDIED, TRIAL, as_study
from sweep.report.axes import axis_of
from sweep.report.base import MAX_TRIALS, SCALE, Figure, thin
from sweep.report.cost import cost_of, wall_seconds
from sweep.report.cost_figures import cost_figure
from sweep.report.curve_figures import MAX_OTHERS, OTHER_POINTS, core_triangle, reference_loss
from sweep.report.data import SweepResults, TrialResult, read_results
from sweep.report.figures import confirmation_figure, figures
from sweep.report.importance_figures import importance_figure, importances
from sweep.report.parameter_figures import contour_figures, parallel_figure, slice_figure, smoothed
from sweep.report.search_figures import parts_figures
from sweep.report.stopping_figures import ladder, rungs
from sweep.spec import SweepSpec
from sweep.study import JOURNAL, Outcome, Record, SweepStudy

ALPHA_LR: dict[str, Any] = {
    "alpha": {"min": 0.1, "max": 0.9},
    "base_lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
}
ASHA = {"type": "hyperband", "min_iter": 1, "eta": 3}
Drawn = tuple[dict[str, dict[str, Any]], dict[str, Any]]


def of(
    number: int,
    values: Mapping[str, Any],
    *by_epoch: float,
    outcome: Outcome = COMPLETE,
    preset: str | None = None,
    seconds: float = 0.0,
    **metrics: float,
) -> TrialResult:
    """A trial with the metric after each epoch."""
    rows = [{"epoch": epoch, "objective/value": value} for epoch, value in enumerate(by_epoch)]
    value = by_epoch[-1] if by_epoch and outcome is not DIVERGED else None
    return TrialResult(
        f"{number:04d}",
        Record(
            number=number,
            trial=f"{number:04d}",
            values=dict(values),
            preset=preset,
            outcome=outcome,
            value=value,
            epochs=len(by_epoch),
            reason=None,
            objectives=() if value is None else (value,),
            seconds=seconds,
        ),
        {f"objective/{name}": part for name, part in metrics.items()},
        rows,
    )


def sweep(*trials: TrialResult, folder: Path = Path("nowhere"), spec: SweepSpec | None = None) -> SweepResults:
    return SweepResults(folder, spec or make(), list(trials), {})


def drawn(figure: Figure | None) -> Drawn:
    """(traces by name, layout) of a figure; what is not visible is left out."""
    assert figure is not None
    decoder = json.JSONDecoder()
    match = re.search(r'Plotly\.newPlot\(\s*"[^"]+",\s*', figure.html)
    assert match is not None, figure.text
    data, end = decoder.raw_decode(figure.html, match.end())
    layout, _ = decoder.raw_decode(figure.html, end + re.match(r",\s*", figure.html[end:]).end())
    return {
        trace.get("name", str(place)): trace for place, trace in enumerate(data) if trace.get("visible", True)
    }, layout


def bowl(count: int, seed: int = 0, **changes: Any) -> list[TrialResult]:
    """Trials over alpha and base_lr whose value depends on base_lr, best at 0.01, and hardly on alpha."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        values = {"alpha": rng.uniform(0.1, 0.9), "base_lr": 10 ** rng.uniform(-4, -1)}
        value = (math.log10(values["base_lr"]) + 2) ** 2 + 0.01 * values["alpha"]
        made.append(of(number, values, value + 1, value, **changes))
    return made


# --- curves ---


def write_batches(folder: Path, trial: str, losses: list[float]) -> None:
    path = folder / "trials" / trial / "batch.csv"
    path.parent.mkdir(parents=True)
    rows = "".join(f"{update},{loss},0.8,0.45\n" for update, loss in enumerate(losses))
    path.write_text("batch/iteration,batch/loss_total,batch/loss_ratio,batch/static_contribution\n" + rows)


def test_core_triangle_has_some_other_trials_thin_behind_the_best_and_the_presets(tmp_path):
    trials = [of(number, {"alpha": 0.5}, 1.0 - number / 100) for number in range(50)]
    trials[0] = of(0, {"alpha": 0.5}, 1.0, preset="equal-weights")
    for trial in trials:
        write_batches(tmp_path, trial.name, [1.0 / (1 + update) for update in range(1000)])
    made = core_triangle(sweep(*trials, folder=tmp_path))
    assert [figure.title for figure in made] == ["batch/loss_total", "batch/loss_ratio", "batch/static_contribution"]
    traces, _ = drawn(made[0])
    assert list(traces) == ["other trials", "0049 best", "0000 equal-weights"]  # behind: drawn first
    others = traces["other trials"]
    assert others["y"].count(None) == MAX_OTHERS
    assert len(others["y"]) == MAX_OTHERS * (OTHER_POINTS + 1)
    assert (others["x"][0], others["x"][OTHER_POINTS - 1], others["y"][OTHER_POINTS - 1]) == (0, 999, 0.001)
    assert len(traces["0049 best"]["x"]) == 500
    assert f"{MAX_OTHERS} of the 48 other trials are drawn, in grey" in made[0].text


def test_one_trial_that_explodes_does_not_flatten_the_curves_of_the_others(tmp_path):
    trials = [of(0, {"alpha": 0.5}, 1.0), of(1, {"alpha": 0.9}, 9.0, outcome=DIVERGED)]
    write_batches(tmp_path, "0000", [2.0, 1.0])
    write_batches(tmp_path, "0001", [2.0, 1e9])
    figure, *_ = core_triangle(sweep(*trials, folder=tmp_path))
    low, high = drawn(figure)[1]["yaxis"]["range"]
    assert (low, high) == (1.0, 2.5)  # the best one's span, and half of it on top
    assert "go beyond the picture" in figure.text


def test_a_sweep_without_rows_of_updates_has_no_core_triangle(tmp_path):
    assert core_triangle(sweep(of(0, {"alpha": 0.5}, 1.0), folder=tmp_path)) == []


def test_reference_loss_leaves_out_what_is_not_finite():
    trial = of(0, {"alpha": 0.5}, 1.0, 2.0)
    trial = TrialResult("0000", trial.record, {}, [{"epoch": 0, "eval/reference_loss": 0.5}, {"epoch": 1}])
    bad = TrialResult("0001", trial.record, {}, [{"epoch": 0, "eval/reference_loss": math.inf}])
    traces, _ = drawn(reference_loss(sweep(trial, bad)))
    assert traces["all trials"]["y"] == [0.5, None]
    assert reference_loss(sweep(bad)) is None


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 40, 200])
def test_sampled_rows_are_those_that_thinning_all_rows_gives(tmp_path, rows):
    path = tmp_path / "batch.csv"
    path.write_text("a,b\n" + "".join(f"{n},{'' if n % 3 else n / 7}\n" for n in range(rows)) + "half a ro")
    assert read_csv(path, most=40) == thin(read_csv(path), 40)
    assert read_csv(tmp_path / "absent.csv", most=40) == []


# --- parameters ---


def test_importance_puts_the_parameter_first_that_decides_and_names_its_method():
    results = sweep(*bowl(60), spec=make(parameters=ALPHA_LR))
    study = as_study(results)
    shares = importances(results, study)
    assert isinstance(shares, dict)
    assert list(shares) == ["base_lr", "alpha"]
    assert shares["base_lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    figure = importance_figure(results, shares, 60)
    trace = drawn(figure)[0]["0"]
    assert (trace["y"], trace["text"][1]) == (["alpha", "base_lr"], f"{shares['base_lr']:.0%}")  # plotly: from below
    assert "PED-ANOVA" in figure.text
    assert "60 trials are few" not in figure.text


def test_importance_counts_stopped_trials_with_what_they_would_have_come_to():
    complete = bowl(9)
    stopped = [
        of(9 + n, t.record.values, t.epochs[0]["objective/value"], outcome=PRUNED) for n, t in enumerate(bowl(20, 1))
    ]
    crashed = of(40, {"alpha": 0.5, "base_lr": 0.01}, outcome=FAILED)
    study = as_study(sweep(crashed, *complete, *stopped, spec=make(parameters=ALPHA_LR)))
    told = {trial.user_attrs[TRIAL]: trial.value for trial in study.trials}
    assert "0040" not in told
    assert len(told) == 29
    # a complete trial loses exactly 1 from its first epoch to its last
    wanted = {t.name: max(t.epochs[0]["objective/value"] - 1, min(c.record.value for c in complete)) for t in stopped}
    assert {name: told[name] for name in wanted} == pytest.approx(wanted)


def test_importance_is_the_same_for_a_metric_that_is_maximised():
    spec = make(parameters=ALPHA_LR, metric={"name": "eval/static_skill", "goal": "maximize"})
    turned = []
    for trial in bowl(60):
        rows = [{"epoch": row["epoch"], "eval/static_skill": -row["objective/value"]} for row in trial.epochs]
        record = Record(**{**vars(trial.record), "value": -trial.record.value})
        turned.append(TrialResult(trial.name, record, {}, rows))
    down, up = sweep(*bowl(60), spec=make(parameters=ALPHA_LR)), sweep(*turned, spec=spec)
    assert importances(up, as_study(up)) == importances(down, as_study(down))


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        (bowl(7), "7 trials that trained to the end and 0 that were stopped early or diverged are too few"),
        (bowl(9, outcome=PRUNED), "0 trials that trained to the end and 9"),
        ([of(n, {"alpha": n / 20 + 0.1, "base_lr": 0.01}, 0.5) for n in range(9)], "all 9 trials have the same"),
        ([of(n, {"alpha": 0.5, "base_lr": 0.01}, n / 10) for n in range(9)], "no parameter has two different values"),
    ],
)
def test_importance_is_not_drawn_without_enough_to_tell_and_says_why(trials, why):
    results = sweep(*trials, spec=make(parameters=ALPHA_LR))
    shares = importances(results, as_study(results))
    assert isinstance(shares, str)
    assert why in shares
    assert importance_figure(results, shares, len(trials)).html == ""


def test_contours_are_lowest_where_the_best_trials_are_also_behind_trials_that_crashed():
    crashed = [of(100 + n, {"alpha": 0.2, "base_lr": 0.05}, outcome=FAILED) for n in range(5)]
    results = sweep(*crashed, *bowl(80), spec=make(parameters=ALPHA_LR))
    (figure,) = contour_figures(results, as_study(results), ["base_lr", "alpha"])
    traces, layout = drawn(figure)
    assert (layout["xaxis"]["type"], layout["yaxis"]["type"]) == ("log", "linear")
    surface = traces["about"]
    assert surface["type"] == "contour"
    means = [
        np.mean([row[place] for row in surface["z"] if row[place] is not None]) for place in range(len(surface["x"]))
    ]
    assert 0.003 < surface["x"][int(np.argmin(means))] < 0.03
    assert means[0] > 5 * min(means)
    assert len(traces["complete"]["x"]) == 80


def test_contours_are_of_the_four_most_important_parameters_that_vary():
    parameters = ALPHA_LR | {
        "mask_ratio": {"min": 0.5, "max": 0.9},
        "weight_decay": {"min": 0.0, "max": 0.1},
        "batch_size": {"values": [8, 16, 32]},
        "warmup_epochs": {"min": 0.0, "max": 4.0},
    }
    rng = random.Random(0)
    draws = [{name: rng.random() for name in ("weight_decay", "warmup_epochs")} for _ in range(20)]
    trials = [
        of(
            n,
            {"alpha": 0.3 + n / 50, "base_lr": 0.01, "mask_ratio": 0.5 + n / 80, "batch_size": (8, 16, 32)[n % 3]}
            | {"weight_decay": d["weight_decay"] / 10, "warmup_epochs": 4 * d["warmup_epochs"]},
            n / 20,
        )
        for n, d in enumerate(draws)
    ]
    results = sweep(*trials, spec=make(parameters=parameters))
    order = ["base_lr", "batch_size", "alpha", "mask_ratio", "weight_decay", "warmup_epochs"]
    made = contour_figures(results, as_study(results), order)
    named = ["batch_size", "alpha", "mask_ratio", "weight_decay"]  # base_lr is the same in all
    assert [figure.title for figure in made] == [f"{a} and {b}" for a, b in combinations(named, 2)]
    traces, layout = drawn(made[0])
    assert (traces["about"]["type"], layout["xaxis"]["categoryarray"]) == ("heatmap", ["8", "16", "32"])


def test_smoothing_gives_means_near_points_nothing_far_away_and_keeps_choices_apart():
    points = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0], [1.0, 1.0, 7.0]])
    places = np.array([0.0, 0.5, 1.0])
    surface = smoothed(points, places, places, (False, False))
    assert surface[0, 0] == pytest.approx(2, abs=1e-3)
    assert surface[2, 2] == pytest.approx(7, abs=1e-3)
    assert np.isnan(surface[0, 2])
    assert np.isnan(surface[1, 1])
    apart = smoothed(points, np.array([0.0, 1.0]), np.array([0.0]), (True, False))
    assert apart[0, 0] == pytest.approx(2)
    assert np.isnan(apart[0, 1])


def test_parallel_coordinates_scale_each_parameter_and_draw_the_best_fifth_last():
    values = [(0.1, 1e-4), (0.5, 1e-3), (0.9, 1e-2), (0.3, 1e-1), (0.7, 1e-2)]
    trials = [of(n, {"alpha": a, "base_lr": lr}, 1.0 - n / 10) for n, (a, lr) in enumerate(values)]
    traces, layout = drawn(parallel_figure(sweep(*trials, spec=make(parameters=ALPHA_LR))))
    assert layout["xaxis"]["ticktext"] == ["alpha", "base_lr", "objective/value"]
    lines = [trace for trace in traces.values() if trace["mode"] == "lines"]
    assert lines[-1]["name"] == "best fifth"
    assert lines[-1]["y"][:3] == pytest.approx([0.75, 2 / 3, 0.0])  # trial 0004: 0.7, 1e-2 on a log axis, the best
    assert traces["worst fifth"]["y"][:3] == pytest.approx([0.0, 0.0, 1.0])
    assert traces["ticks of base_lr"]["text"] == [" 0.0001", " 0.00316", " 0.1"]


def test_parallel_coordinates_leave_a_gap_where_a_parameter_does_not_matter():
    parameters = {"mode": {"values": ["joint", "dynamic"]}, "weighting": {"values": ["fixed", "famo"]}}
    spec = make(parameters=parameters, search={"conditions": {"weighting": {"mode": "joint"}}})
    given = [{"mode": "joint", "weighting": "fixed"}, {"mode": "joint", "weighting": "famo"}, {"mode": "dynamic"}]
    results = sweep(*(of(n, values, 0.5 + n / 10) for n, values in enumerate(given)), spec=spec)
    traces, _ = drawn(parallel_figure(results))
    assert traces["trial 0002"]["y"] == [1.0, None, 1.0, None]
    figure = slice_figure(results, "weighting")
    assert "matters only with mode = joint" in figure.text
    assert drawn(figure)[0]["complete"]["x"] == ["fixed", "famo"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_trials_than_fifths_have_a_line_with_their_name_each_the_best_one_in_orange(count):
    results = sweep(*(of(n, {"alpha": n / 10}, 1.0 - n / 10) for n in range(count)))
    lines = [trace for trace in drawn(parallel_figure(results))[0].values() if trace["mode"] == "lines"]
    assert [line["name"] for line in lines] == [f"trial {n:04}" for n in range(count)]
    assert (lines[0]["line"]["color"], lines[-1]["line"]["color"]) == (SCALE[-1], SCALE[0])


def test_a_log_axis_has_whole_numbers_at_its_ticks():
    results = sweep(of(0, {"alpha": 0.5, "base_lr": 0.01}, 1.0), spec=make(parameters=ALPHA_LR))
    _, layout = drawn(slice_figure(results, "base_lr"))
    assert (layout["xaxis"]["type"], layout["xaxis"]["tickformat"]) == ("log", "~g")


def test_a_confirmation_without_a_value_yet_is_not_drawn_as_empty_axes():
    shown = confirmation_figure(conclude(MetricSettings(), (1, 2), Candidates((), ()), ()))
    assert not shown.html
    assert "no run has a value" in shown.text


def test_parallel_coordinates_are_absent_for_one_trial_and_for_values_that_never_change():
    assert parallel_figure(sweep(of(0, {"alpha": 0.5}, 1.0))) is None
    assert parallel_figure(sweep(of(0, {"alpha": 0.5}, 1.0), of(1, {"alpha": 0.5}, 2.0))) is None


def test_choices_read_from_a_table_are_those_of_the_spec(tmp_path):
    spec = make(parameters={"data.hflip": {"values": [0.0, 0.5]}, "compile": {"values": [True, False]}})
    folder = past_sweep(tmp_path / "r", spec, Past({"data.hflip": 0.5, "compile": True}, epochs=1))
    (folder / "trials.csv").write_text("trial,state,data.hflip,compile\n0000,complete,0.5,True\n", encoding="utf-8")
    (trial,) = read_results(folder).trials
    assert trial.record.values == {"data.hflip": 0.5, "compile": True}
    assert len(as_study(read_results(folder)).trials) == 1


# --- objective ---


def test_front_of_the_three_parts_is_marked_and_the_best_trial_crossed():
    parts = [(0.5, 0.1, 0.1), (0.4, 0.3, 0.1), (0.6, 0.3, 0.2), (0.6, 0.05, 0.3)]  # the third is beaten by both before
    trials = [
        of(n, {"alpha": 0.5}, sum(each), loss=each[0], imbalance=each[1], instability=each[2])
        for n, each in enumerate(parts)
    ]
    stopped = of(9, {"alpha": 0.5}, 0.1, outcome=PRUNED, loss=0.0, imbalance=0.0, instability=0.0)
    first, second = parts_figures(sweep(*trials, stopped))
    traces, layout = drawn(first)
    front = traces["Pareto front of the three"]
    assert list(zip(front["x"], front["y"], strict=True)) == [(0.05, 0.6), (0.1, 0.5), (0.3, 0.4)]
    assert traces["trained to the end"]["marker"]["color"] == [0.1, 0.1, 0.2, 0.3]
    assert (traces["best trial (0000)"]["x"], traces["best trial (0000)"]["y"]) == ([0.1], [0.5])
    assert "3 of 4" in first.text
    assert layout["xaxis"]["title"]["text"] == "objective/imbalance"
    assert drawn(second)[1]["xaxis"]["title"]["text"] == "objective/instability"


def test_objective_without_its_parts_has_no_such_figure():
    assert parts_figures(sweep(*(of(n, {"alpha": 0.5}, 0.5, loss=0.5) for n in range(3)))) == []


# --- early stopping ---


@pytest.mark.parametrize(("first", "eta", "epochs"), [(1, 3, 27), (2, 3, 8), (2, 3, 18), (1, 2, 10), (2, 1.5, 12)])
def test_rungs_are_where_the_scheduler_decides(first, eta, epochs):
    spec = make(early_terminate=ASHA | {"min_iter": first, "eta": eta}, trainer={"epochs": epochs})
    deciding = []
    for epoch in range(1, epochs):  # a bad trial beside a good one is stopped at the first rung that it comes to
        rule = AshaRule(first, epochs, eta)
        for good in range(1, epochs + 1):
            rule.stops(0, good, 0.0)
        before = AshaRule(first, epochs, eta)
        for good in range(1, epochs + 1):
            before.stops(0, good, 0.0)
        for earlier in range(1, epoch):
            before.stops(1, earlier, -1.0)
        if before.stops(1, epoch, 9.0):
            deciding.append(epoch)
    assert rungs(spec) == deciding


def test_ladder_shows_the_way_of_each_trial_and_counts_who_was_stopped_where():
    spec = make(early_terminate=ASHA, trainer={"epochs": 9})
    whole = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    trials = [
        of(0, {"alpha": 0.5}, *whole),
        of(1, {"alpha": 0.6}, 1.5, outcome=PRUNED),
        of(2, {"alpha": 0.7}, 1.2, 1.1, 1.05, outcome=PRUNED),
        of(3, {"alpha": 0.8}, 3.0, outcome=PRUNED),
    ]
    figure = ladder(sweep(*trials, spec=spec))
    traces, layout = drawn(figure)
    assert traces["a trial's way"]["x"] == [1, 3, 9, None, 1, None, 1, 3, None, 1, None]
    assert traces["a trial's way"]["y"][:3] == [1.0, 0.8, 0.2]
    assert list(zip(traces["stopped"]["x"], traces["stopped"]["y"], strict=True)) == [(1, 1.5), (3, 1.05), (1, 3.0)]
    limits = traces["limit of the best 1/3"]
    assert limits["x"] == [1, 3]
    assert limits["y"] == pytest.approx(
        [np.percentile([1.0, 1.5, 1.2, 3.0], 100 / 3), np.percentile([0.8, 1.05], 100 / 3)]
    )
    assert (layout["xaxis"]["type"], layout["xaxis"]["tickvals"]) == ("log", [1, 3, 9])
    assert "After 1 epoch 2 of 4 stopped; after 3 epochs 1 of 2 stopped." in figure.text


def test_ladder_of_the_median_rule_tells_the_rule():
    spec = make(early_terminate={"type": "median", "min_iter": 2, "min_trials": 4}, trainer={"epochs": 4})
    figure = ladder(
        sweep(of(0, {"alpha": 0.5}, 1, 0.9, 0.8, 0.7), of(1, {"alpha": 0.6}, 2, 2, outcome=PRUNED), spec=spec)
    )
    traces, _ = drawn(figure)
    assert traces["a trial's way"]["x"] == [2, 3, 4, None, 2, None]
    assert "limit" not in " ".join(traces)
    assert "After 2 epochs 1 of 2 stopped" in figure.text
    assert "worse than the median of the others' means, where 4 have come as far" in figure.text


def test_ladder_that_never_decides_says_so_and_a_sweep_without_one_has_no_figure():
    trial = of(0, {"alpha": 0.5}, 1.0)
    never = ladder(sweep(trial, spec=make(early_terminate=ASHA | {"min_iter": 8}, trainer={"epochs": 8})))
    assert "the first decision would come after 8 epochs, and trials have 8" in never.text
    assert never.html == ""
    assert ladder(sweep(trial)) is None
    by_wandb = ladder(sweep(trial, of(1, {"alpha": 0.6}, 2.0, outcome=PRUNED)))
    assert "these were stopped by W&B" in by_wandb.text


# --- cost ---


def test_cost_adds_up_by_what_became_of_the_trials_with_the_confirmation(tmp_path):
    spec = make(
        early_terminate=ASHA,
        trainer={"epochs": 9},
        resources={"cpu": 2, "gpu": 0.5},
        confirm={"top_k": 1, "seeds": [1, 2]},
    )
    trials = [
        of(0, {"alpha": 0.5}, *[1.0] * 9, seconds=3600),
        of(1, {"alpha": 0.6}, *[1.0] * 3, outcome=PRUNED, seconds=900),
        of(2, {"alpha": 0.7}, 1.0, outcome=DIVERGED, seconds=60),
        of(3, {"alpha": 0.8}, outcome=RUNNING),
    ]
    (tmp_path / "confirm.csv").write_text(
        "trial,state,seconds\nc0000,complete,3000\nc0001,running,\n", encoding="utf-8"
    )
    cost = cost_of(sweep(*trials, folder=tmp_path, spec=spec))
    assert [(g.name, g.trials, g.timed, g.seconds) for g in cost.groups] == [
        ("trained to the end", 1, 1, 3600),
        ("stopped early", 1, 1, 900),
        ("diverged", 1, 1, 60),
        ("not ended", 1, 0, 0),
        ("confirmation", 2, 1, 3000),
    ]
    assert cost.accelerator_hours == pytest.approx(7560 / 3600 / 2)
    assert cost.cpu_hours == pytest.approx(7560 / 3600 * 2)
    assert cost.saved_s == pytest.approx(900 / 3 * 6)
    text = " ".join(cost.sentences())
    assert "1.05 accelerator hours (0.5 GPU a trial) and 4.2 CPU core hours (2 cores a trial)" in text
    assert "saved about 30 min (19%)" in text
    assert "2 of 6 trials have no time yet" in text
    traces, layout = drawn(cost_figure(sweep(*trials, folder=tmp_path, spec=spec)))
    assert traces["0"]["y"][0] == "saved by early stopping"
    assert traces["0"]["x"][-1] == pytest.approx(30)  # minutes of a GPU: half of an hour on it
    assert layout["xaxis"]["title"]["text"] == "accelerator minutes"


def test_cost_takes_the_clock_from_the_study_of_the_sweep(tmp_path):
    study = SweepStudy(tmp_path, "s", make().space, sampler="random")
    study.next()
    study.report(0, 0, 1.0)
    study.finish(0, COMPLETE)
    assert wall_seconds(tmp_path / JOURNAL) == pytest.approx(study.search_s, abs=5)
    with (tmp_path / JOURNAL).open("a", encoding="utf-8") as file:  # a second study, then a line that was cut
        file.write('{"op_code":2,"study_id":99,"user_attr":{"search_seconds":1000.5}}\n')
        file.write('{"op_code":2,"study_id":99,"user_attr":{"search_seconds":20')
    assert wall_seconds(tmp_path / JOURNAL) == pytest.approx(1000.5, abs=10)
    assert wall_seconds(tmp_path / "absent") is None


def test_cost_without_any_time_says_so(tmp_path):
    figure = cost_figure(sweep(of(0, {"alpha": 0.5}, 1.0), folder=tmp_path))
    assert (figure.html, figure.text) == ("", "No trial tells how long it took.")


# --- all together ---


def told_of(folder: Path, spec: SweepSpec, *trials: Past) -> SweepResults:
    """The results of a made sweep whose trials.csv has the parameters."""
    past_sweep(folder, spec, *trials)
    names = list(spec.space.parameters)
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["trial", "state", *names])
        table.writeheader()
        for number, trial in enumerate(trials):
            table.writerow({"trial": f"{number:04d}", "state": trial.state.value, **trial.values})
    return read_results(folder)


def whole(results: SweepResults) -> dict[str, list[Figure]]:
    """All figures, each of them drawn, or not drawn for a reason that is no fault."""
    made = figures(results)
    for figure in (figure for each in made.values() for figure in each):
        assert "fault of this program" not in figure.text
        assert figure.text.startswith(("Not drawn: ", "No trial tells")) if figure.html == "" else drawn(figure)
    return made


NUMBERS = {"alpha": 0.4, "base_lr": 0.01}


@pytest.mark.parametrize(
    ("trials", "sections"),
    [
        ([], set()),
        ([Past(NUMBERS, epochs=2)], {"Core triangle", "Search", "Searched parameters", "Held-out clips", "Cost"}),
        ([Past(NUMBERS, FAILED, epochs=0)] * 3, {"Search", "Cost"}),
        ([Past(NUMBERS, RUNNING, epochs=0)], {"Search", "Cost"}),
        ([Past(NUMBERS, DIVERGED, epochs=2, nan_in="epoch")], {"Core triangle", "Search", "Held-out clips", "Cost"}),
        ([Past(NUMBERS, DIVERGED, epochs=1, nan_in="batch")], {"Core triangle", "Search", "Cost"}),
        ([Past({}, epochs=2)] * 12, {"Core triangle", "Search", "Parts of the objective", "Held-out clips", "Cost"}),
    ],
)
def test_sweeps_that_show_little_have_the_figures_that_can_be_drawn(tmp_path, trials, sections):
    made = whole(told_of(tmp_path / "r", make(parameters=ALPHA_LR), *trials))
    assert made.keys() == sections


def test_a_whole_sweep_has_every_section_in_the_order_of_the_page(tmp_path):
    spec = make(parameters=ALPHA_LR, early_terminate=ASHA, trainer={"epochs": 3})
    trials = [
        Past({"alpha": 0.1 + n / 20, "base_lr": 10 ** (-4 + n / 5)}, PRUNED if n % 3 else COMPLETE, 1 if n % 3 else 3)
        for n in range(15)
    ]
    assert list(whole(told_of(tmp_path / "r", spec, *trials))) == [
        "Core triangle",
        "Search",
        "All parameters at once",
        "Searched parameters",
        "Pairs of parameters",
        "Parts of the objective",
        "Held-out clips",
        "Early stopping",
        "Cost",
    ]


def test_several_metrics_conditions_and_choices_of_any_kind_are_drawn(tmp_path):
    parameters = ALPHA_LR | {
        "mode": {"values": ["joint", "dynamic"]},
        "weighting": {"values": ["fixed", "famo"]},
        "betas": {"values": [[0.9, 0.95], [0.9, 0.999]]},
    }
    spec = make(
        parameters=parameters,
        metrics=[{"name": "eval/loss_static"}, {"name": "eval/static_skill", "goal": "maximize"}],
        search={"conditions": {"weighting": {"mode": "joint"}}},
    )
    rng = random.Random(0)
    trials = [
        Past(
            {"alpha": rng.uniform(0.1, 0.9), "base_lr": 0.01, "betas": [0.9, 0.95 if n % 2 else 0.999]}
            | ({"mode": "joint", "weighting": ("fixed", "famo")[n // 2 % 2]} if n % 3 else {"mode": "dynamic"}),
            epochs=2,
        )
        for n in range(12)
    ]
    results = told_of(tmp_path / "r", spec, *trials)
    assert [trial.record.values for trial in results.trials] == [trial.values for trial in trials]
    made = whole(results)
    assert {"Pareto front", "Pairs of parameters", "All parameters at once"} <= made.keys()
    slices = {figure.title: drawn(figure)[1] for figure in made["Searched parameters"]}
    assert slices["betas"]["xaxis"]["categoryarray"] == ["[0.9, 0.95]", "[0.9, 0.999]"]


def test_hostile_names_are_text_in_every_figure(tmp_path):
    parameters = {"alpha": {"min": 0.1, "max": 0.9}, "data.root": {"values": [HOSTILE, "b" * 99, "b" * 98]}}
    spec = make(parameters=parameters, trainer={"data": {"source": "frames", "root": "frames"}})
    assert axis_of(sweep(spec=spec), "data.root").labels == [
        "&lt;/script&gt;&lt;script&gt;window.hacked = 1&lt;/s...",
        "b" * 37 + "... (1)",
        "b" * 37 + "... (2)",
    ]
    trials = [
        of(n, {"alpha": 0.1 + n / 20, "data.root": (HOSTILE, "b" * 99)[n % 2]}, 1 + n / 10, preset=HOSTILE)
        for n in range(12)
    ]
    for trial in trials:
        write_batches(tmp_path, trial.name, [2.0, 1.0])
    made = [figure for each in figures(sweep(*trials, folder=tmp_path, spec=spec)).values() for figure in each]
    assert len(made) > 8
    for figure in made:
        assert "<img" not in figure.html
        assert "fault of this program" not in figure.text
        if figure.html:
            shown = json.dumps(drawn(figure), ensure_ascii=False)
            assert "<img" not in shown
            assert "<script" not in shown


def test_a_figure_that_fails_costs_the_page_only_itself(tmp_path, monkeypatch):
    def broken(results: SweepResults) -> Figure:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(assembled, "history", broken)
    made = figures(sweep(of(0, {"alpha": 0.5}, 1.0), folder=tmp_path))
    first, _ = made["Search"]
    assert first == Figure(
        "Value by trial", "Not drawn, which is a fault of this program: ZeroDivisionError: no such thing", ""
    )
    assert "Searched parameters" in made


def test_figures_of_10000_trials_are_small_and_say_what_they_leave_out(tmp_path):
    rng = random.Random(0)
    trials = []
    for trial in bowl(10_000):
        outcome = rng.choice([COMPLETE, PRUNED, PRUNED, DIVERGED])
        parts = {"loss": rng.random(), "imbalance": rng.random(), "instability": rng.random()}
        by_epoch = [row["objective/value"] for row in trial.epochs][: 2 if outcome is COMPLETE else 1]
        made = of(trial.record.number, trial.record.values, *by_epoch, outcome=outcome, seconds=1.0, **parts)
        rows = [row | {"eval/reference_loss": row["objective/value"]} for row in made.epochs]
        trials.append(TrialResult(made.name, made.record, made.metrics, rows))
    results = sweep(
        *trials, folder=tmp_path, spec=make(parameters=ALPHA_LR, early_terminate=ASHA, trainer={"epochs": 2})
    )
    made = figures(results)
    assert sum(len(figure.html) for each in made.values() for figure in each) < 5_000_000
    by_title = {figure.title: figure for each in made.values() for figure in each}
    traces, _ = drawn(by_title["Value by trial"])
    marks = [trace for trace in traces.values() if trace["mode"] == "markers"]
    assert sum(len(trace["x"]) for trace in marks) == MAX_TRIALS
    assert results.best.record.number in traces["complete"]["x"]
    assert f"{MAX_TRIALS} of 10000 trials are drawn" in by_title["Value by trial"].text
    assert f"the best quarter of {MAX_STUDIED} trials" in by_title["Importance of the parameters"].text
    assert {"alpha and base_lr", "base_lr and alpha"} & by_title.keys()


def test_made_rows_have_the_names_of_the_metrics():
    """The names that figures look for are those that trials write."""
    from sweep.report.curve_figures import CORE_TRIANGLE, REFERENCE_LOSS
    from sweep.report.search_figures import PARTS

    assert {*CORE_TRIANGLE} <= {*BATCH_NAMES}
    assert {REFERENCE_LOSS, *PARTS} <= {*EPOCH_COLUMNS}
