"""What the sweep has cost, as bars."""

from __future__ import annotations

import plotly.graph_objects as go

from sweep.report.base import BLUE, GREEN, GREY, ORANGE, RED, Figure, finished
from sweep.report.cost import CONFIRMATION, GROUPS, cost_of
from sweep.report.data import SweepResults
from sweep.study import Outcome
from sweep.words import duration

COLOURS = {
    GROUPS[Outcome.COMPLETE]: BLUE,
    GROUPS[Outcome.PRUNED]: GREY,
    GROUPS[Outcome.DIVERGED]: RED,
    GROUPS[Outcome.FAILED]: RED,
    GROUPS[Outcome.RUNNING]: GREEN,
    CONFIRMATION: ORANGE,
}
SAVED = "saved by early stopping"
HOURS_FROM_S = 2 * 3600  # above it the axis counts hours, below it minutes


def cost_figure(results: SweepResults) -> Figure:
    """Accelerator hours by what became of the trials, or core hours where none has an accelerator."""
    cost = cost_of(results)
    text = " ".join(cost.sentences())
    if not cost.total.timed:
        return Figure("Cost", text, "")
    bars = [(group.name, group.seconds, f"{group.trials} trials", COLOURS[group.name]) for group in cost.groups]
    if cost.saved_s:
        bars.append((SAVED, cost.saved_s, "not spent", "rgba(0,0,0,0)"))
    bars.reverse()  # plotly draws the first one at the bottom
    each = cost.resources.gpu or cost.resources.cpu
    unit, size = ("hours", 3600) if cost.total.seconds * each >= HOURS_FROM_S else ("minutes", 60)
    figure = go.Figure()
    figure.add_bar(
        x=[seconds * each / size for _, seconds, _, _ in bars],
        y=[name for name, _, _, _ in bars],
        orientation="h",
        marker={"color": [colour for *_, colour in bars], "line": {"color": GREY, "width": 1}},
        text=[f"{trials}, {duration(seconds)}" for _, seconds, trials, _ in bars],
        textposition="auto",
        hoverinfo="skip",
        width=0.6,
    )
    figure.update_yaxes(type="category")
    what = "accelerator" if cost.resources.gpu else "CPU core"
    return finished("Cost", text, figure, f"{what} {unit}", "what became of the trials")
