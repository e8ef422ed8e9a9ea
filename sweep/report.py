"""`python -m sweep.report RESULTS`: the results folder of a sweep as one page, RESULTS/report.html.

    python -m sweep.report results/alpha_beta

The page needs no network and no other file. It is made of what the folder holds now, so it also tells of a sweep that
runs, was stopped or failed; what is missing or cannot be read is named on the page.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from model.errors import UserError
from model.metrics import BATCH_STEP, EPOCH_STEP, OBJECTIVE_NAMES
from model.sinks import Row, write_text
from sweep.report_data import SweepResults, TrialResult, load_results
from sweep.space import Choice, distribution_of
from sweep.study import Outcome

REPORT = "report.html"
MAX_ROWS = 200  # of the table: more make the page slow on a phone
MAX_POINTS = 500  # of a curve: more cannot be told apart on a screen
CORE_TRIANGLE = {  # closing section of the metric text
    "batch/loss_total": "What training minimises: it falls, then levels off. Not comparable between weights.",
    "batch/loss_ratio": "Static by dynamic loss: it should settle.",
    "batch/static_contribution": "Share of the static loss in the total: it should come near the target (dotted).",
}
REFERENCE_LOSS = "eval/reference_loss"
SKILLS = {"eval/static_skill": "predicting the mean frame", "eval/pred_skill": "copying frame 3"}
TABLE_METRICS = (*OBJECTIVE_NAMES, REFERENCE_LOSS, *SKILLS, "epoch/actual_static_contribution")

# hues that stand out on white and on black, and that the colour-blind can tell apart
ORANGE, BLUE, GREEN, PURPLE, RED, GREY = "#e07a2f", "#4c8bf5", "#2a9d74", "#a06cd5", "#d9485f", "#8b929c"
MARKS = {  # in the table's order: a pruned trial's value is of fewer epochs
    Outcome.COMPLETE: ("circle", BLUE),
    Outcome.PRUNED: ("circle-open", GREY),
    Outcome.RUNNING: ("diamond-open", GREEN),
    Outcome.DIVERGED: ("x", RED),
    Outcome.FAILED: ("x-open", RED),
}
LINES = ((ORANGE, "solid"), (BLUE, "dash"), (GREEN, "dot"), (PURPLE, "dashdot"))


def write_report(folder: Path) -> Path:
    """Write report.html into a results folder; returns its path. Raises UserError as `load_results` does."""
    path = folder / REPORT
    write_text(path, render(load_results(folder)))
    return path


def render(results: SweepResults) -> str:
    """The page; texts from the results are escaped in it."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = Counter(trial.record.outcome for trial in results.trials)
    sections = {
        "Search": [_history(results)] if results.trials else [],
        "Parameters": [_slice(results, name) for name in results.spec.space.parameters] if results.trials else [],
        "Training": [_updates(results, name, text) for name, text in CORE_TRIANGLE.items() if any(results.batches.values())],
        "Held-out clips": [_reference_loss(results)] if any(trial.epochs for trial in results.trials) else [],
    }
    columns, rows = _table(results)
    return templates.get_template("report.html.jinja").render(
        plotly_js=get_plotlyjs(),
        results=results,
        made=time.strftime("%Y-%m-%d %H:%M %z"),
        answer=answer(results),
        counts=[(state_name(outcome), counts[outcome]) for outcome in MARKS if counts[outcome]],
        ended=len(results.trials) - counts[Outcome.RUNNING],
        sections={title: figures for title, figures in sections.items() if figures},
        columns=columns,
        rows=rows,
        sessions=[_session(session) for session in results.sessions],
        has_best=(results.folder / "best.yaml").is_file(),
    )


def answer(results: SweepResults) -> str:
    """What the sweep found, in plain sentences."""
    winner, metric = results.best, results.spec.metric.name
    if winner is None:
        return _no_winner(results)
    value, row = winner.record.value or 0.0, winner.metrics
    complete = sum(trial.record.outcome is Outcome.COMPLETE for trial in results.trials)
    rank = f"the best of the {complete} trials that" if complete > 1 else "the only trial that"
    parts = [f"{name.partition('/')[2]} {number(row[name])}" for name in OBJECTIVE_NAMES[1:] if name in row]
    made_of = f" (from {', '.join(parts)})" if metric == OBJECTIVE_NAMES[0] and parts else ""
    sentences = [
        f"Trial {winner.name} is {rank} trained to the end: {metric} {number(value)}{made_of}"
        + (f", with {_values(winner)}." if winner.record.values else "."),
        _against_equal_weights(results, winner, value),
    ]
    for name, rival in SKILLS.items():
        if name in row:
            sentences.append(f"Its {name} is {number(row[name])}: {'better' if row[name] > 0 else 'not better'} than {rival}.")
    return " ".join(sentences)


def _no_winner(results: SweepResults) -> str:
    if not results.trials:
        return "No trial has left anything yet."
    sentences = ["No trial has trained to its end, so there is no best one."]
    valued = [trial for trial in results.trials if trial.record.value is not None]
    if valued:
        first = min(valued, key=lambda trial: results.rank(trial.record))
        sentences.append(
            f"The best value so far is {results.spec.metric.name} {number(first.record.value)}, of trial {first.name} "
            f"after {first.record.epochs} epochs ({state_name(first.record.outcome)}); values after different numbers "
            "of epochs do not compare."
        )
    reasons = Counter(trial.record.reason for trial in results.trials if trial.record.reason)
    if reasons:
        sentences.append("Reasons: " + "; ".join(f"{text} ({count})" for text, count in reasons.most_common(3)) + ".")
    return " ".join(sentences)


def _against_equal_weights(results: SweepResults, winner: TrialResult, value: float) -> str:
    equal = results.equal
    if equal is None:
        return "No equal-weights preset was tried, so there is no gain to state."
    if equal is winner:
        return "It is the equal-weights preset itself: the search found nothing better."
    if equal.record.outcome is not Outcome.COMPLETE or equal.record.value is None:
        state = state_name(equal.record.outcome)
        return f"The equal-weights preset (trial {equal.name}) is {state}, so there is no gain to state."
    base = equal.record.value
    gain = abs(base - value)
    share = f" ({gain / abs(base):.1%})" if base else ""
    return (
        f"That is better by {number(gain)}{share} than the equal-weights preset (trial {equal.name}: {number(base)}). "
        "One seed each is no proof, and the best of many is picked for luck too: train both again with other seeds "
        "before you publish."
    )


def state_name(outcome: Outcome) -> str:
    """For readers: whether a trial without an end still runs cannot be seen in the folder."""
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


def _values(trial: TrialResult) -> str:
    return ", ".join(f"{name} = {number(value)}" for name, value in trial.record.values.items())


def _table(results: SweepResults) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Column names, and per trial, best first, its (text, whether it is a number)."""
    ranked = sorted(results.trials, key=lambda t: (list(MARKS).index(t.record.outcome), results.rank(t.record)))[:MAX_ROWS]
    wanted = dict.fromkeys((results.spec.metric.name, *TABLE_METRICS))
    metrics = [name for name in wanted if any(name in trial.metrics for trial in ranked)]
    parameters = list(results.spec.space.parameters)
    rows = []
    for trial in ranked:
        record = trial.record
        texts = (trial.name, state_name(record.outcome), record.preset or "")
        numbers = (number(record.epochs), *(number(record.values.get(name)) for name in parameters))
        rows.append(
            [(text, False) for text in texts]
            + [(text, True) for text in (*numbers, *(number(trial.metrics.get(name), True) for name in metrics))]
            + [(record.reason or "", False)]
        )
    return ["trial", "state", "preset", "epochs", *parameters, *metrics, "reason"], rows


def _session(session: Mapping[str, Any]) -> dict[str, str]:
    git = session.get("git") or {}
    shown = {
        "started": session.get("started"),
        "command": shlex.join(map(str, session.get("command", []))),
        "commit": f"{git['commit']}{' and changes' if git.get('changed') else ''}" if "commit" in git else None,
        "host": f"{session.get('host')}, {session.get('cpus')} CPUs, {session.get('platform')}",
        "python": session.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in session.get("packages", {}).items()),
    }
    return {name: str(text) for name, text in shown.items() if text}
