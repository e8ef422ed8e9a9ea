"""What all figures of the report share: their form, colours, marks, and how numbers and states are written.

Every figure is SVG: WebGL needs code that is made at run time, which the page forbids, a browser draws at most about 16
such figures at once, and they print as pixels. So what SVG cannot draw quickly is thinned out, and the text says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar

import plotly.graph_objects as go

from model.sinks import spread
from sweep.outcome import Outcome
from sweep.report.data import SweepResults, TrialResult

T = TypeVar("T")

MAX_POINTS = 500  # of a curve: more cannot be told apart on a screen
MAX_TRIALS = 1500  # drawn as a mark each: more make the page large and slow
MAX_LABEL = 40  # characters of a label; a path would push the figure aside

# hues that stand out on white and on black, and that the colour-blind can tell apart
ORANGE, BLUE, GREEN, PURPLE, RED, GREY = "#e07a2f", "#4c8bf5", "#2a9d74", "#a06cd5", "#d9485f", "#8b929c"
MARKS = {  # best comparable first
    Outcome.COMPLETE: ("circle", BLUE),
    Outcome.PRUNED: ("circle-open", GREY),
    Outcome.RUNNING: ("diamond-open", GREEN),
    Outcome.DIVERGED: ("x", RED),
    Outcome.FAILED: ("x-open", RED),
}
# of ordered values, best first; all of them show on white and on black
SCALE = ("#e07a2f", "#c98a5e", "#9a8fa0", "#6f8bc8", "#4c8bf5")
COLOURS = [[place / (len(SCALE) - 1), colour] for place, colour in enumerate(SCALE)]


@dataclass(frozen=True)
class Figure:
    """A figure of the page; `html` is a div and its script, for a page that has plotly.js. Empty where nothing can be
    drawn: `text` then says why."""

    title: str
    text: str
    html: str
    figure: go.Figure | None = None
    """The same for a notebook."""


def finished(title: str, text: str, figure: go.Figure, x: str | None, y: str | None) -> Figure:
    """A plotly figure in the page's form.

    Args:
        text: how to read it.
        x, y: titles of the axes; None leaves an axis as it is.
    """
    figure.update_layout(
        template="none",  # colours of text and grid are the page's
        title=None,
        margin={"l": 62, "r": 12, "t": 10, "b": 46},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
    )
    if x is not None:
        figure.update_xaxes(title=x, zeroline=False, automargin=True)
    if y is not None:
        figure.update_yaxes(title={"text": y, "standoff": 12}, zeroline=False, automargin=True)
    html = figure.to_html(
        include_plotlyjs=False,
        full_html=False,
        default_height="340px",
        config={"displayModeBar": False},
    )
    return Figure(title, text, html, figure)


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


def label(value: object) -> str:
    """A text that a figure shows: short, and text only, since plotly takes simple HTML."""
    text = number(value)
    return escape(text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 3]}...")


def thin(rows: Sequence[T], limit: int = MAX_POINTS) -> list[T]:
    """At most `limit` (2 or more) of the rows, evenly spread, the first and the last among them."""
    return [rows[place] for place in spread(len(rows), limit)]


def chosen(results: SweepResults, trials: Sequence[TrialResult], most: int = MAX_TRIALS) -> list[TrialResult]:
    """At most about `most` of the trials, in their order: a third of them the best, the presets, and an even choice."""
    if len(trials) <= most:
        return list(trials)
    ranked = sorted(
        trials, key=lambda trial: (trial.record.outcome is not Outcome.COMPLETE, results.rank(trial.record))
    )
    kept = {trial.name for trial in ranked[: most // 3]}
    kept |= {trial.name for trial in trials if trial.record.preset is not None}
    others = thin([trial for trial in trials if trial.name not in kept], max(2, most - len(kept)))
    kept |= {trial.name for trial in others}
    return [trial for trial in trials if trial.name in kept]


def thinned_out(drawn: int, there: int) -> str:
    """The sentence that says that not all trials are drawn; empty where they are."""
    return f" {drawn} of {there} trials are drawn: the best, and an even choice of the others." if drawn < there else ""


def add_trials(
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
            hovertext=[hover(trial) for trial in shown],
            hoverinfo="text",
            visible=bool(shown),
            showlegend=legend,
        )


def hover(trial: TrialResult) -> str:
    """What plotly shows at a trial's mark."""
    record = trial.record
    lines = [
        f"trial {trial.name}, {state_name(record.outcome)}, epochs: {record.epochs}",
        f"value {number(record.value)}",
    ]
    lines += [f"{name} {number(value)}" for name, value in record.values.items()]
    return "<br>".join(escape(line) for line in [*lines, *filter(None, [record.preset, record.reason])])
