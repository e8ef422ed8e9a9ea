"""A results folder as one page, RESULTS/report.html, that needs no network and no other file."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from model.metrics import OBJECTIVE_NAMES
from model.sinks import write_text
from sweep.report.answer import SKILLS, answer
from sweep.report.base import Figure
from sweep.report.data import SweepResults, read_results
from sweep.report.figures import MARKS, confirmation_figure, figures, number, state_name
from sweep.report.health import Health, health
from sweep.report.pictures import pictures
from sweep.study import Outcome

MAX_ROWS = 200  # of the table: more make the page slow on a phone
MAX_NOTES = 30  # of what cannot be read: of a folder that was emptied there is one for each trial
TABLE_METRICS = (*OBJECTIVE_NAMES, "eval/reference_loss", *SKILLS, "epoch/actual_static_contribution")
Sections = dict[str, list[Figure]]  # figures by title of their section
AFTER_PICTURES = "Cost"  # sections of figures from this one on stand below the reconstructions


@dataclass(frozen=True)
class Section:
    """A part of the page. `kind` is the template's block that shows it; `figures` those of the kind "figures"."""

    anchor: str
    title: str
    kind: str
    figures: list[Figure]


def write_report(folder: Path, live_s: float | None = None) -> Path:
    """Write report.html into a results folder; returns its path. Raises UserError as `read_results` does."""
    results = read_results(folder)
    return write_page(results, drawn_sections(results), live_s)


def write_page(results: SweepResults, drawn: Sections, live_s: float | None = None) -> Path:
    """Write report.html about these results into their folder; returns its path."""
    path = results.folder / "report.html"
    write_text(path, render(results, drawn, live_s))
    return path


def render(results: SweepResults, drawn: Sections, live_s: float | None = None) -> str:
    """The page; whatever the results hold is shown as text, never run.

    Args:
        drawn: the figures, from `drawn_sections`.
        live_s: seconds after which the page reloads itself, while someone keeps it up to date.
    """
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
    judged = _judged(results)
    shown = pictures(results)
    return templates.get_template("page.html.jinja").render(
        results=results,
        made=time.strftime("%Y-%m-%d %H:%M %z"),
        live_s=live_s,
        answer=answer(results) + (judged.caution if judged else ""),
        counts=[(outcome, counts[outcome]) for outcome in MARKS if counts[outcome]],
        ended=len(results.trials) - counts[Outcome.RUNNING],
        sections=list(_sections(results, drawn, bool(shown), judged)),
        pictures=shown,
        health=judged,
        ranked=ranked[:MAX_ROWS],
        metrics=[name for name in wanted if any(name in trial.metrics for trial in ranked)],
        train_longer=_train_longer(results.folder / "best.yaml"),
        sessions=_sessions(results.provenance),
        settings=_settings(results),
        notes=list(dict.fromkeys(results.notes)),
        max_notes=MAX_NOTES,
        plotly_js=get_plotlyjs(),
    )


def _train_longer(best: Path) -> str | None:
    """The command that the terminal names, too; None where there is no best.yaml."""
    try:
        text = best.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    epochs = re.search(r"^epochs: (\d{1,9})$", text, re.MULTILINE)  # not parsed: the file may be damaged
    longer = f" --set epochs={10 * int(epochs[1])}" if epochs else ""
    return f"python -m model.train {shlex.quote(str(best))}{longer}"


def drawn_sections(results: SweepResults) -> Sections:
    """All figures by section, also the confirmation's; what cannot be drawn is noted in the results."""
    drawn: Sections = {}
    try:
        if results.conclusion is not None:
            drawn["Confirmation"] = [confirmation_figure(results.conclusion)]
        drawn |= figures(results)
    except Exception as error:  # numbers of another version, or damaged ones: the page tells the rest
        results.notes.append(f"figures are missing: they could not be drawn ({type(error).__name__}: {error})")
    return drawn


def _judged(results: SweepResults) -> Health | None:
    try:
        return health(results)
    except Exception as error:  # as above
        results.notes.append(f"the diagnosis is missing ({type(error).__name__}: {error})")
        return None


def _sections(results: SweepResults, drawn: Sections, has_pictures: bool, judged: Health | None) -> list[Section]:
    """The page's parts from the answer down."""
    plain = [(title, "figures", figures) for title, figures in drawn.items() if title != "Confirmation"]
    place = next((place for place, (title, _, _) in enumerate(plain) if title == AFTER_PICTURES), len(plain))
    parts: list[tuple[str, str, list[Figure]]] = []
    if results.conclusion is not None:
        parts.append(("Confirmation", "confirmation", drawn.get("Confirmation", [])))
    parts += plain[:place]
    if has_pictures:
        parts.append(("Reconstructions", "pictures", []))
    parts += plain[place:]
    if judged is not None and judged.judged:
        parts.append(("Diagnosis", "diagnosis", []))
    if results.trials:
        parts.append(("Trials", "trials", []))
    parts.append(("Provenance", "provenance", []))
    return [Section(f"part-{count}", title, kind, made) for count, (title, kind, made) in enumerate(parts, start=1)]


def _sessions(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Sessions of provenance.json, whatever a version or an editor has left of them."""
    sessions = provenance.get("sessions")
    found = [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else []
    for key, kind in (("command", list), ("packages", dict), ("git", dict)):
        found = [{k: v for k, v in session.items() if k != key or isinstance(v, kind)} for session in found]
    return found


def _settings(results: SweepResults) -> dict[str, str]:
    """What one has to know of the spec to repeat the sweep, beside its command."""
    spec = results.spec
    data = spec.trainer.data.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    seeds = f"search {spec.search.seed}, training {spec.trainer.seed}"
    if results.conclusion is not None:
        seeds += f", confirmation {', '.join(map(str, results.conclusion.seeds))}"
    return {
        "seeds": seeds,
        "data": json.dumps({"source": spec.trainer.data.source, **data}, ensure_ascii=False),
        "spec": str(results.folder / "spec.yaml"),
    }
