"""What a sweep has cost: the workers' time, cores and accelerators.

cost = cost_of(read_results(Path("results/alpha_beta")))
cost.total.seconds, cost.saved_s, cost.sentences()
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.outcome import Outcome
from sweep.report.data import SweepResults, TrialResult
from sweep.resources import Resources
from sweep.results import ResultsFolder
from sweep.study import JOURNAL, SEARCH_SECONDS
from sweep.table_rows import sound_table
from sweep.words import duration

GROUPS = {  # of the search's trials, as the page calls them
    Outcome.COMPLETE: "trained to the end",
    Outcome.PRUNED: "stopped early",
    Outcome.DIVERGED: "diverged",
    Outcome.FAILED: "failed",
    Outcome.RUNNING: "not ended",
}
CONFIRMATION = "confirmation"


@dataclass(frozen=True)
class Group:
    """Trials of one fate. `seconds` are those that workers spent on them; `timed` is how many have a time."""

    name: str
    trials: int
    timed: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """What a sweep has cost.

    Attributes:
        groups: those with trials, the confirmation last.
        wall_s: that drivers spent, sessions added up; None where no driver ran the trials.
        saved_s: what trials that were stopped early would have taken for the rest of their epochs, each at its speed.
    """

    groups: tuple[Group, ...]
    resources: Resources
    wall_s: float | None
    saved_s: float

    @property
    def total(self) -> Group:
        """All groups."""
        return Group(
            "all",
            sum(group.trials for group in self.groups),
            sum(group.timed for group in self.groups),
            math.fsum(group.seconds for group in self.groups),
        )

    @property
    def accelerator_hours(self) -> float:
        """GPUs x hours; a share of a GPU counts as that share."""
        return self.total.seconds * self.resources.gpu / 3600

    @property
    def cpu_hours(self) -> float:
        """Cores x hours that trials reserved."""
        return self.total.seconds * self.resources.cpu / 3600

    def sentences(self) -> list[str]:
        """All of it for readers."""
        total, gpu = self.total, self.resources.gpu
        if not total.timed:
            return ["No trial tells how long it took."]
        plural = "" if self.resources.cpu == 1 else "s"
        parts = [f"{self.cpu_hours:.3g} CPU core hours ({self.resources.cpu:g} core{plural} a trial)"]
        if gpu:
            parts.insert(0, f"{self.accelerator_hours:.3g} accelerator hours ({gpu:g} GPU a trial)")
        said = [f"Trials took {duration(total.seconds)} one after another: {' and '.join(parts)}."]
        if self.wall_s is not None:
            said.append(f"The sweep took {duration(self.wall_s)} by the clock, its sessions added up.")
        if self.saved_s:
            share = self.saved_s / (self.saved_s + total.seconds)
            said.append(
                f"Early stopping saved about {duration(self.saved_s)} ({share:.0%}): what the stopped trials would "
                "have taken for their other epochs."
            )
        if total.timed < total.trials:
            said.append(f"{total.trials - total.timed} of {total.trials} trials have no time yet and are not counted.")
        return said


def cost_of(results: SweepResults) -> Cost:
    """The cost as the results folder tells it; what is missing or damaged there is not counted."""
    groups = [
        _group(name, [trial.record.seconds for trial in results.trials if trial.record.outcome is outcome])
        for outcome, name in GROUPS.items()
    ]
    confirmed = _confirmation_seconds(ResultsFolder(results.folder).confirm_runs_file)
    groups.append(_group(CONFIRMATION, list(confirmed.values())))
    return Cost(
        groups=tuple(group for group in groups if group.trials),
        resources=results.spec.resources,
        wall_s=wall_seconds(results.folder / JOURNAL),
        saved_s=math.fsum(_saved(results, trial) for trial in results.trials),
    )


def wall_seconds(journal: Path) -> float | None:
    """Seconds that drivers noted in the journal of a study, search and confirmation added up; None without any."""
    spent: dict[Any, float] = {}
    try:
        with journal.open("rb") as lines:
            for line in lines:
                if SEARCH_SECONDS.encode() in line:
                    with suppress(ValueError, LookupError, TypeError):
                        entry = json.loads(line)
                        spent[entry["study_id"]] = float(entry["user_attr"][SEARCH_SECONDS])
    except OSError:
        return None
    return math.fsum(spent.values()) if spent else None


def _group(name: str, seconds: list[float]) -> Group:
    return Group(name, len(seconds), sum(s > 0 for s in seconds), math.fsum(seconds))


def _confirmation_seconds(path: Path) -> dict[str, float]:
    """Seconds of each run of confirm.csv; 0 where it does not tell."""
    found: dict[str, float] = {}
    for row in sound_table(path)[0]:
        cells = (row.cells.get("seconds"), row.cells.get("summary/total_time_seconds"))
        found[str(row.cells.get("trial"))] = next((s for cell in cells if (s := _seconds(cell)) > 0), 0.0)
    return found


def _seconds(cell: Any) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return 0.0
    return value if 0 <= value < math.inf else 0.0


def _saved(results: SweepResults, trial: TrialResult) -> float:
    record = trial.record
    planned = record.values.get("epochs", results.spec.trainer.epochs)
    if record.outcome is not Outcome.PRUNED or record.epochs < 1 or not isinstance(planned, int | float):
        return 0.0
    return record.seconds / record.epochs * max(0.0, planned - record.epochs)
