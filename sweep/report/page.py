"""A results folder as one page, RESULTS/report.html, that needs no network and no other file."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from model.metrics import OBJECTIVE_NAMES
from model.sinks import write_text
from sweep.report.answer import SKILLS, answer
from sweep.report.data import SweepResults, load_results
from sweep.report.figures import MARKS, confirmation_figure, figures, number, state_name
from sweep.study import Outcome

MAX_ROWS = 200  # of the table: more make the page slow on a phone
TABLE_METRICS = (*OBJECTIVE_NAMES, "eval/reference_loss", *SKILLS, "epoch/actual_static_contribution")


def write_report(folder: Path) -> Path:
    """Write report.html into a results folder; returns its path. Raises UserError as `load_results` does."""
    path = folder / "report.html"
    write_text(path, render(load_results(folder)))
    return path


def render(results: SweepResults) -> str:
    """The page; whatever the results hold is shown as text, never run."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # provenance.json of another version may lack keys
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = number
    templates.filters["state"] = state_name
    counts = Counter(trial.record.outcome for trial in results.trials)
    order = list(MARKS)
    ranked = sorted(results.trials, key=lambda t: (order.index(t.record.outcome), *results.rank(t.record)))
    wanted = dict.fromkeys((*(metric.name for metric in results.spec.objectives), *TABLE_METRICS))
    return templates.get_template("page.html.jinja").render(
        results=results,
        made=time.strftime("%Y-%m-%d %H:%M %z"),
        answer=answer(results),
        counts=[(outcome, counts[outcome]) for outcome in MARKS if counts[outcome]],
        ended=len(results.trials) - counts[Outcome.RUNNING],
        confirmation=confirmation_figure(results.conclusion) if results.conclusion else None,
        sections=figures(results),
        ranked=ranked[:MAX_ROWS],
        metrics=[name for name in wanted if any(name in trial.metrics for trial in ranked)],
        has_best=(results.folder / "best.yaml").is_file(),
        plotly_js=get_plotlyjs(),
    )
