"""A results folder as it is now, read without changing it: also one that is still written to, or was damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from model.errors import UserError
from model.sinks import Row, read_csv
from sweep.conclusion import Conclusion
from sweep.front import front_of
from sweep.report.lenient import read_spec, read_trials
from sweep.results import RUNS, ResultsFolder, equal_weights
from sweep.space import Choice
from sweep.spec import SweepSpec
from sweep.study import Outcome, Record, best

T = TypeVar("T")

MAX_WATCHED = 4  # trials whose updates are drawn: more curves hide each other


@dataclass(frozen=True)
class TrialResult:
    """A trial. `metrics` are the finite ones after its last epoch and of its summary, by full name."""

    name: str
    record: Record
    metrics: dict[str, float]
    epochs: Sequence[Row]


@dataclass(frozen=True)
class SweepResults:
    """What a results folder tells. `notes` say what is missing or cannot be read."""

    folder: Path
    spec: SweepSpec
    trials: list[TrialResult]  # by number
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    conclusion: Conclusion | None = None  # of the confirmation that the spec asks for

    @property
    def single(self) -> bool:
        """Whether its trials were run one by one, by W&B's agents or by hand: then no command goes on with them."""
        return (self.folder / RUNS).exists()

    @property
    def best(self) -> TrialResult | None:
        """The best trial that trained to its end; None where several metrics are optimised."""
        if self.spec.metrics:
            return None
        return self._of(best([trial.record for trial in self.trials], self.spec.metric.goal))

    @property
    def front(self) -> list[TrialResult]:
        """The Pareto front, where several metrics are optimised."""
        found = (self._of(record) for record in front_of([trial.record for trial in self.trials], self.spec))
        return [trial for trial in found if trial is not None]

    @property
    def equal(self) -> TrialResult | None:
        """The equal-weights preset."""
        return self._of(equal_weights(trial.record for trial in self.trials))

    @property
    def answered(self) -> tuple[TrialResult, str] | None:
        """The trial whose config is the answer, and what it is: the confirmed one, else the search's best, else the
        front's first."""
        if self.conclusion is not None and self.conclusion.confirmed and self.conclusion.chosen_row is not None:
            source = self.conclusion.chosen_row.source
            for trial in self.trials:
                if trial.name == source:
                    return trial, "confirmed config"
        if self.best is not None:
            return self.best, "best trial"
        return (self.front[0], "first of the front") if self.front else None

    @property
    def watched(self) -> list[TrialResult]:
        """The best trial, then the presets; the first trials where there is neither."""
        winner = self.best
        presets = [trial for trial in self.trials if trial.record.preset is not None and trial is not winner]
        return ([winner, *presets] if winner else presets or self.trials)[:MAX_WATCHED]

    def rank(self, record: Record) -> tuple[bool, float, int]:
        """Sort key: the best value of the metric first, trials without a value last."""
        return record.value is None, self.spec.metric.sign * (record.value or 0.0), record.number

    def batches(self, trial: TrialResult, most: int | None = None) -> Sequence[Row]:
        """The trial's rows per gradient update; at most `most` (2 or more) of them, evenly spread, with both ends."""
        path = self.folder / "trials" / trial.name / "batch.csv"
        return _attempt(lambda path: read_csv(path, most=most), path, self.notes) or []

    def _of(self, record: Record | None) -> TrialResult | None:
        return next((trial for trial in self.trials if trial.record is record), None)


def read_results(folder: Path) -> SweepResults:
    """Read a results folder; what is damaged or of another version is noted. Raises UserError where it is none."""
    notes: list[str] = []
    rows = read_trials(folder / "trials.csv", notes)
    if not rows and not (folder / "spec.yaml").is_file():
        what = "holds no sweep (it has no spec.yaml)" if folder.is_dir() else "is no folder"
        raise UserError(
            f"results: {folder} {what}; give the results folder of a sweep, such as results/alpha_beta. "
            "python -m sweep.run SPEC makes one"
        )
    spec = read_spec(folder / "spec.yaml", rows, notes)
    provenance = _attempt(lambda path: ResultsFolder(path).provenance(), folder, notes) or {}
    for path in (folder / "trials").glob("*"):
        if path.is_dir() and path.name.isdecimal():  # a trial enters the table when it ends
            rows.setdefault(path.name, {"trial": path.name, "state": Outcome.RUNNING})
    trials = [_trial(rows[name], folder, spec, notes) for name in sorted(rows, key=int)]
    lost = [t.name for t in trials if not t.epochs and t.record.epochs]
    if lost:
        shown = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        notes.append(f"trial {shown}: epoch.csv is missing or holds no epoch; what is shown is from trials.csv")
    return SweepResults(folder, spec, trials, provenance, notes, _conclusion(folder, spec, notes))


def _conclusion(folder: Path, spec: SweepSpec, notes: list[str]) -> Conclusion | None:
    path = ResultsFolder(folder).conclusion_file
    if spec.confirm is None or not path.exists():
        return None
    return _attempt(lambda path: Conclusion.model_validate_json(path.read_bytes()), path, notes)


def _trial(row: Mapping[str, Any], folder: Path, spec: SweepSpec, notes: list[str]) -> TrialResult:
    epochs = _attempt(read_csv, folder / "trials" / row["trial"] / "epoch.csv", notes) or []
    cells = {**row, **(epochs[-1] if epochs else {})}
    metrics = {key: x for key, x in cells.items() if "/" in key and isinstance(x, int | float) and math.isfinite(x)}
    outcome = Outcome(row["state"])
    record = Record(
        number=int(row["trial"]),
        trial=row["trial"],
        values={name: _value(spec, name, row[name]) for name in spec.space.parameters if name in row},
        preset=row.get("preset"),
        outcome=outcome,
        # a diverged trial has no value, however good it was before
        value=None if outcome is Outcome.DIVERGED else metrics.get(spec.metric.name),
        epochs=len(epochs) or _count(row.get("epochs_done")),
        reason=row.get("reason"),
        objectives=tuple(metrics[metric.name] for metric in spec.objectives if metric.name in metrics),
        seconds=_seconds(row),
    )
    return TrialResult(row["trial"], record, metrics, epochs)


def _value(spec: SweepSpec, name: str, cell: Any) -> Any:
    """A cell of a searched parameter; a choice as the spec has it (true, a list), where the cell is one."""
    parameter = spec.space.parameters[name]
    if isinstance(parameter, Choice):
        return next((value for value in parameter.values if value == cell or str(value) == str(cell)), cell)
    return cell


def _seconds(row: Mapping[str, Any]) -> float:
    """What workers spent on a trial; where that is not told, as of one that was run alone, its time in training."""
    told = (row.get(name) for name in ("seconds", "summary/total_time_seconds"))
    return next((float(x) for x in told if isinstance(x, int | float) and 0 <= x < math.inf), 0.0)


def _count(cell: Any) -> int:
    return int(cell) if isinstance(cell, int | float) and math.isfinite(cell) else 0


def _attempt(read: Callable[[Path], T], path: Path, notes: list[str]) -> T | None:
    """What `read` makes of `path`; None where it cannot, and a note that says why."""
    try:
        return read(path)
    except (OSError, TypeError, ValueError) as error:
        notes.append(str(error) if isinstance(error, UserError) else f"{path}: cannot be read ({error})")
        return None
