"""How the search went: values by trial, the Pareto front of several metrics, the objective's parts, confirmation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from html import escape

import plotly.graph_objects as go

from sweep.conclusion import Conclusion
from sweep.outcome import Outcome
from sweep.pareto import pareto_front
from sweep.report.base import (
    BLUE,
    COLOURS,
    GREY,
    MARKS,
    MAX_TRIALS,
    ORANGE,
    RED,
    Figure,
    add_trials,
    chosen,
    finished,
    hover,
    label,
    number,
    thinned_out,
)
from sweep.report.data import SweepResults, TrialResult
from sweep.study import Record
from sweep.words import last_word

PARTS = ("objective/loss", "objective/imbalance", "objective/instability")


def history(results: SweepResults) -> Figure:
    """Each trial's value, and the best until then."""
    figure = go.Figure()
    complete = [t.record for t in results.trials if t.record.outcome is Outcome.COMPLETE and t.record.value is not None]
    leaders: Iterator[Record] = itertools.accumulate(complete, lambda a, b: min(a, b, key=results.rank))
    steps = [(record.number, leader.value) for record, leader in zip(complete, leaders, strict=True)]
    if len(steps) > MAX_TRIALS:
        steps = [step for before, step in itertools.pairwise([(-1, None), *steps]) if before[1] != step[1]]
    figure.add_scatter(
        x=[*(place for place, _ in steps), results.trials[-1].record.number],
        y=[*(value for _, value in steps), *(value for _, value in steps[-1:])],
        name="best complete so far",
        mode="lines",
        line={"color": ORANGE, "shape": "hv"},
        hoverinfo="skip",
        visible=bool(complete),
    )
    trials = chosen(results, results.trials)
    add_trials(figure, trials, lambda trial: trial.record.number)
    valueless = [trial for trial in trials if trial.record.value is None]
    figure.add_scatter(  # on the lower edge, where no value is meant
        x=[trial.record.number for trial in valueless],
        y=[0.02] * len(valueless),
        yaxis="y2",
        name="without a value",
        mode="markers",
        marker={"symbol": "x-thin-open", "color": RED, "size": 8},
        hovertext=[hover(trial) for trial in valueless],
        hoverinfo="text",
        visible=bool(valueless),
    )
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    text = "Each trial's last value. Pruned trials (hollow) stopped early: their values are of fewer epochs."
    text += thinned_out(len(trials), len(results.trials))
    return finished("Value by trial", text, figure, "trial", results.spec.metric.name)


def front(results: SweepResults) -> Figure:
    """The first two of several metrics against each other."""
    across, up = (metric.name for metric in results.spec.metrics[:2])
    on_front = {trial.name for trial in results.front}
    complete = [
        trial
        for trial in results.trials
        if len(trial.record.objectives) == len(results.spec.metrics) and trial.record.outcome is Outcome.COMPLETE
    ]
    drawn = chosen(results, [trial for trial in complete if trial.name not in on_front])
    figure = go.Figure()
    for name, trials, mark in (
        ("trained to the end", drawn, MARKS[Outcome.COMPLETE]),
        ("on the front", [trial for trial in complete if trial.name in on_front], ("diamond", ORANGE)),
    ):
        figure.add_scatter(
            x=[trial.record.objectives[0] for trial in trials],
            y=[trial.record.objectives[1] for trial in trials],
            name=name,
            mode="markers",
            marker={"symbol": mark[0], "color": mark[1], "size": 10},
            hovertext=[hover(trial) for trial in trials],
            hoverinfo="text",
            showlegend=True,
        )
    text = "Of the first two metrics, one seed each." + thinned_out(len(drawn), len(complete) - len(on_front))
    return finished("Pareto front", text, figure, across, up)


def parts_figures(results: SweepResults) -> list[Figure]:
    """The parts of the objective against each other: where a gain in one is paid for with another."""
    complete = [t for t in results.trials if t.record.outcome is Outcome.COMPLETE and set(PARTS) <= t.metrics.keys()]
    if len(complete) < 2:
        return []
    places = pareto_front([tuple(t.metrics[part] for part in PARTS) for t in complete], ["minimize"] * len(PARTS))
    on_front = {complete[place].name for place in places}
    drawn = chosen(results, complete)
    there = {trial.name for trial in drawn}
    drawn += [complete[place] for place in places if complete[place].name not in there]
    loss, imbalance, instability = PARTS
    return [
        _parts(results, drawn, on_front, (imbalance, loss, instability), len(complete)),
        _parts(results, drawn, on_front, (instability, loss, imbalance), len(complete)),
    ]


def _parts(
    results: SweepResults, trials: Sequence[TrialResult], on_front: set[str], names: tuple[str, str, str], there: int
) -> Figure:
    """Two parts as axes and one as colour."""
    across, up, colour = names
    figure = go.Figure()
    figure.add_scatter(
        x=[trial.metrics[across] for trial in trials],
        y=[trial.metrics[up] for trial in trials],
        mode="markers",
        name="trained to the end",
        marker={
            "color": [trial.metrics[colour] for trial in trials],
            "colorscale": COLOURS,
            "size": 9,
            "showscale": True,
            "colorbar": {
                "title": {"text": last_word(colour)},
                "thickness": 12,
                "outlinewidth": 0,
                "tickformat": ".2~g",
            },
        },
        hovertext=[
            "<br>".join([hover(trial), *(f"{last_word(part)} {number(trial.metrics[part])}" for part in PARTS)])
            for trial in trials
        ],
        hoverinfo="text",
        showlegend=False,
    )
    marked = sorted((trial for trial in trials if trial.name in on_front), key=lambda trial: trial.metrics[across])
    figure.add_scatter(
        x=[trial.metrics[across] for trial in marked],
        y=[trial.metrics[up] for trial in marked],
        mode="markers",
        name="Pareto front of the three",
        marker={"symbol": "circle-open", "size": 15, "color": GREY, "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=True,
    )
    best = results.best
    if best is not None and set(names) <= best.metrics.keys():
        figure.add_scatter(
            x=[best.metrics[across]],
            y=[best.metrics[up]],
            mode="markers",
            name=f"best trial ({best.name})",
            marker={"symbol": "cross-open", "size": 20, "color": ORANGE, "line": {"width": 2}},
            hoverinfo="skip",
            showlegend=True,
        )
    settings = results.spec.objective
    text = (
        f"Lower is better in all three; the colour is the {last_word(colour)}. No trial beats a ringed one in all "
        f"three: {len(on_front)} of {there}. The objective weighs imbalance {settings.contribution_weight:g} and "
        f"instability {settings.ratio_weight:g} against a loss of 1.{thinned_out(len(trials), there)}"
    )
    return finished(f"{last_word(up).capitalize()} against {last_word(across)}", text, figure, across, up)


def confirmation_figure(conclusion: Conclusion) -> Figure:
    """Each config's value for each seed, and its mean with the interval."""
    figure = go.Figure()
    runs = [(row.name, run) for row in conclusion.rows for run in row.runs if run.value is not None]
    if not runs:
        return Figure("Values by config", "Not drawn: no run has a value.", "")
    figure.add_scatter(
        x=[label(name) for name, _ in runs],
        y=[run.value for _, run in runs],
        name="a seed's run",
        mode="markers",
        marker={"symbol": "circle-open", "color": BLUE, "size": 8},
        hovertext=[escape(f"{name}, seed {run.seed} (trial {run.trial}): {number(run.value)}") for name, run in runs],
        hoverinfo="text",
    )
    means = [(row.name, row.mean) for row in conclusion.rows if row.mean is not None]
    figure.add_scatter(
        x=[label(name) for name, _ in means],
        y=[mean.mean for _, mean in means],
        error_y={"type": "data", "array": [0.0 if m.high is None else m.high - m.mean for _, m in means], "width": 8},
        name="mean and 95 % interval",
        mode="markers",
        marker={"symbol": "diamond", "color": ORANGE, "size": 10},
    )
    names = [label(row.name) for row in conclusion.rows]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=names)
    seeds = ", ".join(map(str, conclusion.seeds))
    return finished("Values by config", f"Seeds {seeds}, all epochs.", figure, "config", conclusion.metric)
