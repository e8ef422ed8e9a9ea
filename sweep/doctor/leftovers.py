"""What lies in a results folder beside the trials' books: scratch files and locks of dead processes, files of trials
that no study knows, the sweep's own small files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweep.doctor.journal import leftover_locks
from sweep.doctor.ledger import Finding, Kind
from sweep.ownership import OWNER, local_owner
from sweep.results import ResultsFolder
from sweep.study import JOURNAL
from sweep.watchdog import OPEN_STACKS

TRIAL = re.compile(r"c?\d{4,}")
RAY_DIRECTORY = re.compile(r"(c?\d{4,})(_[0-9a-f]{4})?")  # Ray's end of the name where a trial was started again
SCRATCH = re.compile(r"\..+\.\d+\.tmp(\.lock.*)?|.+\.csv\.tmp")
ONLY_COPY = {  # of the sweep's own files, what is in no other book
    "population.json": "It holds the values that trials changed to; restore it from a copy",
    "warm_start.json": "It holds what earlier sweeps gave; restore it from a copy",
    "runs.json": "It holds which run is which trial; restore it from a copy",
}


def leftovers(results: Path) -> Iterator[Finding]:
    """What dead processes left behind."""
    trials = results / "trials"
    for place in (results, *trials.glob("*"), *trials.glob("*/*")):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if SCRATCH.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
                yield aside(results, Kind.LEFTOVER, path, "left half written by a process that died")
    for lock in leftover_locks(results / JOURNAL):
        yield Finding(Kind.LEFTOVER, lock.name, "a lock of a process that died", "removes it", subject=str(lock))
    for mark in sorted([*trials.glob(f"*/{OWNER}"), *trials.glob(f"*/{OPEN_STACKS}")]):
        if local_owner(mark.parent) is None and (mark.parent / "summary.json").exists():
            name = str(mark.relative_to(results))
            yield Finding(Kind.LEFTOVER, name, "the mark of a process that died", "removes it", subject=str(mark))
    stop = ResultsFolder(results).stop_file
    if stop.exists():
        yield Finding(Kind.LEFTOVER, stop.name, "left by a driver that died", "removes it", subject=str(stop))


def aside(results: Path, kind: Kind, path: Path, what: str, hint: str = "") -> Finding:
    """A finding about something that is to be moved aside."""
    return Finding(kind, str(path.relative_to(results)), what, "moves it aside", hint, str(path))


def read_uid(results: Path, runs: Collection[str]) -> tuple[str, list[Finding]]:
    """The sweep's uid, also where only the ids of its W&B runs tell it; and what is wrong with provenance.json."""
    path = ResultsFolder(results).provenance_file
    try:
        content = json.loads(path.read_bytes())
        uid = content["uid"]
        if isinstance(uid, str) and uid and isinstance(content.get("sessions"), list):
            return uid, []
        fault = "it is damaged"
    except FileNotFoundError:
        fault = "it is missing"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        fault = "it is damaged"
    uids = {run.rpartition("-")[0] for run in runs if TRIAL.fullmatch(run.rpartition("-")[2])} - {""}
    if len(uids) == 1:
        (uid,) = uids
        remedy = f"writes it anew with the uid {uid} of the W&B runs; what it said of earlier sessions is lost"
    elif fault == "it is missing":
        return "", []  # the first session had no time to write it, or nothing tells the uid: the next one makes it
    else:
        uid, remedy = "", "moves it aside; the next session makes a new one"
    return uid, [Finding(Kind.PROVENANCE, path.name, fault, remedy, subject=uid)]


def own_files(results: Path) -> Iterator[Finding]:
    """The sweep's own small files of JSON."""
    for name, hint in ONLY_COPY.items():
        if _is_damaged(results / name):
            yield Finding(Kind.PROVENANCE, name, "it is damaged", None, hint)
    path = ResultsFolder(results).conclusion_file
    if _is_damaged(path):
        yield aside(results, Kind.LEFTOVER, path, "it is damaged", "--resume makes it anew")


def orphans(results: Path, uid: str, known: Collection[str], runs: Mapping[str, Any]) -> Iterator[Finding]:
    """Folders of trials that the study does not know: the trials' own, Ray's and W&B's."""
    for path in sorted((results / "trials").glob("*")):
        if TRIAL.fullmatch(path.name) and path.is_dir() and path.name not in known:
            yield aside(results, Kind.ORPHAN, path, "the study knows no such trial")
    for path in sorted((results / "ray").glob("*")):
        match = RAY_DIRECTORY.fullmatch(path.name)
        if match and path.is_dir() and match[1] not in known:
            yield aside(results, Kind.ORPHAN, path, "Ray's directory of a trial that the study does not know")
    for run, files in runs.items():
        trial = run.removeprefix(f"{uid}-")
        if is_own(run, uid) and trial not in known:
            for file in files:
                yield aside(results, Kind.ORPHAN, file.parent, "W&B's files of a trial that the study does not know")


def is_own(run: str, uid: str) -> bool:
    """Whether a W&B run's id is one of this sweep's."""
    return bool(uid) and run.startswith(f"{uid}-")


def _is_damaged(path: Path) -> bool:
    try:
        return not isinstance(json.loads(path.read_bytes()), dict)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
