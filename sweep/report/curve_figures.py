"""Curves over updates and epochs: the core triangle of the metric text, and the held-out loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from model.metrics import BATCH_STEP, EPOCH_STEP
from model.sinks import Row
from sweep.report.base import (
    BLUE,
    GREEN,
    GREY,
    MAX_POINTS,
    ORANGE,
    PURPLE,
    Figure,
    chosen,
    finished,
    label,
    thin,
    thinned_out,
)
from sweep.report.data import SweepResults, TrialResult

REFERENCE_LOSS = "eval/reference_loss"
CORE_TRIANGLE = {  # closing section of the metric text
    "batch/loss_total": "What training minimises; it should fall, then level off. Other weights, other scale.",
    "batch/loss_ratio": "Static by dynamic loss; it should settle.",
    "batch/static_contribution": "Share of the static loss in the total; it should come near the target (dotted).",
}
LINES = ((ORANGE, "solid"), (BLUE, "dash"), (GREEN, "dot"), (PURPLE, "dashdot"))  # a line per watched trial
MAX_OTHERS, OTHER_POINTS = 30, 60  # curves behind those of the watched trials, and points of each
MAX_CURVES, CURVE_POINTS = 150, 60  # of the held-out loss
BEYOND = 0.5  # of the watched curves' span that others may widen the picture by: one that diverges would flatten all

Curves = Mapping[str, Sequence[Row]]  # rows by trial


def core_triangle(results: SweepResults) -> list[Figure]:
    """The three curves of the best trial and the presets, those of some others behind them."""
    watched = {trial.name: results.batches(trial, MAX_POINTS) for trial in results.watched}
    rest = [trial for trial in results.trials if trial.name not in watched and trial.record.epochs]
    others = {trial.name: results.batches(trial, OTHER_POINTS) for trial in thin(rest, MAX_OTHERS)}
    if not any(watched.values()) and not any(others.values()):
        return []
    return [_updates(results, watched, others, len(rest), metric) for metric in CORE_TRIANGLE]


def _updates(results: SweepResults, watched: Curves, others: Curves, rest: int, metric: str) -> Figure:
    figure = go.Figure()
    x, y, text = _joined({name: _points(rows, BATCH_STEP, metric) for name, rows in others.items()})
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            text=text,
            hovertemplate="%{text}: %{y:.4g}<extra></extra>",
            name="other trials",
            mode="lines",
            line={"color": GREY, "width": 1},
            opacity=0.45,
        )
    for trial, look in zip(results.watched, LINES, strict=False):
        what = "best" if trial is results.best else trial.record.preset or ""
        add_line(figure, trial, watched[trial.name], (BATCH_STEP, metric), what, look)
    main = [at for trace in figure.data if trace.name != "other trials" for at in trace.y]
    note = ""
    if (limits := _limits(main, [at for at in y if at is not None])) is not None:
        figure.update_yaxes(range=limits)
        note = " Other trials go beyond the picture."
    if metric == "batch/static_contribution":
        figure.add_hline(y=results.spec.objective.target, line={"color": GREY, "dash": "dot", "width": 1.5})
    if len(others) < rest:
        note = f" {len(others)} of the {rest} other trials are drawn, in grey.{note}"
    elif x:
        note = f" Grey: the other trials.{note}"
    return finished(metric, CORE_TRIANGLE[metric] + note, figure, "update (batch/iteration)", metric)


def reference_loss(results: SweepResults) -> Figure | None:
    """The held-out loss of all trials, by epoch; None where there is none."""
    there = [trial for trial in results.trials if _points(trial.epochs, EPOCH_STEP, REFERENCE_LOSS)]
    if not there:
        return None
    trials = chosen(results, there, MAX_CURVES)
    most = MAX_POINTS if len(trials) <= CURVE_POINTS else CURVE_POINTS
    points = {trial.name: thin(_points(trial.epochs, EPOCH_STEP, REFERENCE_LOSS), most) for trial in trials}
    x, y, text = _joined(points)  # one trace for all: a trace each is slow with hundreds of trials
    figure = go.Figure()
    look = {"color": GREY, "width": 1}
    figure.add_scatter(x=x, y=y, text=text, name="all trials", mode="lines+markers", line=look, opacity=0.6)
    if max(trial.record.epochs for trial in results.trials) <= 10:
        figure.update_xaxes(dtick=1)  # no ticks between epochs
    if results.best:
        add_line(figure, results.best, results.best.epochs, (EPOCH_STEP, REFERENCE_LOSS), "best", LINES[0])
    limits = _limits([at for trace in figure.data[1:] for at in trace.y], [at for at in y if at is not None])
    if limits is not None:
        figure.update_yaxes(range=limits)
    text_below = "One fixed protocol for all trials, so these values compare across weights and mask ratios."
    text_below += thinned_out(len(trials), len(there)) + (" Some curves go beyond the picture." if limits else "")
    return finished("Reference loss by epoch", text_below, figure, "epoch", REFERENCE_LOSS)


def add_line(
    figure: go.Figure,
    trial: TrialResult,
    rows: Sequence[Row],
    axes: tuple[str, str],
    what: str,
    look: tuple[str, str],
) -> None:
    """A trial's curve of one metric over another, where its rows have both."""
    points = thin(_points(rows, *axes))
    color, dash = look
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name=label(f"{trial.name} {what}".strip()),
        mode="lines" if len(points) > 1 else "markers",
        line={"color": color, "dash": dash, "width": 2},
        showlegend=True,
    )


def _points(rows: Sequence[Row], across: str, up: str) -> list[tuple[float, float]]:
    both = ((row[across], row[up]) for row in rows if across in row and up in row)
    return [(x, y) for x, y in both if math.isfinite(x) and math.isfinite(y)]


def _joined(curves: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[list[Any], list[Any], list[str]]:
    """x, y and text of one trace of many curves, with gaps between; to 5 digits, which no screen can tell apart."""
    x: list[Any] = []
    y: list[Any] = []
    text: list[str] = []
    for name, points in curves.items():
        x += [*(x for x, _ in points), None]
        y += [*(float(f"{y:.5g}") for _, y in points), None]
        text += [f"trial {name}"] * (len(points) + 1)
    return x, y, text


def _limits(main: Sequence[float], others: Sequence[float]) -> tuple[float, float] | None:
    """Range of an axis on which the main curves stay readable; None where all curves may be shown whole."""
    if len(main) < 2 or not others:
        return None
    low, high = min(main), max(main)
    margin = BEYOND * ((high - low) or abs(high) or 1.0)
    if min(others) >= low - margin and max(others) <= high + margin:
        return None
    return max(min(*others, low), low - margin), min(max(*others, high), high + margin)
