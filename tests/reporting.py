"""Results folders by the sweep's own writers, and their reports as a reader has them, for the report's tests."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from specs import make

from model.metrics import Level
from model.sinks import CsvSink, Event
from sweep.report.data import read_results
from sweep.report.page import write_page, write_report
from sweep.results import ResultsFolder
from sweep.spec import SweepSpec
from sweep.study import Outcome, SweepStudy
from sweep.trial_table import TrialTable

COMPLETE, PRUNED, RUNNING, DIVERGED, FAILED = (
    Outcome.COMPLETE,
    Outcome.PRUNED,
    Outcome.RUNNING,
    Outcome.DIVERGED,
    Outcome.FAILED,
)
PRESETS = (("equal-weights", {"alpha": 0.5}), ("balanced-weights", {"alpha": 0.75}))
UPDATES = 3  # of an epoch
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=hack()>"


@dataclass
class Ending:
    """How a trial of a made sweep went: the metric after each epoch, and how it ended."""

    outcome: Outcome
    values: tuple[float, ...] = ()
    reason: str | None = None


def sweep_folder(
    folder: Path, *endings: Ending, presets: Any = PRESETS, updates: int = UPDATES, spec: SweepSpec | None = None
) -> Path:
    """A results folder with these trials, by the writers that a sweep uses."""
    spec = spec or make()
    results = ResultsFolder(folder)
    results.open(spec, resume=False)
    results.write_provenance(spec)
    study = SweepStudy(folder, spec.name, spec.space, sampler="random", goals=[spec.metric.goal], first=presets)
    for ending in endings:
        trial = study.next().number
        sink = CsvSink(folder / "trials" / f"{trial:04d}")
        for epoch, value in enumerate(ending.values):
            for update in range(updates):
                sink.log(Event(Level.BATCH, batch_row(epoch, epoch * updates + update)))
            sink.log(Event(Level.EPOCH, epoch_row(epoch, value) | {spec.metric.name: value}))
            study.report(trial, epoch, value)
        sink.close(0)
        if ending.outcome is not RUNNING:
            study.finish(trial, ending.outcome, ending.reason)
    table = TrialTable(results, spec)
    for record in study.records():
        table.update(record)
    table.write()
    results.close()
    return folder


def batch_row(epoch: int, iteration: int) -> dict[str, float]:
    row = {"batch/epoch": epoch, "batch/iteration": iteration, "batch/loss_total": 1 / (1 + iteration)}
    return row | {"batch/loss_ratio": 0.8, "batch/static_contribution": 0.45}


def epoch_row(epoch: int, value: float) -> dict[str, float]:
    row = {"epoch": epoch, "epoch/train_loss": 1.0, "eval/reference_loss": value / 2}
    row |= {"eval/static_skill": 0.25, "eval/pred_skill": -3.0}
    return row | {"objective/loss": value / 2, "objective/imbalance": 0.125, "objective/instability": 0.0625}


class Page(HTMLParser):
    """A report as a reader has it: its words outside scripts and styles, its scripts, its tags and their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._inside = ""
        self.feed(self.html)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self.words += " "

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.words += data

    @property
    def plots(self) -> dict[str, tuple[dict[str, dict[str, Any]], dict[str, Any]]]:
        """(traces by name, layout) by "y axis / x axis"."""
        found = {}
        decoder = json.JSONDecoder()
        for script in self.scripts[1:]:
            for match in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', script):
                data, end = decoder.raw_decode(script, match.end())
                layout, _ = decoder.raw_decode(script, end + re.match(r",\s*", script[end:]).end())
                traces = {trace.get("name", "best"): trace for trace in data if trace.get("visible", True)}
                found[f"{layout['yaxis']['title']['text']} / {layout['xaxis']['title']['text']}"] = traces, layout
        return found


def report(folder: Path) -> Page:
    """The page, as the command writes it."""
    return Page(write_report(folder))


def told(folder: Path) -> str:
    """The page's words; its figures, which take most of the time, are left out."""
    return Page(write_page(read_results(folder), {})).words
