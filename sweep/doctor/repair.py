"""Mends what the books of a sweep disagree in. Nothing that was computed is deleted: it is moved to, or copied into,
RESULTS/damaged/<time>/. Every step leaves the old or the new state behind, so a kill in between does no harm: the next
repair goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import optuna

from model.errors import UserError
from model.folder import LAST, PREVIOUS
from model.metrics import SUMMARY_NAMES
from model.sinks import write_json, write_text
from sweep.doctor.examine import Examination
from sweep.doctor.files import checkpoint_seconds
from sweep.doctor.journal import write_journal
from sweep.doctor.ledger import Finding, Kind, TrialBooks, summary_of
from sweep.doctor.study_books import Study, mended_books
from sweep.doctor.wandb_books import complete_run
from sweep.faults import storage_trouble
from sweep.outcome import Outcome
from sweep.spec import SweepSpec
from sweep.study import JOURNAL, SweepStudy
from sweep.wandb_client import reset_client

DAMAGED = "damaged"  # in the results folder


class Aside:
    """Where damaged files go: one folder for each repair, with the files in their places below it."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self.folder = results / DAMAGED / time.strftime("%Y%m%dT%H%M%S")

    def move(self, path: Path) -> None:
        """Move a file or folder there."""
        if path.exists() or path.is_symlink():
            path.rename(self._place(path))

    def copy(self, path: Path) -> None:
        """Keep a file's present state there."""
        if path.exists():
            shutil.copy2(path, self._place(path))

    def _place(self, path: Path) -> Path:
        wanted = place = self.folder / path.relative_to(self._results)
        count = 1
        while place.exists() or place.is_symlink():
            place, count = wanted.with_name(f"{wanted.name}.{count}"), count + 1
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


class Repair:
    """Mends a results folder, whose lock the caller holds.

    Args:
        results, spec, thorough: as of Examination.

    Attributes:
        last: the examination after everything was mended that can be; None before `run` ended.
        aside: where damaged files went.
    """

    def __init__(self, results: Path, spec: SweepSpec, thorough: bool = True) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._results, self._spec, self._thorough = results, spec, thorough
        self.aside = Aside(results)
        self.last: Examination | None = None
        self._started_wandb = False
        self._do: dict[Kind, Callable[[Examination, Finding], None]] = {
            Kind.LEFTOVER: self._leftover,
            Kind.PROVENANCE: self._provenance,
            Kind.STUDY_TAIL: self._study_tail,
            Kind.ROWS: self._rows,
            Kind.STUDY: self._study,
            Kind.ORPHAN: self._orphan,
            Kind.CONFIG: self._config,
            Kind.CHECKPOINT: self._checkpoint,
            Kind.SUMMARY: self._summary,
            Kind.SETTLE: self._settle,
            Kind.TABLE: self._table,
            Kind.WANDB: self._wandb,
        }

    def run(self) -> Iterator[Finding]:
        """Mend; gives out each finding once it is mended. What is left is in `last`.

        Books are mended kind by kind, and looked through again after each: later ones are made of earlier ones.

        Raises UserError for a file that cannot be read or written; OSError where the storage itself fails.
        """
        try:
            yield from self._mended()
        except OSError as error:
            if storage_trouble(error) is not None:
                raise
            raise UserError(f"results: the books cannot be read: {error}; put that right. Nothing was lost") from None
        finally:
            if self._started_wandb:
                reset_client()

    def _mended(self) -> Iterator[Finding]:
        done: set[Finding] = set()
        touched: set[str] = set()
        while True:
            seen = Examination(self._results, self._spec, self._thorough, look_at_runs_of=touched)
            to_mend = [finding for finding in seen.findings if finding.remedy is not None and finding not in done]
            if not to_mend:
                self.last = seen
                return
            for finding in [finding for finding in to_mend if finding.kind is to_mend[0].kind]:
                try:
                    self._do[finding.kind](seen, finding)
                except OSError as error:
                    if storage_trouble(error) is not None:
                        raise
                    raise UserError(
                        f"{finding.place}: cannot be mended: {error}; put that right, and the same command goes on. "
                        "Nothing was lost"
                    ) from None
                done.add(finding)  # one that comes back is left, and named
                touched.add(finding.subject)
                yield finding

    def _leftover(self, seen: Examination, finding: Finding) -> None:
        path = Path(finding.subject)
        if finding.remedy == "removes it":  # a lock, or a mark: it holds nothing
            path.unlink(missing_ok=True)
        else:
            self.aside.move(path)

    def _orphan(self, seen: Examination, finding: Finding) -> None:
        self.aside.move(Path(finding.subject))

    def _provenance(self, seen: Examination, finding: Finding) -> None:
        path = seen.folder.provenance_file
        self.aside.copy(path)
        if finding.subject:
            write_json(path, {"sweep": self._spec.name, "uid": finding.subject, "sessions": []})
        else:
            path.unlink()

    def _study_tail(self, seen: Examination, finding: Finding) -> None:
        path = self._results / JOURNAL
        self.aside.copy(path)
        with path.open("r+b") as file:
            file.truncate(seen.journal.sound_bytes)

    def _study(self, seen: Examination, finding: Finding) -> None:
        path = self._results / JOURNAL
        books = mended_books(seen.studies, self._spec)
        self.aside.copy(path)
        if books:
            write_journal(path, books)
        else:
            path.unlink(missing_ok=True)

    def _rows(self, seen: Examination, finding: Finding) -> None:
        books = seen.trials[finding.subject]
        for rows in (books.folder.batch, books.folder.epoch):
            path = seen.folder.trial_folder(finding.subject) / rows.name
            if not finding.what.startswith(rows.name):
                continue
            whole = rows.filled(books.recovered.get(rows.name, {}))
            self.aside.copy(path)
            text = whole.text(whole.whole if books.outcome is Outcome.RUNNING else None)
            _write_as_of(path, text, seen, finding.subject)

    def _config(self, seen: Examination, finding: Finding) -> None:
        from sweep.trial import config_text  # imports torch

        study, books = _of(seen, finding.subject)
        values = books.record.final_values or books.record.values
        config = study.space.to_config(self._spec.trainer, values)
        path = seen.folder.trial_folder(finding.subject) / "config.yaml"
        self.aside.copy(path)
        write_text(path, config_text(config, f"trial {finding.subject} of sweep {self._spec.name}"))

    def _checkpoint(self, seen: Examination, finding: Finding) -> None:
        folder = seen.trials[finding.subject].folder
        last = seen.folder.trial_folder(finding.subject) / LAST
        previous = last.with_name(PREVIOUS)
        if folder.last == "damaged":
            self.aside.move(last)
        if folder.previous == "damaged":
            self.aside.move(previous)
        elif folder.previous == "sound" and folder.last != "sound":
            previous.rename(last)

    def _summary(self, seen: Examination, finding: Finding) -> None:
        study, books = _of(seen, finding.subject)
        folder = seen.folder.trial_folder(finding.subject)
        path = folder / "summary.json"
        self.aside.copy(path)
        if books.outcome in (Outcome.RUNNING, Outcome.FAILED):
            path.unlink(missing_ok=True)
            return
        row = study.table.rows.get(finding.subject, {})
        try:
            seconds: float | None = float(row["summary/total_time_seconds"])
        except (LookupError, ValueError):
            seconds = checkpoint_seconds(folder / LAST) or books.record.seconds or None
        content = summary_of(books.folder.epoch, seconds)
        if books.epochs_lost:  # the best of the rows that are left may not be the trial's
            for name in SUMMARY_NAMES:
                with suppress(LookupError, ValueError):
                    content[name] = json.loads(row[name])
        _write_as_of(path, json.dumps(content, indent=2) + "\n", seen, finding.subject)

    def _settle(self, seen: Examination, finding: Finding) -> None:
        study, books = _of(seen, finding.subject)
        told = books.evidence
        number = books.record.number
        opened = SweepStudy(self._results, study.name, study.space, goals=study.goals, prefix=study.prefix)
        opened.take_up(number)
        under_way = told.outcome is Outcome.RUNNING
        for epoch in books.untold if under_way else sorted(told.steps):
            opened.report(number, epoch, *told.steps[epoch])
        if under_way:
            return
        if told.final_values is not None:
            opened.set_final_values(number, told.final_values)
        opened.finish(number, told.outcome, told.reason, max(told.seconds - books.record.seconds, 0.0))

    def _table(self, seen: Examination, finding: Finding) -> None:
        study = next(study for study in seen.studies if study.prefix == finding.subject)
        path = seen.folder.confirm_runs_file if study.prefix else seen.folder.trials_file
        self.aside.copy(path)
        write_text(path, seen.table(study).text())

    def _wandb(self, seen: Examination, finding: Finding) -> None:
        study, books = _of(seen, finding.subject)
        record, run = books.record, seen.run_id(finding.subject)
        files = study.files[record.number]
        config = {**(files.config or {}), **record.values, "sweep": self._spec.name, "trial": record.trial}
        self._started_wandb = True
        complete_run(self._results, self._spec, run, record, seen.parts.get(run, []), config)


def _write_as_of(path: Path, text: str, seen: Examination, trial: str) -> None:
    """Write a trial's file, in one step, with the time of the trial's end: a lost study is put in order by that."""
    study, books = _of(seen, trial)
    when = study.evidence[books.record.number].modified
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.utime(scratch, (when, when))
    scratch.replace(path)


def _of(seen: Examination, trial: str) -> tuple[Study, TrialBooks]:
    books = seen.trials[trial]
    study = next(s for s in seen.studies if s.id_of(books.record.number) == trial)
    return study, books


def mended_for_resume(results: Path, spec: SweepSpec) -> Iterator[str]:
    """Mend what a resumed sweep would stumble over; lines for the user, none where all books agree.

    The caller holds the folder's lock. Raises as Repair.run.
    """
    repair = Repair(results, spec, thorough=False)
    mended = [f"mended {finding.place}: {finding.what}" for finding in repair.run()]
    yield from mended
    if repair.aside.folder.exists():
        yield f"what was damaged is kept in {repair.aside.folder}"
    assert repair.last is not None
    yield from (f"note: {finding}" for finding in repair.last.findings)
