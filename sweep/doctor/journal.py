"""The study's file as it lies on disk: what can be read of it, and a new one made of trials.

Optuna's journal is a line of JSON for each event. A trial's number is the count of trials created before it, so a
damaged line is not just left out: where later lines show that it created a trial, an empty trial takes its place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation, JournalStorageReplayResult
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweep.outcome import Outcome
from sweep.sampler_view import is_diverged

MOST_LOST = 1000  # trials in a row whose creation no line tells of
LOCK_SUFFIX = ".lock"  # of Optuna's own lock; a killed process leaves it, and the next one waits half a minute for it
ENDS = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.RUNNING)
_OF_A_TRIAL = range(JournalOperation.SET_TRIAL_PARAM, JournalOperation.SET_TRIAL_SYSTEM_ATTR + 1)


@dataclass
class StudyBook:
    """A study of the journal: its attributes, and its trials by number."""

    directions: tuple[str, ...] = ()
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    trials: list[FrozenTrial] = field(default_factory=list)


@dataclass(frozen=True)
class Journal:
    """What can be read of a journal.

    Attributes:
        there: the file exists.
        studies: by name.
        sound_bytes: length of its beginning that is sound.
        fault: what is wrong with it, in words; None where nothing is.
        cut: all that is wrong is behind the last sound line: to cut it off there loses one event.
    """

    there: bool
    studies: Mapping[str, StudyBook]
    sound_bytes: int = 0
    fault: str | None = None
    cut: bool = False


def read_journal(path: Path, names: Sequence[str]) -> Journal:
    """Read what is there, sound or not; nothing is changed.

    Args:
        names: of the studies in the order in which they are begun, for those whose first line is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Journal(False, {}, fault="it is missing")
    if not data.strip(b"\0"):
        return Journal(True, {}, fault="it is empty" if not data else "it holds zeros only")
    replay = _Replay(names)
    bad: list[int] = []
    sound_bytes = place = 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        place += len(line)
        if not line.endswith(b"\n") or not replay.take(_event(line)):
            bad.append(number)
        elif not bad:
            sound_bytes = place
    last = data.count(b"\n") + (not data.endswith(b"\n"))
    cut = bad == [last]
    fault = None
    if cut:
        fault = "its last line is half written" if data[sound_bytes:].strip(b"\0") else "zeros follow its last line"
    elif bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        fault = f"damaged in line {shown}" if len(bad) == 1 else f"damaged in {len(bad)} lines ({shown})"
    studies = replay.studies()
    if fault is None and any(_lacks_outcome(trial) for study in studies.values() for trial in study.trials):
        fault = "it lacks how some trials ended"
    return Journal(True, studies, sound_bytes, fault, cut)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


class _Replay:
    """Optuna's own reading, line by line."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._result = JournalStorageReplayResult("doctor")
        self._damaged = False  # some line before
        self._study = 0  # that is worked on

    def take(self, event: dict[str, Any] | None) -> bool:
        """Apply an event; False where it cannot be."""
        if event is not None:
            try:
                sound = not self._stand_in(event)
                self._result.apply_logs([event])
                self._study = self._study_of(event)
                return sound or self._seen_damage()
            except Exception:  # a line of JSON that is no event: whatever Optuna stumbles over
                pass
        self._damaged = True
        return False

    def _seen_damage(self) -> bool:
        """Whether a damaged line before tells why there was nothing for an event to be about; else one is missing."""
        seen, self._damaged = self._damaged, True
        return seen

    def _study_of(self, event: Mapping[str, Any]) -> int:
        """The study that is worked on: a session opens the search, then the confirmation."""
        if event["op_code"] == JournalOperation.CREATE_STUDY:
            ids = {study.study_name: study._study_id for study in self._result.get_all_studies()}
            return ids[event["study_name"]]
        return int(event.get("study_id", self._study))

    def _stand_in(self, event: Mapping[str, Any]) -> bool:
        """Create what the event is about, where a line that was lost did; whether that was so."""
        if event["op_code"] == JournalOperation.CREATE_STUDY:
            return False
        if event["op_code"] in _OF_A_TRIAL and event["trial_id"] + 1 - len(self._result._trials) > MOST_LOST:
            raise ValueError("a damaged number: no trial is stood in for")
        before = len(self._result._trials), len(self._result._studies)
        study = event.get("study_id", self._study)
        while len(self._result._studies) <= study < len(self._names):
            known = {book.study_name for book in self._result.get_all_studies()}
            name = next(name for name in self._names if name not in known)
            self._apply(JournalOperation.CREATE_STUDY, study_name=name, directions=[int(StudyDirection.NOT_SET)])
        if event["op_code"] in _OF_A_TRIAL:
            for _ in range(event["trial_id"] + 1 - len(self._result._trials)):
                state = int(TrialState.RUNNING)
                self._apply(JournalOperation.CREATE_TRIAL, study_id=study, state=state, datetime_start=None)
        return before != (len(self._result._trials), len(self._result._studies))

    def _apply(self, operation: JournalOperation, **event: Any) -> None:
        self._result.apply_logs([{"op_code": int(operation), "worker_id": "", **event}])

    def studies(self) -> dict[str, StudyBook]:
        return {
            study.study_name: StudyBook(
                tuple(direction.name.lower() for direction in study.directions),
                dict(study.user_attrs),
                dict(study.system_attrs),
                self._result.get_all_trials(study._study_id, None),
            )
            for study in self._result.get_all_studies()
        }


def _lacks_outcome(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and trial.user_attrs.get("outcome") not in ENDS


def outcome_of(trial: FrozenTrial) -> Outcome:
    """How a trial stands; where the note of it was lost, as Optuna's state has it."""
    if not trial.state.is_finished():
        return Outcome.RUNNING
    if not _lacks_outcome(trial):
        return Outcome(trial.user_attrs["outcome"])
    if trial.state == TrialState.PRUNED:
        return Outcome.DIVERGED if is_diverged(trial) else Outcome.PRUNED
    return Outcome.COMPLETE if trial.state == TrialState.COMPLETE else Outcome.FAILED


def write_journal(path: Path, studies: Mapping[str, StudyBook]) -> None:
    """A new journal that holds these studies, in one step: a kill leaves the old or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(scratch)))
    for name, book in studies.items():
        study = optuna.create_study(study_name=name, storage=storage, directions=list(book.directions))
        for attribute, value in book.user_attrs.items():
            study.set_user_attr(attribute, value)
        for attribute, value in book.system_attrs.items():
            storage.set_study_system_attr(study._study_id, attribute, value)
        for trial in book.trials:
            storage.create_new_trial(study._study_id, template_trial=trial)
    scratch.replace(path)


def leftover_locks(path: Path) -> Iterator[Path]:
    """Optuna's locks of this journal that a killed process left; only where no driver is at work."""
    for lock in path.parent.glob(f"{path.name}{LOCK_SUFFIX}*"):
        if lock.is_symlink() or lock.exists():
            yield lock
