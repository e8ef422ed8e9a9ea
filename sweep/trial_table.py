"""trials.csv and confirm.csv: a row per trial, made of the study and of the trial's own files."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.metrics import EPOCH_NAMES, EVAL_NAMES, FEATURE_NAMES, OBJECTIVE_NAMES, SUMMARY_NAMES
from model.sinks import read_csv, read_json, write_text
from sweep.results import ResultsFolder
from sweep.space import Space
from sweep.spec import SweepSpec
from sweep.study import Outcome, Record
from sweep.table_rows import read_table, sound_table

FORMULA = ("=", "+", "-", "@", "\t")  # how a cell begins that a spreadsheet would take for a program


class TrialTable:
    """trials.csv, a row per trial: kept in memory, rewritten at most every few seconds and at the end.

    Args:
        folder: where the trials are.
        spec: of the sweep.
        confirming: the space of the confirmation runs; the table is then confirm.csv, a row per run.
    """

    REWRITE_EVERY_S = 2.0
    MOST_TIME = 0.05  # share of the driver's time that goes into rewriting: thousands of rows take half a second

    def __init__(self, folder: ResultsFolder, spec: SweepSpec, confirming: Space | None = None) -> None:
        self._folder = folder
        self._spec = spec
        self._space = confirming or spec.space
        self._file = folder.trials_file if confirming is None else folder.confirm_runs_file
        self._name = "preset" if confirming is None else "candidate"  # what the trial's name is a name of
        self._rows: dict[int, dict[str, Any]] = {}
        there, _ = sound_table(self._file)  # of an earlier session
        self._before = {row.cells["trial"]: row.cells for row in there if row.whole and "trial" in row.cells}
        self._written_at = self._write_s = 0.0

    def load(self) -> None:
        """Take the rows that the file has. Raises UserError where it is damaged."""
        self._rows = {int(trial): dict(row) for trial, row in read_table(self._file).items()}

    def best(self) -> int | None:
        """Number of the complete trial with the best metric; None without any."""
        metric = self._spec.metric
        complete = [
            (metric.sign * float(row[metric.name]), number)
            for number, row in self._rows.items()
            if row["state"] == Outcome.COMPLETE.value and row.get(metric.name) not in (None, "")
        ]
        return min(complete)[1] if complete else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names; metrics are those after the trial's last epoch."""
        last = tuple(name for name in EPOCH_NAMES if name != "epoch")
        head = ("trial", "state", "reason", self._name, "epochs_done", "seconds")
        return (
            *head,
            *self._space.parameters,
            "effective_mask_ratio",
            *OBJECTIVE_NAMES,
            *EVAL_NAMES,
            *FEATURE_NAMES,
            *last,
            *SUMMARY_NAMES,
        )

    def put(self, record: Record, row: dict[str, Any] | None = None) -> None:
        """Put a trial's row in its present state, or this row of it; nothing is written.

        Of a trial whose epochs were lost after it ended, the row stays that the file had: no other book has it.
        """
        if row is None:
            row = self.row(record)
            if record.outcome is not Outcome.RUNNING and row["epochs_done"] < record.epochs:
                row = self._before.get(record.trial, row)
        self._rows[record.number] = dict(row)

    def update(self, record: Record) -> None:
        """Put a trial's row in its present state, and write the file where that is due."""
        self.put(record)
        if time.monotonic() - self._written_at > max(self.REWRITE_EVERY_S, self._write_s / self.MOST_TIME):
            self.write()

    def row(self, record: Record) -> dict[str, Any]:
        """A trial's row as its files and the study have it now."""
        folder = self._folder.trial_folder(record.trial)
        epochs = read_csv(folder / "epoch.csv")
        row: dict[str, Any] = {
            "trial": record.trial,
            "state": record.outcome.value,
            "reason": record.reason,
            self._name: record.preset,
            "epochs_done": len(epochs),
            "seconds": record.seconds or None,
            **record.values,
            "effective_mask_ratio": self._effective_mask_ratio(record),
            **(epochs[-1] if epochs else {}),
        }
        summary = folder / "summary.json"
        if summary.exists():
            row |= read_json(summary)
        return row

    def _effective_mask_ratio(self, record: Record) -> float | None:
        try:
            return self._space.to_config(self._spec.trainer, record.values).effective_mask_ratio
        except ConfigError:  # a trial that failed because its values do not go together
            return None

    def write(self) -> None:
        """Write all rows, by trial."""
        began = time.monotonic()
        self._write(self._file, sorted(self._rows))
        self._written_at = time.monotonic()
        self._write_s = self._written_at - began

    def write_front(self, front: Iterable[Record]) -> None:
        """pareto.csv: the rows of these trials, in this order."""
        self._write(self._folder.front_file, [record.number for record in front])

    def text(self) -> str:
        """The file as it should be."""
        return self._text(sorted(self._rows))

    def _write(self, file: Path, numbers: Iterable[int]) -> None:
        write_text(file, self._text(numbers))

    def _text(self, numbers: Iterable[int]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for number in numbers:
            writer.writerow({name: _harmless(cell) for name, cell in self._rows[number].items()})
        return text.getvalue()


def _harmless(cell: Any) -> Any:
    """The cell; a text that a spreadsheet would run as a formula has a quote in front."""
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r", " ")  # the writer quotes only \n, and readers take both for the end of a line
    if not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
