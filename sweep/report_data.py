"""A results folder as it is now, read without changing it: also one that is still written to, or was damaged."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from model.configfile import load_yaml
from model.errors import UserError
from model.sinks import Row, read_csv
from sweep.results import ResultsFolder, equal_weights
from sweep.spec import SweepSpec, load_spec
from sweep.study import Outcome, Record, best

T = TypeVar("T")

MAX_WATCHED = 4  # trials whose updates are read and drawn: more curves hide each other


@dataclass(frozen=True)
class TrialResult:
    """A trial. `metrics` are the finite ones after its last epoch and of its summary, by full name."""

    name: str
    record: Record
    metrics: dict[str, float]
    epochs: list[Row]


@dataclass(frozen=True)
class SweepResults:
    """What a results folder tells."""

    folder: Path
    spec: SweepSpec
    trials: list[TrialResult] = field(default_factory=list)
    """By number."""
    batches: dict[str, list[Row]] = field(default_factory=dict)
    """Rows per gradient update of the watched trials, by trial."""
    sessions: list[Mapping[str, Any]] = field(default_factory=list)
    """Of provenance.json."""
    notes: list[str] = field(default_factory=list)
    """What is missing or cannot be read."""

    @property
    def best(self) -> TrialResult | None:
        """The best trial that trained to its end."""
        return self._of(best([trial.record for trial in self.trials], self.spec.metric.goal))

    @property
    def equal(self) -> TrialResult | None:
        """The equal-weights preset."""
        return self._of(equal_weights(trial.record for trial in self.trials))

    @property
    def watched(self) -> list[TrialResult]:
        """The best trial and the presets; the first trials where there is neither."""
        presets = [trial for trial in self.trials if trial.record.preset is not None]
        chosen = [self.best, *(trial for trial in presets if trial is not self.best)] if self.best else presets
        return [trial for trial in chosen or self.trials if trial is not None][:MAX_WATCHED]

    def gain(self, better: float, worse: float) -> float:
        """By how much the first value of the metric is better than the second; negative where it is worse."""
        return worse - better if self.spec.metric.goal == "minimize" else better - worse

    def _of(self, record: Record | None) -> TrialResult | None:
        return next((trial for trial in self.trials if trial.record is record), None)


def load_results(folder: Path) -> SweepResults:
    """Read a results folder. Raises UserError where it is none, or where spec.yaml or trials.csv cannot be used."""
    if not (folder / "spec.yaml").is_file():
        what = "holds no sweep (it has no spec.yaml)" if folder.is_dir() else "is no folder"
        raise UserError(
            f"results: {folder} {what}; give the results folder of a sweep, such as results/alpha_beta. "
            "python -m sweep.run SPEC makes one"
        )
    results = SweepResults(folder, load_spec(folder / "spec.yaml"))
    provenance = _attempt(lambda path: ResultsFolder(path).provenance(), folder, results.notes) or {}
    results.sessions.extend(provenance.get("sessions", []))
    rows = _trials_table(folder / "trials.csv")
    on_disk = {path.name for path in (folder / "trials").glob("*") if path.is_dir() and path.name.isdecimal()}
    for name in sorted(rows.keys() | on_disk, key=int):
        results.trials.append(_trial(name, rows.get(name), results))
    for trial in results.watched:
        path = folder / "trials" / trial.name / "batch.csv"
        results.batches[trial.name] = _attempt(read_csv, path, results.notes) or []
    lost = [t.name for t in results.trials if not t.epochs and t.record.outcome in (Outcome.COMPLETE, Outcome.PRUNED)]
    if lost:
        shown = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        results.notes.append(f"epoch.csv holds nothing of trial {shown}; what is shown of it is from trials.csv")
    return results


def _trial(name: str, row: Mapping[str, Any] | None, results: SweepResults) -> TrialResult:
    folder, spec = results.folder / "trials" / name, results.spec
    epochs = _attempt(read_csv, folder / "epoch.csv", results.notes) or []
    if row is None:  # trials enter the table when they end
        row = {"state": Outcome.RUNNING, **_configured(folder / "config.yaml", spec, results.notes)}
    cells = {**row, **(epochs[-1] if epochs else {})}
    metrics = {key: x for key, x in cells.items() if "/" in key and isinstance(x, int | float) and math.isfinite(x)}
    outcome = Outcome(row["state"])
    record = Record(
        number=int(name),
        values={key: row[key] for key in spec.space.parameters if key in row},
        preset=row.get("preset"),
        outcome=outcome,
        # a diverged trial has no value, however good it was before
        value=None if outcome is Outcome.DIVERGED else metrics.get(spec.metric.name),
        epochs=len(epochs) or row.get("epochs", 0),
        reason=row.get("reason"),
    )
    return TrialResult(name, record, metrics, epochs)


def _configured(path: Path, spec: SweepSpec, notes: list[str]) -> dict[str, Any]:
    """Values of the searched parameters in a trial's config.yaml."""
    values = {}
    for name in spec.space.parameters if (config := _attempt(load_yaml, path, notes)) else ():
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            values[name] = value
    return values


def _trials_table(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of trials.csv by trial: numbers as numbers, empty cells absent. Raises UserError where it is damaged."""
    rows: dict[str, dict[str, Any]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for cells in csv.DictReader(file):
                text = {key: cell for key, cell in cells.items() if cell}
                row = {key: cell if key in ("trial", "reason", "preset") else _parse(cell) for key, cell in text.items()}
                if not (row["trial"].isdecimal() and row["state"] in list(Outcome)):
                    raise ValueError(f"trial {row['trial']!r} with state {row['state']!r}")
                rows[row["trial"]] = row
    except FileNotFoundError:
        return {}  # no trial has ended yet
    except (OSError, csv.Error, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({error!r}); the command of the sweep with --resume writes it anew"
        ) from None
    return rows


def _parse(cell: str) -> Any:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _attempt(read: Callable[[Path], T], path: Path, notes: list[str]) -> T | None:
    """What `read` makes of `path`; None, and a note that says why, where it cannot."""
    try:
        return read(path)
    except (OSError, TypeError, ValueError) as error:
        notes.append(str(error) if isinstance(error, UserError) else f"{path}: cannot be read ({error})")
        return None
