"""The figures of report.html, and how numbers and states are written in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from model.metrics import BATCH_STEP, EPOCH_STEP
from model.sinks import Row
from sweep.conclusion import Conclusion
from sweep.report.data import SweepResults, TrialResult
from sweep.space import Choice, distribution_of
from sweep.study import Outcome, Record

MAX_POINTS = 500  # of a curve: more cannot be told apart on a screen
REFERENCE_LOSS = "eval/reference_loss"
CORE_TRIANGLE = {  # closing section of the metric text
    "batch/loss_total": "What training minimises; it should fall, then level off. Other weights, other scale.",
    "batch/loss_ratio": "Static by dynamic loss; it should settle.",
    "batch/static_contribution": "Share of the static loss in the total; it should come near the target (dotted).",
}

# hues that stand out on white and on black, and that the colour-blind can tell apart
ORANGE, BLUE, GREEN, PURPLE, RED, GREY = "#e07a2f", "#4c8bf5", "#2a9d74", "#a06cd5", "#d9485f", "#8b929c"
MARKS = {  # best comparable first
    Outcome.COMPLETE: ("circle", BLUE),
    Outcome.PRUNED: ("circle-open", GREY),
    Outcome.RUNNING: ("diamond-open", GREEN),
    Outcome.DIVERGED: ("x", RED),
    Outcome.FAILED: ("x-open", RED),
}
LINES = ((ORANGE, "solid"), (BLUE, "dash"), (GREEN, "dot"), (PURPLE, "dashdot"))  # a line per watched trial


@dataclass(frozen=True)
class Figure:
    """A figure of the page; `html` is a div and its script, for a page that has plotly.js."""

    title: str
    text: str
    html: str


def figures(results: SweepResults) -> dict[str, list[Figure]]:
    """All figures, by section of the page; a section without data is absent."""
    trials = results.trials
    batches = {trial.name: thin(results.batches(trial)) for trial in results.watched}
    sections = {
        "Pareto front": [_front(results)] if results.front else [],
        "Search": [_history(results)] if trials else [],
        "Searched parameters": [_slice(results, name) for name in results.spec.space.parameters if trials],
        "Held-out clips": [_reference_loss(results)] if any(trial.epochs for trial in trials) else [],
        "Core triangle": [_updates(results, batches, name) for name in CORE_TRIANGLE if any(batches.values())],
    }
    return {title: made for title, made in sections.items() if made}


def confirmation_figure(conclusion: Conclusion) -> Figure:
    """Each config's value for each seed, and its mean with the interval."""
    figure = go.Figure()
    runs = [(row.name, run) for row in conclusion.rows for run in row.runs if run.value is not None]
    figure.add_scatter(
        x=[name for name, _ in runs],
        y=[run.value for _, run in runs],
        name="a seed's run",
        mode="markers",
        marker={"symbol": "circle-open", "color": BLUE, "size": 8},
        hovertext=[escape(f"{name}, seed {run.seed} (trial {run.trial}): {number(run.value)}") for name, run in runs],
        hoverinfo="text",
    )
    means = [(row.name, row.mean) for row in conclusion.rows if row.mean is not None]
    figure.add_scatter(
        x=[name for name, _ in means],
        y=[mean.mean for _, mean in means],
        error_y={"type": "data", "array": [0.0 if m.high is None else m.high - m.mean for _, m in means], "width": 8},
        name="mean and 95 % interval",
        mode="markers",
        marker={"symbol": "diamond", "color": ORANGE, "size": 10},
    )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[row.name for row in conclusion.rows])
    seeds = ", ".join(map(str, conclusion.seeds))
    return _figure("Values by config", f"Seeds {seeds}, all epochs.", figure, "config", conclusion.metric)


def state_name(outcome: Outcome) -> str:
    """For readers: the folder does not tell whether a trial that has not ended still runs."""
    return "not ended" if outcome is Outcome.RUNNING else outcome.value


def number(value: object, padded: bool = False) -> str:
    """A float with 4 significant digits (`padded`: with trailing zeros, for columns), anything else as it is."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:#.4g}" if padded else f"{value:.4g}"
    return str(value)


def thin(rows: Sequence[Row], limit: int = MAX_POINTS) -> list[Row]:
    """At most `limit` (2 or more) of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (limit - 1))] for place in range(limit)]


def _history(results: SweepResults) -> Figure:
    figure = go.Figure()
    complete = [t.record for t in results.trials if t.record.outcome is Outcome.COMPLETE and t.record.value is not None]
    leaders: Iterator[Record] = itertools.accumulate(complete, lambda a, b: min(a, b, key=results.rank))
    running_best = [record.value for record in leaders]
    figure.add_scatter(
        x=[*(record.number for record in complete), results.trials[-1].record.number],
        y=[*running_best, *running_best[-1:]],
        name="best complete so far",
        mode="lines",
        line={"color": ORANGE, "shape": "hv"},
        hoverinfo="skip",
        visible=bool(complete),
    )
    _add_trials(figure, results.trials, lambda trial: trial.record.number)
    valueless = [trial for trial in results.trials if trial.record.value is None]
    figure.add_scatter(  # on the lower edge, where no value is meant
        x=[trial.record.number for trial in valueless],
        y=[0.02] * len(valueless),
        yaxis="y2",
        name="without a value",
        mode="markers",
        marker={"symbol": "x-thin-open", "color": RED, "size": 8},
        hovertext=[_hover(trial) for trial in valueless],
        hoverinfo="text",
        visible=bool(valueless),
    )
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    text = "Each trial's last value. Pruned trials (hollow) stopped early: their values are of fewer epochs."
    return _figure("Value by trial", text, figure, "trial", results.spec.metric.name)


def _front(results: SweepResults) -> Figure:
    """The first two of several metrics against each other."""
    across, up = (metric.name for metric in results.spec.metrics[:2])
    front = {trial.name for trial in results.front}
    figure = go.Figure()
    for name, trials, mark in (
        ("trained to the end", [trial for trial in results.trials if trial.name not in front], MARKS[Outcome.COMPLETE]),
        ("on the front", results.front, ("diamond", ORANGE)),
    ):
        shown = [trial for trial in trials if len(trial.record.objectives) == len(results.spec.metrics)]
        shown = [trial for trial in shown if trial.record.outcome is Outcome.COMPLETE]
        figure.add_scatter(
            x=[trial.record.objectives[0] for trial in shown],
            y=[trial.record.objectives[1] for trial in shown],
            name=name,
            mode="markers",
            marker={"symbol": mark[0], "color": mark[1], "size": 10},
            hovertext=[_hover(trial) for trial in shown],
            hoverinfo="text",
            showlegend=True,
        )
    return _figure("Pareto front", "Of the first two metrics, one seed each.", figure, across, up)


def _slice(results: SweepResults, name: str) -> Figure:
    parameter = results.spec.space.parameters[name]
    chosen = isinstance(parameter, Choice)

    def x(trial: TrialResult) -> Any:
        value = trial.record.values.get(name)
        return str(value) if chosen else value

    figure = go.Figure()
    _add_trials(figure, results.trials, x, legend=False)
    if isinstance(parameter, Choice):
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=[str(v) for v in parameter.values])
    else:
        figure.update_xaxes(type="log" if "log" in distribution_of(results.spec.parameters[name]) else "linear")
    if results.best:
        figure.add_scatter(
            x=[x(results.best)],
            y=[results.best.record.value],
            mode="markers",
            marker={"symbol": "circle-open", "color": ORANGE, "size": 15, "line": {"width": 2.5}},
            hoverinfo="skip",
            showlegend=False,
        )
    return _figure(name, "Ring: the best trial." if results.best else "", figure, name, results.spec.metric.name)


def _reference_loss(results: SweepResults) -> Figure:
    x: list[Any] = []
    y: list[Any] = []
    text: list[str] = []
    for trial in results.trials:  # one trace for all: a trace each is slow with hundreds of trials
        rows = thin([row for row in trial.epochs if EPOCH_STEP in row and REFERENCE_LOSS in row])
        x += [*(row[EPOCH_STEP] for row in rows), None]
        y += [*(row[REFERENCE_LOSS] for row in rows), None]
        text += [f"trial {trial.name}"] * (len(rows) + 1)
    figure = go.Figure()
    look = {"color": GREY, "width": 1}
    figure.add_scatter(x=x, y=y, text=text, name="all trials", mode="lines+markers", line=look, opacity=0.6)
    if max(trial.record.epochs for trial in results.trials) <= 10:
        figure.update_xaxes(dtick=1)  # no ticks between epochs
    if results.best:
        _add_line(figure, results.best, results.best.epochs, (EPOCH_STEP, REFERENCE_LOSS), "best", LINES[0])
    text_below = "One fixed protocol for all trials, so these values compare across weights and mask ratios."
    return _figure("Reference loss by epoch", text_below, figure, "epoch", REFERENCE_LOSS)


def _updates(results: SweepResults, batches: dict[str, list[Row]], metric: str) -> Figure:
    figure = go.Figure()
    for trial, look in zip(results.watched, LINES, strict=False):
        what = "best" if trial is results.best else trial.record.preset or ""
        _add_line(figure, trial, batches[trial.name], (BATCH_STEP, metric), what, look)
    if metric == "batch/static_contribution":
        figure.add_hline(y=results.spec.objective.target, line={"color": GREY, "dash": "dot", "width": 1.5})
    return _figure(metric, CORE_TRIANGLE[metric], figure, "update (batch/iteration)", metric)


def _add_trials(
    figure: go.Figure, trials: Sequence[TrialResult], x: Callable[[TrialResult], Any], legend: bool = True
) -> None:
    """Trials with a value, as marks of their states, the value upwards."""
    for outcome, (symbol, color) in MARKS.items():
        shown = [trial for trial in trials if trial.record.outcome is outcome and trial.record.value is not None]
        figure.add_scatter(
            x=[x(trial) for trial in shown],
            y=[trial.record.value for trial in shown],
            name=state_name(outcome),
            mode="markers",
            marker={"symbol": symbol, "color": color, "size": 9},
            hovertext=[_hover(trial) for trial in shown],
            hoverinfo="text",
            visible=bool(shown),
            showlegend=legend,
        )


def _add_line(
    figure: go.Figure,
    trial: TrialResult,
    rows: Sequence[Row],
    axes: tuple[str, str],
    what: str,
    look: tuple[str, str],
) -> None:
    """A trial's curve of one metric over another, where its rows have both."""
    points = [(row[axes[0]], row[axes[1]]) for row in rows if axes[0] in row and axes[1] in row]
    color, dash = look
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name=f"{trial.name} {what}".strip(),
        mode="lines" if len(points) > 1 else "markers",
        line={"color": color, "dash": dash, "width": 2},
        showlegend=True,
    )


def _hover(trial: TrialResult) -> str:
    """What plotly shows at a mark; it takes simple HTML."""
    record = trial.record
    lines = [
        f"trial {trial.name}, {state_name(record.outcome)}, epochs: {record.epochs}",
        f"value {number(record.value)}",
    ]
    lines += [f"{name} {number(value)}" for name, value in record.values.items()]
    return "<br>".join(escape(line) for line in [*lines, *filter(None, [record.preset, record.reason])])


def _figure(title: str, text: str, figure: go.Figure, x: str, y: str) -> Figure:
    figure.update_layout(
        template="none",  # colours of text and grid are the page's
        margin={"l": 62, "r": 12, "t": 10, "b": 46},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(title=x, zeroline=False, automargin=True)
    figure.update_yaxes(title=y, zeroline=False, automargin=True)
    html = figure.to_html(
        include_plotlyjs=False,
        full_html=False,
        default_height="340px",
        config={"displayModeBar": False},
    )
    return Figure(title, text, html)
