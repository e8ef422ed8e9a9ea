"""Looks through the books of a results folder: what is there, what disagrees, what a repair needs to know."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from model.errors import ConfigError, UserError
from sweep.doctor.files import TableBook, TrialFiles
from sweep.doctor.journal import Journal, read_journal
from sweep.doctor.ledger import Finding, Kind, RunBook, TrialBooks, compare, expected_rows, notes
from sweep.doctor.leftovers import is_own, leftovers, orphans, own_files, read_uid
from sweep.doctor.rebuild import Evidence
from sweep.doctor.study_books import Study, studies_of, study_findings
from sweep.doctor.wandb_books import recorded_rows, run_books, run_parts
from sweep.outcome import Outcome
from sweep.results import RUNS, ResultsFolder
from sweep.spec import SweepSpec
from sweep.study import JOURNAL, Record
from sweep.trial_table import TrialTable
from sweep.wandb_mode import resolve_mode
from sweep.words import few


class Examination:
    """One look through all books; nothing is changed.

    Args:
        results: the folder; no driver is at work in it.
        spec: of the sweep.
        thorough: read every row, checkpoint and W&B file. Else what a resumed sweep would stumble over: the study,
            the tables, the trials under way, and of the others whether a file breaks off.
        look_at_runs_of: trials whose W&B runs are looked at in any case.

    Raises UserError where the study is of another sweep than the spec.

    Attributes:
        findings: what disagrees, in the order in which it is mended.
        notes: what is no disagreement, and worth a line.
        single: its trials were run one by one, by W&B's agents or by hand: there is no study, and whatever is under way
            may have a process at work.
    """

    def __init__(
        self, results: Path, spec: SweepSpec, thorough: bool = True, look_at_runs_of: Collection[str] = ()
    ) -> None:
        self.results, self.spec, self._thorough = results, spec, thorough
        self._look_at_runs_of = look_at_runs_of
        self.folder = ResultsFolder(results)
        self.single = (results / RUNS).exists()
        self.notes: list[str] = []
        self.parts = run_parts(results)
        self.uid, found = read_uid(results, self.parts)
        self.journal = (
            Journal(False, {}, fault="there is none")
            if self.single
            else read_journal(results / JOURNAL, (spec.name, f"{spec.name}.confirm"))
        )
        if self.journal.studies and spec.name not in self.journal.studies:  # all its trials would look like orphans
            raise UserError(
                f"{self.folder.spec_file}: name: {spec.name}; the study in {JOURNAL} is of the sweep "
                f"{next(iter(self.journal.studies))}: give the spec that name again, or restore the file that is wrong"
            )
        self.studies = studies_of(results, spec, self.journal, thorough, self.single)
        self.trials: dict[str, TrialBooks] = {}
        self._disputed: set[str] = set()  # their files may be another copy's
        if not self.single:
            found += [*leftovers(results), *study_findings(self.journal, self.studies, spec)]
        found += own_files(results)
        for study in self.studies:
            for record in study.records():
                found += self._look_at(study, record)
        if not self.single:
            found += orphans(results, self.uid, self.trials.keys(), self.parts)
        found += self._table_findings()
        if thorough and self.uid:
            self.notes += self._foreign_runs()
        self.findings = sorted(found, key=lambda finding: finding.kind)

    def run_id(self, trial: str) -> str:
        """The id of a trial's W&B run."""
        return self._named_runs.get(trial, f"{self.uid}-{trial}")

    @cached_property
    def _named_runs(self) -> dict[str, str]:
        """Runs that W&B gave their ids, of trials that its agents ran."""
        try:
            runs = json.loads((self.results / RUNS).read_bytes())
            return {str(trial): str(run) for run, trial in runs.items() if not str(run).startswith("hand-")}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def _look_at(self, study: Study, record: Record) -> Iterator[Finding]:
        path = self.folder.trial_folder(record.trial)
        ended = record.outcome is not Outcome.RUNNING
        files = study.files.get(record.number) or TrialFiles(path, self._thorough, ended)
        books = TrialBooks(
            record,
            files.book(),
            study.evidence.get(record.number, Evidence()),
            study.metrics,
            told=None if len(study.goals) > 1 else study.trials[record.number].intermediate_values,
            train_again=f"python -m model.train {path / 'config.yaml'} --out {self.results / 'again' / record.trial}",
            goes_on="the same command" if self.single else "--resume",
        )
        books = self._with_recovered(self._with_run(books))
        self.trials[record.trial] = books
        if self._thorough:
            self.notes += notes(books)
        if not self.single or ended:
            for finding in compare(books):
                if finding.kind is Kind.SETTLE and finding.remedy is None:
                    self._disputed.add(record.trial)
                yield finding

    def _with_run(self, books: TrialBooks) -> TrialBooks:
        """Its W&B run: of a trial that ended, where W&B's files are looked at, which takes 20 ms for each."""
        looked_at = self._thorough or books.record.trial in self._look_at_runs_of
        if not books.ended or not self._has_wandb or not looked_at:
            return books
        run = self.run_id(books.record.trial)
        known = self._runs if self._thorough else run_books({run: self.parts.get(run, [])})
        book = known.get(run)
        return replace(
            books,
            run=book if self.parts.get(run) else None,
            wants_run=not self.single or book is not None,
            log_every=self.spec.wandb.log_every,
        )

    def _with_recovered(self, books: TrialBooks) -> TrialBooks:
        """Rows that the CSV files lack and the W&B run has; rarely looked for, so not read before."""
        expected = expected_rows(books)
        lacks = any(rows.missing(expected[rows.name]) for rows in (books.folder.batch, books.folder.epoch))
        own = self.parts.get(self.run_id(books.record.trial), [])
        if not lacks or not own or not books.folder.there:
            return books
        return replace(books, recovered=recorded_rows(own))

    @cached_property
    def _has_wandb(self) -> bool:
        try:
            mode, _ = resolve_mode(self.spec.wandb.mode)
        except ConfigError:
            return False
        return mode != "disabled" and bool(self.parts) and bool(self.uid)

    @cached_property
    def _runs(self) -> Mapping[str, RunBook]:
        return run_books(self.parts)

    def _foreign_runs(self) -> Iterator[str]:
        own = {self.run_id(trial) for trial in self.trials}
        for run in self.parts:
            if run not in own and not is_own(run, self.uid):
                yield f"wandb: run {run} is of no trial here; it is left as it is"

    def table(self, study: Study) -> TrialTable:
        """The table of a study as it should be. Raises UserError where a trial's files are damaged."""
        table = TrialTable(self.folder, self.spec, study.space if study.prefix else None)
        for record in study.records():
            row = study.table.rows[record.trial] if record.trial in self._in_table_alone else None
            table.put(record, row)
        return table

    @cached_property
    def _in_table_alone(self) -> set[str]:
        """Trials whose rows are lost, or not those that the study was told: what the table says of them stays."""
        lost = {trial for trial, books in self.trials.items() if books.epochs_lost} | self._disputed
        return {trial for study in self.studies for trial in study.table.rows if trial in lost}

    def _table_findings(self) -> Iterator[Finding]:
        for study in self.studies:
            path = self.folder.confirm_runs_file if study.prefix else self.folder.trials_file
            fault = study.table.fault
            records = study.records()
            ended = {record.trial for record in records if record.outcome is not Outcome.RUNNING}
            if fault is None and (study.table.there or ended):
                try:
                    fault = _stale(study.table, self.table(study), ended - self._in_table_alone)
                except UserError:
                    continue  # a file of a trial is damaged, which is said already
                strange = sorted(study.table.rows.keys() - {record.trial for record in records})
                if fault is None and strange:
                    fault = f"it has rows of trials that the study does not know ({few(strange)})"
            if fault is not None:
                remedy = "writes it anew from the study and the trials' folders"
                yield Finding(Kind.TABLE, path.name, fault, remedy, subject=study.prefix)


def _stale(there: TableBook, table: TrialTable, ended: set[str]) -> str | None:
    """Which rows of ended trials are not as they should be; columns that the file lacks do not count."""
    if not there.there:
        return "it is missing"
    old = []
    for row in csv.DictReader(io.StringIO(table.text())):
        has = there.rows.get(row["trial"])
        if has is not None and not has.get("seconds"):  # of single trials they are not known
            has = {**has, "seconds": row["seconds"]}
        if row["trial"] in ended and (has is None or any(has.get(name, cell) != cell for name, cell in row.items())):
            old.append(row["trial"])
    if not old:
        return None
    return f"its row{'s' if len(old) > 1 else ''} of trial {few(old)} {'are' if len(old) > 1 else 'is'} missing or old"
