"""The searched parameters against the metric: one by one, in pairs, all at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from numpy.typing import NDArray

from sweep.outcome import Outcome
from sweep.report.as_study import TRIAL
from sweep.report.axes import Axis, axes_of, axis_of, varied
from sweep.report.base import (
    COLOURS,
    ORANGE,
    SCALE,
    Figure,
    add_trials,
    chosen,
    finished,
    hover,
    label,
    number,
    thinned_out,
)
from sweep.report.data import SweepResults

MAX_PAIRED = 4  # parameters, the most important ones, of which every pair is drawn: 6 figures
MIN_TRIALS = 6  # of a contour
CELLS = 31  # of a contour along a number
WIDEST = 0.25  # of an axis: how far a trial's value counts in a sweep of one trial; it shrinks with their number
NEAR = 2.0  # so many times that far from every trial nothing is drawn
APART = 100.0  # between choices, in lengths of an axis: they are no neighbours
MAX_LINES = 200  # of the parallel coordinates
FIFTHS = ("best fifth", "second", "third", "fourth", "worst fifth")  # of their lines
Z_RANGE = (0.0, 0.9)  # quantiles of the values that the colours of a contour span: the worst ones would take all


def slice_figure(results: SweepResults, name: str) -> Figure | None:
    """A parameter against the metric, the state of each trial as its mark; None where no trial has both."""
    axis = axis_of(results, name)
    known = [trial for trial in results.trials if trial.record.value is not None]
    there = [trial for trial in known if axis.mark(trial.record.values.get(name)) is not None]
    if not there:
        return None
    trials = chosen(results, there)
    figure = go.Figure()
    add_trials(figure, trials, lambda trial: axis.mark(trial.record.values[name]), legend=False)
    figure.update_xaxes(axis.layout)
    best = results.best
    ringed = best is not None and any(best is trial for trial in trials)
    if best is not None and ringed:
        figure.add_scatter(
            x=[axis.mark(best.record.values[name])],
            y=[best.record.value],
            mode="markers",
            marker={"symbol": "circle-open", "color": ORANGE, "size": 15, "line": {"width": 2.5}},
            hoverinfo="skip",
            showlegend=False,
        )
    text = ("Ring: the best trial." if ringed else "") + thinned_out(len(trials), len(there))
    if name in results.spec.space.conditions:
        needed = ", ".join(f"{other} = {label(value)}" for other, value in results.spec.space.conditions[name].items())
        text += f" It matters only with {needed}."
    return finished(name, text.strip(), figure, name, results.spec.metric.name)


def contour_figures(results: SweepResults, study: optuna.Study, order: Sequence[str]) -> list[Figure]:
    """Each pair of the first few parameters that vary.

    Args:
        study: of `as_study`; its values are drawn.
        order: of the parameters, the most important one first.
    """
    known = {trial.user_attrs[TRIAL]: trial.value for trial in study.get_trials(deepcopy=False)}
    sign = results.spec.metric.sign
    trials = [trial for trial in results.trials if trial.name in known]
    axes = [axis for axis in axes_of(results, order) if varied(axis, trials)]
    points = {
        trial.name: ([axis.position(trial.record.values.get(axis.name)) for axis in axes], known[trial.name])
        for trial in trials
    }
    figures = []
    for first, second in itertools.combinations(range(min(MAX_PAIRED, len(axes))), 2):
        inside = [
            (at[first], at[second], sign * value)
            for at, value in points.values()
            if at[first] is not None and at[second] is not None
        ]
        if len(inside) >= MIN_TRIALS:
            figures.append(_contour(results, axes[first], axes[second], np.array(inside, dtype=float)))
    return figures


def _contour(results: SweepResults, across: Axis, up: Axis, points: NDArray[np.float64]) -> Figure:
    """The smoothed metric; `points` [n, 3] are positions on both axes and values."""
    xs, ys = _grid(across, points[:, 0]), _grid(up, points[:, 1])
    surface = smoothed(points, xs, ys, (across.choices is not None, up.choices is not None))
    minimise = results.spec.metric.goal == "minimize"
    low, high = np.quantile(points[:, 2] if minimise else -points[:, 2], Z_RANGE)
    shown = np.clip(surface, low, high) if minimise else np.clip(surface, -high, -low)
    look: dict[str, Any] = {
        "x": [_tick(across, x) for x in xs],
        "y": [_tick(up, y) for y in ys],
        "z": [[None if np.isnan(z) else float(f"{z:.5g}") for z in row] for row in shown],
        "colorscale": COLOURS,
        "reversescale": not minimise,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "tickformat": ".3~g"},
        "hovertemplate": f"{across.name} %{{x}}<br>{up.name} %{{y}}<br>about %{{z:.4g}}<extra></extra>",
        "name": "about",
    }
    figure = go.Figure()
    if across.choices is None and up.choices is None:
        figure.add_contour(**look, line={"width": 0.5}, ncontours=12)
    else:
        figure.add_heatmap(**look)
    trials = chosen(results, [t for t in results.trials if t.record.outcome is Outcome.COMPLETE], 300)
    figure.add_scatter(
        x=[across.mark(trial.record.values.get(across.name)) for trial in trials],
        y=[up.mark(trial.record.values.get(up.name)) for trial in trials],
        mode="markers",
        marker={"color": "#ffffff", "size": 6, "line": {"color": "#1c2024", "width": 1}},
        hovertext=[hover(trial) for trial in trials],
        hoverinfo="text",
        showlegend=False,
        name="complete",
    )
    figure.update_xaxes(across.layout)
    figure.update_yaxes(up.layout)
    text = (
        f"{results.spec.metric.name}, smoothed over {len(points)} trials; orange is better. Dots: trials that trained "
        "to the end. Blank where no trial is near."
    )
    return finished(f"{across.name} and {up.name}", text, figure, across.name, up.name)


def smoothed(
    points: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64], categories: tuple[bool, bool]
) -> NDArray[np.float64]:
    """Means of the values near each place, weighted by a normal kernel, NaN far from all points. [len(ys), len(xs)].

    A parameter that is neither on x nor on y makes neighbours differ: lines through the points themselves, as of a map,
    would draw that as hills.

    Args:
        points: [n, 3], x, y and value.
        categories: whether x, y are choices: then only points of the very choice count.
    """
    width = WIDEST * len(points) ** (-1 / 6)  # of a mean in two dimensions, after Silverman 1986
    scaled = []
    for place, at in enumerate((xs, ys)):
        span = float(np.ptp(at)) or 1.0
        unit = 1 / APART if categories[place] else span
        scaled.append((at / unit, points[:, place] / unit))
    (grid_x, x), (grid_y, y) = scaled
    square_x = ((grid_x[:, None] - x) / width) ** 2  # [xs, n]
    square_y = ((grid_y[:, None] - y) / width) ** 2  # [ys, n]
    weights_x, weights_y = np.exp(-square_x / 2), np.exp(-square_y / 2)
    sums = (weights_y * points[:, 2]) @ weights_x.T
    weights = weights_y @ weights_x.T
    # a weight of all is that of one point at the limit of what is near, or of several somewhat farther off
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weights >= np.exp(-(NEAR**2) / 2), sums / weights, np.nan)


def _grid(axis: Axis, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    if axis.choices is not None:
        return np.arange(float(len(axis.choices)))
    return np.linspace(positions.min(), positions.max(), CELLS)


def _tick(axis: Axis, position: float) -> Any:
    return axis.labels[int(position)] if axis.choices is not None else float(f"{axis.value(position):.5g}")


def parallel_figure(results: SweepResults) -> Figure | None:
    """A line through the values of each complete trial, its colour the metric; None where there is none to draw."""
    complete = [t for t in results.trials if t.record.outcome is Outcome.COMPLETE and t.record.value is not None]
    axes = [axis for axis in axes_of(results, results.spec.space.parameters) if varied(axis, complete)]
    if len(complete) < 2 or not axes:
        return None
    trials = sorted(chosen(results, complete, MAX_LINES), key=lambda trial: results.rank(trial.record))
    metric = Axis(results.spec.metric.name, False, None)
    columns = [[axis.position(trial.record.values.get(axis.name)) for trial in trials] for axis in axes]
    columns.append([trial.record.value for trial in trials])
    scaled = [_scaled(column) for column in columns]
    figure = go.Figure()
    for group, places in reversed(_fifths(len(trials))):  # the best are drawn last, on top
        x: list[Any] = []
        y: list[Any] = []
        texts: list[str] = []
        for place in places:
            x += [*range(len(scaled)), None]
            y += [*(column[place] for column in scaled), None]
            texts += [hover(trials[place])] * (len(scaled) + 1)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": SCALE[group], "width": 2 if group == 0 else 1},
            opacity=1.0 if group == 0 else 0.7,
            hovertext=texts,
            hoverinfo="text",
            name=FIFTHS[group] if len(trials) >= len(FIFTHS) else f"trial {trials[places[0]].name}",
        )
    for place, (axis, column) in enumerate(zip([*axes, metric], columns, strict=True)):
        figure.add_vline(x=place, line={"color": "#8b929c", "width": 1})
        _ticks(figure, place, axis, [at for at in column if at is not None])
    names = [axis.name for axis in (*axes, metric)]
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=names, showgrid=False, range=[-0.35, len(names) - 0.7]
    )
    figure.update_yaxes(visible=False)
    figure.update_layout(legend={"traceorder": "reversed"})
    text = (
        "A line for each trial that trained to the end. Where the orange lines come together, the value matters; "
        "where they spread, it does not."
    )
    text += thinned_out(len(trials), len(complete))
    return finished("Parallel coordinates", text, figure, "parameter", "place within the range that was tried")


def _fifths(count: int) -> list[tuple[int, range]]:
    """Which colour has which places, best first; of fewer than five trials each has a colour of its own."""
    if count < len(SCALE):
        last = max(count - 1, 1)
        return [(round(place * (len(SCALE) - 1) / last), range(place, place + 1)) for place in range(count)]
    edges = [round(edge * count / len(SCALE)) for edge in range(len(SCALE) + 1)]
    return list(enumerate(map(range, edges, edges[1:])))


def _scaled(column: Sequence[float | None]) -> list[float | None]:
    known = [at for at in column if at is not None]
    low, span = min(known), max(known) - min(known)
    return [None if at is None else (at - low) / span if span else 0.5 for at in column]


def _ticks(figure: go.Figure, place: int, axis: Axis, known: Sequence[float]) -> None:
    """Numbers or choices beside an axis."""
    if axis.choices is not None:
        shown = sorted(set(known))
        texts = [axis.labels[int(at)] for at in shown]
    else:
        low, high = min(known), max(known)
        shown = [low, (low + high) / 2, high] if high > low else [low]
        texts = [number(float(f"{axis.value(at):.3g}")) for at in shown]
    figure.add_scatter(
        x=[place] * len(shown),
        y=_scaled(shown),
        text=[f" {text}" for text in texts],
        mode="text",
        textposition="middle right",
        textfont={"size": 11},
        hoverinfo="skip",
        showlegend=False,
        name=f"ticks of {axis.name}",
    )
