"""A sweep's two studies, the search and its confirmation, beside what the other books tell of their trials."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from model.errors import UserError
from sweep.conclusion import SEED
from sweep.confirm import ALL_SEEDS, PREFIX
from sweep.doctor.files import EvidenceReader, TableBook, TrialFiles
from sweep.doctor.journal import Journal, StudyBook
from sweep.doctor.ledger import Finding, Kind
from sweep.doctor.rebuild import Evidence, fits, points_used, rebuilt
from sweep.plan import first_trials
from sweep.results import ResultsFolder
from sweep.space import Space
from sweep.spec import SweepSpec
from sweep.study import JOURNAL, Goal, Record, Values, record_of
from sweep.warm_start import WarmStart

MOST_GAP = 64  # numbers without a trial before one that only its folder or its row in the table tells of


@dataclass
class Study:
    """One of the studies.

    Attributes:
        first: what it begins with.
        table: trials.csv, or confirm.csv.
        book: as it lies in the study's file.
        trials: as they are once the file is mended.
        evidence: what the other books tell, by number.
        files: the trials' folders, by number.
        rewritten: the file lacks some of that.
    """

    name: str
    prefix: str
    space: Space
    goals: tuple[Goal, ...]
    metrics: tuple[str, ...]
    first: tuple[tuple[str | None, Values], ...]
    table: TableBook
    book: StudyBook = field(default_factory=StudyBook)
    trials: list[FrozenTrial] = field(default_factory=list)
    evidence: dict[int, Evidence] = field(default_factory=dict)
    files: dict[int, TrialFiles] = field(default_factory=dict)
    rewritten: bool = False

    def id_of(self, number: int) -> str:
        """The trial's id."""
        return f"{self.prefix}{number:04d}"

    def records(self) -> list[Record]:
        """The trials that were begun."""
        begun = [trial for trial in self.trials if trial.state != TrialState.WAITING]
        return [record_of(trial, self.id_of(trial.number), self.space) for trial in begun]


def studies_of(results: Path, spec: SweepSpec, journal: Journal, thorough: bool, single: bool) -> list[Study]:
    """Both studies, with all that the books tell of them.

    Args:
        single: the folder has no study; the table is in its place.
    """
    folder = ResultsFolder(results)
    search = Study(
        spec.name,
        "",
        spec.space,
        tuple(metric.goal for metric in spec.objectives),
        tuple(metric.name for metric in spec.objectives),
        () if single else tuple(first_trials(spec, _warm_start(folder.warm_start_file))),
        TableBook(folder.trials_file),
    )
    confirmation = Study(
        f"{spec.name}.confirm",
        PREFIX,
        Space({**spec.parameters, SEED: ALL_SEEDS}, spec.search.conditions),
        (spec.metric.goal,),
        (spec.metric.name,),
        (),
        TableBook(folder.confirm_runs_file),
    )
    studies = [search] if single else [search, confirmation]
    damaged = journal.fault is not None and not journal.cut
    for study in studies:
        _gather(study, results, spec, journal, thorough)
        known = [trial for trial in study.book.trials if trial.state != TrialState.WAITING]
        strange = not all(fits(trial, study.space) for trial in study.book.trials)
        lacks = study.evidence.keys() - {trial.number for trial in known}
        study.rewritten = not single and (
            strange or bool(lacks) or (damaged and bool(study.book.trials or study.evidence))
        )
        study.trials = study.book.trials
        if study.rewritten or single:
            several = len(study.goals) > 1
            study.trials = rebuilt(study.book.trials, study.evidence, study.space, study.first, several)
    return studies


def _warm_start(file: Path) -> WarmStart | None:
    try:
        return WarmStart.load(file) if file.exists() else None
    except UserError:
        return None


def _gather(study: Study, results: Path, spec: SweepSpec, journal: Journal, thorough: bool) -> None:
    study.book = journal.studies.get(study.name, StudyBook())
    known = study.book.trials
    own = re.compile(rf"{study.prefix}(\d{{4,}})")
    rows = _numbered(own, study.table.rows)
    folders = _numbered(own, (path.name for path in (results / "trials").glob("*") if path.is_dir()))
    reader = EvidenceReader(spec, study.space, study.metrics, results, study.prefix)
    lost = journal.fault is not None and not journal.cut
    last = -1
    for number in sorted({*range(len(known)), *rows, *folders}):
        name = study.id_of(number)
        begun = number < len(known) and known[number].state != TrialState.WAITING
        ended = begun and known[number].state.is_finished()
        files = TrialFiles(results / "trials" / name, thorough, ended)
        known_whole = ended and not thorough and not lost  # of thousands of trials, reading all takes a minute
        told = Evidence() if known_whole else reader.of(name, files, study.table.rows.get(name))
        # a study that was lost, or restored from an older copy, learns of a trial by its folder or its row
        named = files.is_of(name, spec.name) or (lost and number in rows)
        if begun or (named and told.values is not None and number <= last + MOST_GAP):
            study.evidence[number], study.files[number] = told, files
            last = number


def _numbered(own: re.Pattern[str], names: Iterator[str] | Mapping[str, object]) -> set[int]:
    return {int(match[1]) for name in names if (match := own.fullmatch(name))}


def study_findings(journal: Journal, studies: list[Study], spec: SweepSpec) -> Iterator[Finding]:
    """What is wrong with the study's file."""
    fault = journal.fault
    if any(study.rewritten for study in studies):
        told = sum(len(study.evidence) for study in studies)
        if fault is None or journal.cut:
            begun = sum(trial.state != TrialState.WAITING for study in studies for trial in study.book.trials)
            fault = f"it knows {begun} trials, the trials' folders and tables {told}"
            if begun == told:
                fault = "it has values that are none of this sweep's"
        remedy = f"makes it anew ({told} trials) from what is left of it, the trials' folders and the tables"
        yield Finding(Kind.STUDY, JOURNAL, fault, remedy, _forgotten(journal, spec))
    elif journal.cut:
        yield Finding(Kind.STUDY_TAIL, JOURNAL, fault or "", "cuts it off there")
    elif journal.there and fault is not None and fault != "it is empty":
        yield Finding(Kind.STUDY, JOURNAL, fault, "moves it aside; no trial was begun")


def _forgotten(journal: Journal, spec: SweepSpec) -> str:
    """What no other book tells."""
    lost = []
    if not journal.studies and spec.search.sampler in ("cmaes", "nsgaii", "nsgaiii"):
        lost.append(f"{spec.search.sampler} begins its model anew")
    if not journal.studies and spec.search.stop.time_budget_s is not None:
        lost.append("search.stop.time_budget_s counts from here")
    return "; ".join(lost)


def mended_books(studies: list[Study], spec: SweepSpec) -> dict[str, StudyBook]:
    """The studies for a new file."""
    books = {}
    for study in studies:
        if not study.trials:
            continue
        attributes = dict(study.book.system_attrs)
        if spec.search.sampler == "qmc" and not study.prefix and not study.book.trials:
            drawn = max(len(study.trials) - len(study.first), 0)
            attributes = points_used(study.space, spec.search.seed, spec.search.startup_trials, drawn)
        books[study.name] = StudyBook(study.goals, study.book.user_attrs, attributes, study.trials)
    return books
