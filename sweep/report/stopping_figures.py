"""Early stopping's ladder: how far each trial came, and with what value it went on or was stopped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sweep.early_stopping import MEDIAN_MIN_TRIALS, max_epochs
from sweep.outcome import Outcome
from sweep.report.as_study import values_by_epoch
from sweep.report.base import BLUE, GREY, ORANGE, RED, Figure, chosen, finished, hover, number, thin, thinned_out
from sweep.report.data import SweepResults, TrialResult
from sweep.spec import SweepSpec

TITLE = "Early stopping's ladder"
MAX_CLIMBERS, MAX_STEPS = 300, 40  # trials that are drawn, and points of each
MAX_NAMED = 8  # rungs that the text counts
WIDE = 6.0  # rungs so many times apart stand on a log axis


def rungs(spec: SweepSpec) -> list[int]:
    """Epochs after which trials may be stopped, in order: as the schedulers decide. Empty where none is."""
    stop, longest = spec.early_terminate, max_epochs(spec)
    if stop is None or stop.first_rung >= longest:
        return []
    if stop.type == "median":
        return list(range(stop.first_rung, longest))
    return list(dict.fromkeys(_halvings(stop.first_rung, stop.eta, longest)))


def _halvings(first: int, eta: float, longest: int) -> Iterator[int]:
    rung = float(first)
    while math.ceil(rung) < longest:
        yield math.ceil(rung)  # the first epoch that is not before the rung
        rung *= eta


def ladder(results: SweepResults) -> Figure | None:
    """The value of each trial at each rung; None where the sweep stops no trial early."""
    spec = results.spec
    there = [(trial, values) for trial in results.trials if (values := values_by_epoch(results, trial))]
    stopped = [trial for trial in results.trials if trial.record.outcome is Outcome.PRUNED]
    if not there or (spec.early_terminate is None and not stopped):
        return None
    levels = rungs(spec)
    if not levels and not stopped:
        assert spec.early_terminate is not None
        first, longest = spec.early_terminate.first_rung, max_epochs(spec)
        text = f"Nothing is stopped: the first decision would come after {first} epochs, and trials have {longest}."
        return Figure(TITLE, text, "")
    known = {trial.name: values for trial, values in there}
    trials = chosen(results, [trial for trial, _ in there], MAX_CLIMBERS)
    figure = go.Figure()
    x: list[Any] = []
    y: list[Any] = []
    for trial in trials:
        values = known[trial.name]
        steps = thin([epochs for epochs in levels if epochs in values], MAX_STEPS)
        steps += [last for last in (max(values),) if last not in steps]
        x += [*steps, None]
        y += [*(values[epochs] for epochs in steps), None]
    look = {"color": GREY, "width": 1}
    figure.add_scatter(x=x, y=y, mode="lines", line=look, opacity=0.5, hoverinfo="skip", name="a trial's way")
    _add_cutoffs(figure, results, levels, known)
    marks = {Outcome.COMPLETE: ("trained to the end", "circle", BLUE), Outcome.PRUNED: ("stopped", "x", RED)}
    for outcome, (name, symbol, colour) in marks.items():
        ended = [trial for trial in trials if trial.record.outcome is outcome]
        figure.add_scatter(
            x=[max(known[trial.name]) for trial in ended],
            y=[known[trial.name][max(known[trial.name])] for trial in ended],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": 8},
            hovertext=[hover(trial) for trial in ended],
            hoverinfo="text",
            visible=bool(ended),
        )
    ends = sorted({*levels, *(max(values) for values in known.values())})
    figure.update_xaxes(type="log" if len(levels) > 1 and ends[-1] / ends[0] >= WIDE else "linear")
    if len(ends) <= 12:
        figure.update_xaxes(tickvals=ends, ticktext=[str(end) for end in ends])
    text = _counted(results, levels, stopped, known) + thinned_out(len(trials), len(there))
    return finished(TITLE, text, figure, "epochs done", spec.metric.name)


def _add_cutoffs(
    figure: go.Figure, results: SweepResults, levels: list[int], known: Mapping[str, Mapping[int, float]]
) -> None:
    """Of successive halving: what the best 1/eta of the trials have at each rung."""
    stop = results.spec.early_terminate
    if stop is None or stop.type != "hyperband":
        return
    share = 100 / stop.eta if results.spec.metric.goal == "minimize" else 100 - 100 / stop.eta
    at = {level: [values[level] for values in known.values() if level in values] for level in levels}
    reached = [level for level in levels if len(at[level]) > 1]
    figure.add_scatter(
        x=reached,
        y=[float(np.percentile(at[level], share)) for level in reached],
        mode="markers",
        name=f"limit of the best 1/{stop.eta:g}",
        marker={"symbol": "line-ew", "size": 26, "line": {"color": ORANGE, "width": 3}},
        hovertemplate="limit at the end of the sweep: %{y:.4g}<extra></extra>",
        visible=bool(reached),
    )


def _counted(
    results: SweepResults,
    levels: list[int],
    stopped: list[TrialResult],
    known: Mapping[str, Mapping[int, float]],
) -> str:
    """How many trials were stopped where, and by which rule."""
    spec = results.spec
    stop, ends = spec.early_terminate, Counter(trial.record.epochs for trial in stopped)
    reached = Counter(epochs for values in known.values() for epochs in values)
    counts = [
        f"after {epochs} epoch{'s' if epochs > 1 else ''} {ends[epochs]} of {reached[epochs]} stopped"
        for epochs in sorted({*ends, *(levels if len(levels) <= MAX_NAMED else ())})
        if reached[epochs]
    ]
    more = f"; {len(counts) - MAX_NAMED} more" if len(counts) > MAX_NAMED else ""
    said = f"{'; '.join(counts[:MAX_NAMED])}{more}.".capitalize() if counts else "No trial has come to a decision yet."
    if stop is None:
        return f"{said} The spec stops no trial: these were stopped by W&B."
    if stop.type == "median":
        others = stop.min_trials or MEDIAN_MIN_TRIALS
        rule = (
            f"After each epoch from {stop.first_rung} on, a trial is stopped whose best value is worse than the median "
            f"of the others' means, where {others} have come as far."
        )
    else:
        rule = (
            f"Successive halving: at each rung a trial goes on that is among the best 1/{number(float(stop.eta))} of "
            "those that came there before it, so early ones had fewer rivals than the limit shows."
        )
    return f"{said} {rule} Presets are never stopped."
