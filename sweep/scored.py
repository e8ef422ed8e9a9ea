"""The trials of a results folder, scored anew from their own rows: what a finished search still tells without training.

A folder is only read, also while its sweep goes on. Of a trial the files decide what they can (all epochs are there: it
is complete; a number is not finite: it diverged), and trials.csv the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.config import TrainConfig
from model.configfile import validated
from model.errors import DataError, UserError, one_line
from model.sinks import Row, read_csv
from sweep.objective import Objective, ObjectiveSettings
from sweep.outcome import Outcome
from sweep.table_rows import read_table

# the config.yaml of a trial is our own dump: the fast loader, where there is one, reads back what was written
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

OF_THE_OBJECTIVE = ("batch/epoch", "batch/loss_ratio")  # what it reads of an update, divergence aside
NEEDED = {  # weight of the objective -> (file, column) without which its part is not known
    "contribution_weight": ("epoch.csv", "epoch/actual_static_contribution"),
    "ratio_weight": ("batch.csv", "batch/loss_ratio"),
}
_REMEDY = "; restore it, or remove the trial's folder to do without that trial"


@dataclass(frozen=True)
class Ledger:
    """What trials.csv says of a trial."""

    state: Outcome = Outcome.RUNNING
    preset: str | None = None


@dataclass(frozen=True)
class Scored:
    """A trial under some objective.

    Attributes:
        reports: per epoch the metrics that the trial would have reported, up to the last sound epoch.
        outcome: how the trial ended.
        surprise: where the rows say that it diverged and trials.csv does not.
    """

    reports: tuple[Row, ...]
    outcome: Outcome
    surprise: str | None = None

    def value(self, metrics: Sequence[str]) -> tuple[float, ...] | None:
        """These metrics after the last epoch; None where one is absent, and of a trial that diverged."""
        if self.outcome is Outcome.DIVERGED or not self.reports:
            return None
        return picked(self.reports[-1], metrics)


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file. `not_finite` is the first number that is none: file, line, column."""

    columns: tuple[str, ...]
    rows: Sequence[Row]
    not_finite: str | None


@dataclass(frozen=True)
class PastTrial:
    """A trial as its folder has it: the config it was trained with, its epochs, and of its updates what scores it."""

    folder: Path
    ledger: Ledger
    config: TrainConfig
    epochs: Table
    batches: Table

    @property
    def name(self) -> str:
        """Its id, such as "0007"."""
        return self.folder.name

    def stored(self, metrics: Sequence[str]) -> tuple[float, ...] | None:
        """These metrics as the trial itself reported them after its last epoch; None where one is absent."""
        return picked(_with_summary(self.epochs.rows[-1]), metrics) if self.epochs.rows else None

    def scored(self, settings: ObjectiveSettings) -> Scored:
        """The trial under these settings: the same steps as when it was trained, so the same numbers to the last bit.

        Raises DataError where a column is missing that the objective needs.
        """
        self._check_columns(settings)
        objective = Objective(settings)
        batches: dict[int, list[Row]] = {}
        for batch in self.batches.rows:
            batches.setdefault(int(batch["batch/epoch"]), []).append(batch)
        reports = []
        for row in self.epochs.rows:
            for batch in batches.pop(int(row["epoch"]), ()):
                objective.add_batch(batch)
            inputs = {name: value for name, value in row.items() if not name.startswith("objective/")}
            try:
                report = inputs | objective.end_epoch(row)
            except KeyError as error:
                raise DataError(
                    f"{self.folder / 'epoch.csv'}: has no {error.args[0]} in epoch {int(row['epoch'])}, but "
                    f"objective.loss = {settings.loss!r} needs it; give the other loss, or leave this folder out"
                ) from None
            if objective.diverged is None:
                reports.append(_with_summary(report))
        for unfinished in batches.values():  # of an epoch that never ended; a trial may have diverged there
            for batch in unfinished:
                objective.add_batch(batch)
        return self._ended(tuple(reports), diverged=objective.diverged is not None)

    def _ended(self, reports: tuple[Row, ...], diverged: bool) -> Scored:
        state = self.ledger.state
        if diverged:
            surprise = self.epochs.not_finite or self.batches.not_finite
            expected = state in (Outcome.DIVERGED, Outcome.RUNNING)
            return Scored(reports, Outcome.DIVERGED, None if expected else surprise)
        complete = len(reports) >= self.config.epochs and state is not Outcome.DIVERGED
        return Scored(reports, Outcome.COMPLETE if complete else state)

    def _check_columns(self, settings: ObjectiveSettings) -> None:
        columns = {"epoch.csv": self.epochs.columns, "batch.csv": self.batches.columns}
        for key, (file, column) in NEEDED.items():
            weight = getattr(settings, key)
            if weight and self.epochs.rows and column not in columns[file]:
                lacks = f"has no column {column}" if columns[file] else "is missing"
                raise DataError(
                    f"{self.folder / file}: {lacks}, but objective.{key} = {weight:g} needs {column}; "
                    f"give objective.{key} = 0 to do without it"
                )


def picked(report: Row, metrics: Sequence[str]) -> tuple[float, ...] | None:
    """These metrics of a report; None where one is absent or not finite."""
    values = tuple(report.get(name, math.nan) for name in metrics)
    return values if all(map(math.isfinite, values)) else None


def past_trials(results: Path) -> Iterator[PastTrial]:
    """The search's trials of a results folder that have a config, by number; read one at a time: there may be many.

    Raises UserError where there is no results folder, DataError where a file is damaged: file, line, what is wrong.
    """
    check_results(results)
    ledgers = read_ledgers(results / "trials.csv")
    folders = [path for path in (results / "trials").glob("*") if path.name.isdecimal()]
    for folder in sorted(folders, key=lambda path: int(path.name)):
        if (folder / "config.yaml").exists():
            yield read_trial(folder, ledgers.get(folder.name, Ledger()))


def check_results(results: Path) -> None:
    """Raise UserError where a folder is not the results folder of a sweep."""
    if not (results / "spec.yaml").is_file():
        what = "holds no sweep (it has no spec.yaml)" if results.is_dir() else "is no folder"
        raise UserError(f"{results} {what}; give the results folder of a sweep, such as results/alpha_beta")


def read_ledgers(path: Path) -> dict[str, Ledger]:
    """trials.csv by trial; empty where no trial has ended yet."""
    return {t: Ledger(Outcome(row["state"]), row.get("preset") or None) for t, row in read_table(path).items()}


def read_trial(folder: Path, ledger: Ledger) -> PastTrial:
    """A trial's files. Raises ConfigError or DataError where one is damaged."""
    path = folder / "config.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}){_REMEDY}") from None
    config = validated(TrainConfig, content, str(path))
    return PastTrial(
        folder,
        ledger,
        config,
        epochs=_read_table(folder / "epoch.csv", key="epoch"),
        batches=_read_table(folder / "batch.csv", key="batch/epoch", wanted=OF_THE_OBJECTIVE),
    )


def _read_table(path: Path, key: str, wanted: Sequence[str] = ()) -> Table:
    """The complete rows of a trial's CSV file, of `wanted` columns if any are named."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            columns = tuple(file.readline().rstrip("\r\n").split(","))
        rows = read_csv(path, key=key, wanted=wanted)
    except FileNotFoundError:
        return Table((), [], None)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}){_REMEDY}") from None
    for line, row in enumerate(rows, start=2):
        for name, x in row.items():
            if not math.isfinite(x) and not name.startswith("objective/"):
                return Table(columns, rows, f"{path}, line {line}: {name} = {x}")
    return Table(columns, rows, None)


def _with_summary(row: Row) -> Row:
    """An epoch's row with the summary that a sweep may optimise, as it would stand if this were the last epoch."""
    best = row.get("epoch/best_loss_so_far")
    return row if best is None else {**row, "summary/best_loss": best}
