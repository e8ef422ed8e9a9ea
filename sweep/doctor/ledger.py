"""Where the books of a sweep disagree. Pure: what each book says of a trial in, findings out.

A trial has five books under one id: the study (Optuna), its folder, its W&B run, its row in trials.csv (confirm.csv),
and Ray's directory. The study and the folder are the truth; the others are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any, Literal

from sweep.doctor.rebuild import Evidence
from sweep.doctor.rows import Rows, ranges
from sweep.outcome import Outcome
from sweep.study import Record

SAME_VALUE = 0.01  # relative: an epoch that a GPU trained again after a crash has not quite the value that was told
CHANGED = "One of the two was changed, or comes from another copy; restore it"
EXIT_CODES = {Outcome.COMPLETE: 0, Outcome.PRUNED: 0, Outcome.DIVERGED: 1}  # of a W&B run that ended as it should
HAVE_SUMMARY = tuple(EXIT_CODES)

State = Literal["sound", "missing", "damaged", "unread"]


class Kind(IntEnum):
    """What a finding is about, in the order in which it is mended: later books are made of earlier ones."""

    LEFTOVER = auto()
    PROVENANCE = auto()
    STUDY_TAIL = auto()
    ROWS = auto()
    STUDY = auto()
    ORPHAN = auto()
    CONFIG = auto()
    CHECKPOINT = auto()
    SUMMARY = auto()
    SETTLE = auto()
    TABLE = auto()
    WANDB = auto()


@dataclass(frozen=True)
class Finding:
    """A disagreement.

    Attributes:
        place: whose it is: `trial 0003`, or a file of the sweep.
        what: is wrong, in words.
        remedy: what --repair does, in words; None where nobody can mend it.
        hint: what the user can do, or should know.
        subject: the trial's id, or the path of what is to be moved or mended.
    """

    kind: Kind
    place: str
    what: str
    remedy: str | None
    hint: str = ""
    subject: str = ""

    def __str__(self) -> str:
        end = f"--repair {self.remedy}" if self.remedy is not None else "this cannot be mended"
        return f"{self.place}: {self.what}; {end}" + (f". {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class FolderBook:
    """A trial's folder. `knows` are the batch and epoch rows that its checkpoint was made after, where it was read."""

    there: bool
    batch: Rows
    epoch: Rows
    summary: State = "missing"
    config: State = "missing"
    last: State = "unread"
    previous: State = "unread"
    knows: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class RunBook:
    """A trial's W&B run, all its parts together.

    Attributes:
        online: a part was recorded online; what the server lacks of it is sent by sweep.sync.
        unsent: the server lacks some of it.
        held: (batch/iteration, epoch) of its last rows; -1 without any.
        ends: the exit codes of its parts that ended.
        summed_up: those of them that hold the trial's summary.
    """

    online: bool
    unsent: bool
    held: tuple[int, int]
    ends: tuple[int, ...]
    summed_up: tuple[int, ...]


@dataclass(frozen=True)
class TrialBooks:
    """A trial in all books.

    Attributes:
        record: as the study has it.
        folder: its files.
        evidence: what the others books tell the study.
        run: its W&B run; None without one.
        wants_run: it should have one, and it was looked for.
        log_every: every how many updates one has a row there.
        recovered: rows that its CSV files lack and its W&B run has, by file and place.
        metrics: what the sweep optimises.
        told: epochs that the study knows of; None where it keeps the last one only.
        train_again: the command that trains it again.
    """

    record: Record
    folder: FolderBook
    evidence: Evidence
    metrics: tuple[str, ...]
    run: RunBook | None = None
    wants_run: bool = False
    log_every: int = 1
    recovered: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(default_factory=dict)
    told: Collection[int] | None = None
    train_again: str = ""
    goes_on: str = "--resume"

    @property
    def ended(self) -> bool:
        """By the study, or by what it is told next."""
        return Outcome.RUNNING not in (self.record.outcome, self.outcome)

    @property
    def outcome(self) -> Outcome:
        """How it stands once the study was told."""
        return self.evidence.outcome if self.record.outcome is Outcome.RUNNING else self.record.outcome

    @property
    def epochs_lost(self) -> bool:
        """Epochs that the study knows have no row."""
        return self.ended and self.folder.epoch.whole < self.record.epochs

    @property
    def untold(self) -> list[int]:
        """Epochs of a trial under way that the study does not know, and that are not trained again."""
        if self.told is None:
            return []
        whole = self.folder.knows[1]
        return [epoch for epoch in sorted(self.evidence.steps) if epoch < whole and epoch not in self.told]

    @property
    def place(self) -> str:
        return f"trial {self.record.trial}"


def expected_rows(books: TrialBooks) -> dict[str, int]:
    """How many rows the CSV files of a trial should have at least, by file."""
    folder, run = books.folder, books.run
    epochs = max(books.record.epochs, folder.knows[1], 0 if run is None else run.held[1] + 1)
    per_epoch = _updates_of_an_epoch(folder.batch)
    batches = max(per_epoch * epochs, folder.knows[0], 0 if run is None else run.held[0] + 1)
    if books.outcome is Outcome.RUNNING:  # what is behind its checkpoint is trained again
        batches, epochs = folder.knows
    return {"batch.csv": batches, "epoch.csv": epochs}


def _updates_of_an_epoch(batch: Rows) -> int:
    """0 where the rows do not tell."""
    if not batch.lines or "batch/epoch" not in batch.columns:
        return 0
    column = batch.columns.index("batch/epoch")
    for place in range(batch.whole):
        cells = batch.lines[place].split(",")  # a quick reading did not look at them
        if column < len(cells) and cells[column].isdecimal() and int(cells[column]) > 0:
            return place
    return 0


def compare(books: TrialBooks) -> Iterator[Finding]:
    """The disagreements about one trial that the study knows."""
    yield from _rows(books)
    yield from _two_files(books)
    yield from _config(books)
    yield from _checkpoints(books)
    yield from _summary(books)
    yield from _value(books)
    yield from _run(books)


def _rows(books: TrialBooks) -> Iterator[Finding]:
    running = books.outcome is Outcome.RUNNING
    if not books.folder.there:
        if books.outcome in HAVE_SUMMARY:
            hint = "Restore it from a copy; how it ended is in the study"
            yield Finding(Kind.ROWS, books.place, "its folder is missing", None, hint)
        return
    expected = expected_rows(books)
    for rows in (books.folder.batch, books.folder.epoch):
        least = 0 if books.outcome is Outcome.FAILED else expected[rows.name]
        lacks = rows.missing(least)
        found = [place for place in lacks if place in books.recovered.get(rows.name, ())]
        lost = len(lacks) - len(found)
        faults = list(rows.faults)
        if lacks and (rows.there or least):
            behind = max(rows.lines, default=-1) > lacks[0]
            named = f"rows {ranges(lacks)} are" if len(lacks) > 1 else f"row {lacks[0]} is"
            faults.append(f"{named} missing" + (", and others follow" if running and behind else ""))
        if not faults:
            continue
        what = f"{rows.name}: {', '.join(faults)}"
        cuts = running and lost > 0 and max(rows.lines, default=-1) > lacks[0]
        if found or cuts or rows.faults:
            does = ["writes it anew with its sound rows" if rows.there else "writes it anew"]
            if found:
                does.append(f"with {'those' if not lost else str(len(found))} that its W&B run holds")
            if cuts:
                does.append("up to the gap")
            yield Finding(Kind.ROWS, books.place, what, ", ".join(does), subject=books.record.trial)
        elif not running:
            hint = f"What is missing is lost; to train the trial again: {books.train_again}"
            yield Finding(Kind.ROWS, books.place, what, None, hint)


def _two_files(books: TrialBooks) -> Iterator[Finding]:
    """Whether both CSV files are of the same trial: an epoch's loss is the mean of its updates'."""
    batch, epochs = books.folder.batch, books.folder.epoch
    updates = _updates_of_an_epoch(batch) or batch.whole
    if not books.ended or not epochs.whole or batch.whole < updates * epochs.whole:
        return
    for epoch in sorted({0, epochs.whole - 1}):
        rows = [_numbers(batch, place) for place in range(updates * epoch, updates * (epoch + 1))]
        losses = [row["batch/loss_total"] for row in rows if "batch/loss_total" in row]
        told = _numbers(epochs, epoch).get("epoch/train_loss", math.nan)
        mean = math.fsum(losses) / len(losses) if losses else math.nan
        if abs(mean - told) > SAME_VALUE * abs(told):
            what = f"the mean loss_total of epoch {epoch} is {mean:.6g} in batch.csv and {told:.6g} in epoch.csv"
            yield Finding(Kind.SETTLE, books.place, what, None, CHANGED)
            return


def _numbers(rows: Rows, place: int) -> dict[str, float]:
    """A row's numbers; none of a row that a quick reading took as it was and that is damaged."""
    try:
        return rows.row(place)
    except ValueError:
        return {}


def _config(books: TrialBooks) -> Iterator[Finding]:
    if (
        books.ended
        and books.folder.there
        and books.folder.epoch.lines
        and books.folder.config in ("missing", "damaged")
    ):
        what = f"config.yaml is {books.folder.config}"
        yield Finding(Kind.CONFIG, books.place, what, "writes it anew from the study", subject=books.record.trial)


def _checkpoints(books: TrialBooks) -> Iterator[Finding]:
    last, previous = books.folder.last, books.folder.previous
    if "damaged" not in (last, previous) and not (books.ended and last == "missing" and previous == "sound"):
        return
    takes_place = previous == "sound" and last != "sound"
    if takes_place:
        what = f"its last checkpoint is {last}"
        remedy, hint = "puts the one before it in its place", ""
    elif last == "sound":
        what, remedy, hint = "its checkpoint before the last one does not load", "moves it aside; it is not needed", ""
    else:
        what, remedy = "its checkpoint does not load", "moves it aside"
        again = f"Its weights are lost; to train it again: {books.train_again}"
        hint = again if books.ended else f"It starts afresh with {books.goes_on}"
    yield Finding(Kind.CHECKPOINT, books.place, what, remedy, hint, books.record.trial)


def _summary(books: TrialBooks) -> Iterator[Finding]:
    state = books.folder.summary
    if not books.folder.there or state == "sound":
        return
    if books.record.outcome in HAVE_SUMMARY:
        remedy = f"makes it anew from {'the table' if books.epochs_lost else 'its rows'}"
    elif state == "damaged":
        remedy = "moves it aside"
    else:
        return
    yield Finding(Kind.SUMMARY, books.place, f"summary.json is {state}", remedy, subject=books.record.trial)


def _value(books: TrialBooks) -> Iterator[Finding]:
    """What the study was told, or is to be told, against the trial's rows."""
    record = books.record
    if record.outcome is Outcome.RUNNING:
        if books.evidence.outcome is not Outcome.RUNNING:
            value = books.evidence.steps.get(max(books.evidence.steps, default=-1), ())
            shown = f" ({', '.join(f'{number:.6g}' for number in value)})" if value else ""
            what = f"the study has it as running, but it ended as {books.evidence.outcome}{shown}"
            yield Finding(Kind.SETTLE, books.place, what, "tells the study", subject=record.trial)
        elif untold := books.untold:
            what = f"the study was not told of epoch {ranges(untold)}, which its checkpoint is behind"
            yield Finding(Kind.SETTLE, books.place, what, "tells the study", subject=record.trial)
        return
    given = books.evidence.values or {}
    for name, value in record.values.items():
        if name in given and given[name] != value and books.evidence.final_values is None:
            what = f"{name} is {value!r} in the study and {given[name]!r} in config.yaml"
            yield Finding(Kind.SETTLE, books.place, what, None, CHANGED)
    here = books.evidence.steps.get(record.epochs - 1)
    if here is None and record.epochs - 1 in books.folder.epoch.lines and record.objectives and books.evidence.values:
        names = ", ".join(books.metrics)
        what = f"epoch.csv has no finite {names} after epoch {record.epochs - 1}, of which the study was told"
        yield Finding(Kind.SETTLE, books.place, what, None, CHANGED)
    if record.outcome in (Outcome.COMPLETE, Outcome.PRUNED) and record.objectives and here is not None:
        for name, told, row in zip(books.metrics, record.objectives, here, strict=False):
            if not math.isclose(told, row, rel_tol=SAME_VALUE, abs_tol=1e-9):
                what = f"{name} after epoch {record.epochs - 1} is {told:.6g} in the study and {row:.6g} in epoch.csv"
                yield Finding(Kind.SETTLE, books.place, what, None, CHANGED)


def _run(books: TrialBooks) -> Iterator[Finding]:
    batch, epoch = (max(rows.lines, default=-1) for rows in (books.folder.batch, books.folder.epoch))
    if not books.wants_run or not books.ended or batch < 0:
        return
    batch -= batch % books.log_every
    run = books.run
    if run is None:
        what = "it has no W&B run"
    elif run.online:
        return
    elif run.held[0] < batch or run.held[1] < epoch:
        lacks = max(batch // books.log_every - run.held[0] // books.log_every, 0) + max(epoch - run.held[1], 0)
        what = f"its W&B run lacks its last {lacks} rows" if lacks > 1 else "its W&B run lacks its last row"
    elif EXIT_CODES[books.outcome] in run.summed_up if books.outcome in EXIT_CODES else run.ends:
        return
    else:
        what = "its W&B run was never finished"
    remedy = "adds what is missing from its rows, offline"
    yield Finding(Kind.WANDB, books.place, what, remedy, subject=books.record.trial)


def notes(books: TrialBooks) -> Iterator[str]:
    """What is no disagreement, and worth a line."""
    if books.outcome is Outcome.RUNNING:
        done = books.folder.epoch.whole
        epochs = "1 epoch" if done == 1 else f"{done} epochs"
        yield f"{books.place}: under way when it was interrupted; {books.goes_on} goes on with it ({epochs} done)"
    elif books.outcome is Outcome.COMPLETE and (books.folder.last, books.folder.previous) == ("missing", "missing"):
        yield f"{books.place}: it has no checkpoint; for its weights train it again: {books.train_again}"
    if books.ended and books.run is not None and books.run.online and books.run.unsent:
        yield f"{books.place}: W&B's server lacks some of its run; python -m sweep.sync sends the rest"


def summary_of(epochs: Rows, seconds: float | None) -> dict[str, float]:
    """summary.json as the trainer had it: the smallest mean training loss, and the time."""
    losses = [(row["epoch/train_loss"], place) for place in sorted(epochs.lines) if _has_loss(row := epochs.row(place))]
    content: dict[str, float] = {}
    if losses:
        best, place = min(losses)
        content = {"summary/best_epoch": place, "summary/best_loss": best}
    return content if seconds is None else {**content, "summary/total_time_seconds": seconds}


def _has_loss(row: Mapping[str, float]) -> bool:
    return not math.isnan(row.get("epoch/train_loss", math.nan))
