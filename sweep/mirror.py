"""A trial's files, from its worker to an object store and back.

A worker sends its trial's folder at each checkpoint and at the trial's end, in a thread: training does not wait, and a
store that is gone costs a warning. An object store has no way to replace several files at once, so their order says
what belongs together: first the rows, then the checkpoint, which has at most those, and last STATE, which tells how far
the trial had come at least. Who opens a trial elsewhere fetches in the reverse order, and the trial's own rule holds:
the CSV files have at least the rows that the checkpoint knows of.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from model.folder import LAST, PREVIOUS
from model.sinks import write_json
from sweep.remote import Store, StoreError
from sweep.wandb_files import KINDS, whole_records

STATE = ".mirror.json"  # in a trial's folder, here and at the store: how far its files have come
OWNER = ".mirror.owner"  # at the store: who opened the trial last
SCRATCH = ".mirror"  # in the results folder: files as they were when they were to be sent
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two attempts; each pause is twice the one before
PATIENCE = 3  # failed attempts in a row, after which nobody waits for what is to be sent

logger = logging.getLogger(__name__)


class Sender:
    """Does jobs in a thread, one at a time, and repeats with longer and longer pauses what fails with StoreError.

    Attributes:
        trouble: why the last attempt failed; None while all goes well.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self.trouble: str | None = None
        self._asked = self._failures = 0  # so often, in all
        threading.Thread(target=self._work, name="sender", daemon=True).start()

    def ask(self, name: str, job: Callable[[], None]) -> None:
        """Do a job at once, or after the one that is being done; it takes the place of one of that name."""
        with self._changed:
            self._jobs[name] = job
            self._asked += 1
            self._changed.notify_all()

    def settle(self, name: str, limit_s: float) -> bool:
        """Wait until the job of a name is done; False where attempts fail again and again, or it takes longer."""
        with self._changed:
            enough = self._failures + (PATIENCE if self.trouble is None else 1)
            self._changed.wait_for(lambda: name not in self._jobs or self._failures >= enough, limit_s)
            return name not in self._jobs

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                name, job = next(iter(self._jobs.items()))
                asked = self._asked
            fault = None
            try:
                job()
            except StoreError as error:
                fault = error.brief
            except Exception as error:  # of the local disk; a thread that ends would leave all others waiting
                fault = f"{type(error).__name__}: {error}"
            with self._changed:
                self.trouble = fault
                self._failures += fault is not None
                if self._jobs.get(name) is job:
                    del self._jobs[name]
                    if fault is not None:
                        self._jobs[name] = job  # behind the others: it may be the only one that fails
                if fault is None:
                    pause_s = FIRST_PAUSE_S
                self._changed.notify_all()
                if fault is not None:
                    self._changed.wait_for(lambda: self._asked > asked, pause_s)  # noqa: B023  # called here only
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


@lru_cache(maxsize=4)
def sender_of(url: str) -> tuple[Store, Sender]:
    """The store at a URL and this process's thread that sends to it."""
    return Store(url), Sender()


@dataclass(frozen=True, order=True)
class Progress:
    """How far a trial's files have come; the larger one is the newer one."""

    update: int
    ended: bool = False

    @classmethod
    def parse(cls, content: bytes | str | None) -> Progress | None:
        """Of STATE's content; None where there is none, or it is damaged."""
        try:
            known = json.loads(content or "")
            return cls(int(known["update"]), bool(known["ended"]))
        except (ValueError, LookupError, TypeError):
            return None

    @classmethod
    def here(cls, folder: Path) -> Progress | None:
        """Of a trial's folder on this machine."""
        try:
            return cls.parse((folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def is_sent(folder: Path) -> bool:
    """Whether the store has all of a trial's folder on this machine, as far as is known here."""
    try:
        return bool(json.loads((folder / STATE).read_text(encoding="utf-8"))["sent"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def note_progress(folder: Path, progress: Progress, sent: bool) -> None:
    """Write STATE into a trial's folder on this machine."""
    write_json(folder / STATE, {"update": progress.update, "ended": progress.ended, "sent": sent})


class TrialMirror:
    """Keeps a trial's folder, and its W&B files, at a store.

    Args:
        url: of the sweep's results.
        results: the results folder on this machine.
        trial: its id.
        run_id: of its W&B run.
        tells: warn of a store that does not take the files, once.
    """

    def __init__(self, url: str, results: Path, trial: str, run_id: str, tells: bool = True) -> None:
        self._store, self._sender = sender_of(url)
        self._results, self._trial, self._run_id = results, trial, run_id
        self._folder = results / "trials" / trial
        self._name = f"trials/{trial}"
        self._token = uuid.uuid4().hex.encode()
        self._claimed = False
        self._sent: dict[str, tuple[int, ...]] = {}  # name at the store -> what the file was like
        self._lock = threading.Lock()  # of STATE here
        self._newest = Progress(-1)
        self._warned = not tells

    def fetch(self, is_this_trial: Callable[[str], bool]) -> None:
        """Bring the trial's files here where the store has newer ones. Cheap where it has not. Never raises.

        Args:
            is_this_trial: told the text of the config.yaml there. A driver that was killed may have started a trial of
                this number that its journal at the store does not know; such files are no part of this one.
        """
        try:
            there = Progress.parse(self._store.read(f"{self._name}/{STATE}"))
            self._claim()
            if there is None:
                return
            config = self._store.read(f"{self._name}/config.yaml")
            if config is None or not is_this_trial(config.decode("utf-8", "replace")):
                self._forget()
                return
            here = Progress.here(self._folder)
            if here is not None and here >= there and self._has_checkpoint(there):
                return
            sizes = self._store.sizes(self._name)
            self._clear()
            # the checkpoint first: the rows that are fetched after it are at least as new
            for name in sorted(sizes, key=lambda name: not name.endswith(f"/{LAST.as_posix()}")):
                if not name.rpartition("/")[2].startswith("."):
                    self._store.fetch(name, self._results / name)
            for name, size in self._wandb_there().items():
                file = self._results / name
                if not file.is_file() or file.stat().st_size < size:
                    self._store.fetch(name, file)
            note_progress(self._folder, there, sent=True)
        except (StoreError, OSError) as error:
            self._warn(str(error) if isinstance(error, OSError) else error.brief)

    def saved(self, update: int, ended: bool = False) -> None:
        """Send the folder: it has a checkpoint of this update, or the trial has ended."""
        progress = Progress(update, ended)
        with self._lock:
            self._newest = progress
            with suppress(OSError):
                note_progress(self._folder, progress, sent=False)
        self._sender.ask(self._trial, lambda: self._send(progress))
        self._warn(self._sender.trouble)

    def settle(self, limit_s: float) -> bool:
        """Wait until everything was sent; False where the store does not take it, or not in time."""
        done = self._sender.settle(self._trial, limit_s)
        self._warn(self._sender.trouble)
        return done

    def _warn(self, trouble: str | None) -> None:
        # the same words in all workers, so that the user reads them once
        if trouble is not None and not self._warned:
            self._warned = True
            logger.warning("%s: %s. Trials go on; their files are kept and sent later", self._store.url, trouble)

    def _send(self, progress: Progress) -> None:
        if not self._is_owner():
            return  # another worker has the trial: what this one has is no longer of use
        scratch = self._results / SCRATCH / f"{self._trial}-{os.getpid()}"
        try:
            # the checkpoint as it is now: when it goes, the rows that went before are at least as new
            checkpoint = self._as_now(self._folder / LAST, scratch, link=True)
            for file in self._files(progress.ended):
                self._send_changed(file, file.relative_to(self._results).as_posix(), scratch)
            if checkpoint is not None:
                self._send_changed(checkpoint, f"{self._name}/{LAST.as_posix()}", None)
            self._store.write(f"{self._name}/{STATE}", self._state(progress))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with self._lock, suppress(OSError):
            if progress == self._newest:
                note_progress(self._folder, progress, sent=True)

    def _state(self, progress: Progress) -> bytes:
        wandb = sorted(folder.relative_to(self._results).as_posix() for folder in self._wandb_folders())
        return json.dumps({"update": progress.update, "ended": progress.ended, "wandb": wandb}).encode()

    def _files(self, ended: bool) -> list[Path]:
        """What is sent beside the checkpoint; W&B's files at the end only when they are whole."""
        own = [file for file in sorted(self._folder.rglob("*")) if _is_kept(file, self._folder)]
        for folder in self._wandb_folders():
            if ended:
                whole_records(folder / f"run-{self._run_id}.wandb")
            own += [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
        return own

    def _wandb_folders(self) -> list[Path]:
        pattern = f"-*-{self._run_id}*/run-{self._run_id}.wandb"
        return [file.parent for kind in KINDS for file in sorted((self._results / "wandb").glob(kind + pattern))]

    def _wandb_there(self) -> dict[str, int]:
        """W&B's files of the trial at the store, with their sizes."""
        try:
            known = json.loads(self._store.read(f"{self._name}/{STATE}") or b"{}").get("wandb", [])
        except (ValueError, AttributeError):
            return {}
        found: dict[str, int] = {}
        for folder in known:
            if str(folder).startswith("wandb/"):
                found |= self._store.sizes(str(folder))
        return found

    def _send_changed(self, file: Path, name: str, scratch: Path | None) -> None:
        status = file.stat()
        like = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._sent.get(name) == like:
            return
        copy = file if scratch is None else self._as_now(file, scratch, link=False)
        if copy is not None:
            self._store.send(copy, name)
            self._sent[name] = like

    @staticmethod
    def _as_now(file: Path, scratch: Path, link: bool) -> Path | None:
        """A file as it is now: a checkpoint is replaced and never changed, rows are appended to."""
        scratch.mkdir(parents=True, exist_ok=True)
        copy = scratch / file.name
        copy.unlink(missing_ok=True)
        try:
            if link:
                with suppress(OSError):
                    os.link(file, copy)
                    return copy
            shutil.copyfile(file, copy)
        except FileNotFoundError:
            return None
        return copy

    def _has_checkpoint(self, there: Progress) -> bool:
        return there.update <= 0 or (self._folder / LAST).exists() or (self._folder / LAST).with_name(PREVIOUS).exists()

    def _claim(self) -> None:
        self._store.write(f"{self._name}/{OWNER}", self._token)
        self._claimed = True

    def _is_owner(self) -> bool:
        if not self._claimed:  # the store was gone when the trial was opened
            self._claim()
        owner = self._store.read(f"{self._name}/{OWNER}")
        if not owner:
            self._claim()
        return owner in (None, b"", self._token)

    def _forget(self) -> None:
        """Remove what the store has of another trial of this number."""
        names = [*self._store.sizes(self._name), *self._wandb_there()]
        self._store.remove(name for name in names if not name.endswith(f"/{OWNER}"))

    def _clear(self) -> None:
        """Leave nothing here that is older than what is about to be fetched."""
        for name in ("batch.csv", "epoch.csv", "summary.json", LAST.as_posix(), (LAST.parent / PREVIOUS).as_posix()):
            (self._folder / name).unlink(missing_ok=True)


def _is_kept(file: Path, folder: Path) -> bool:
    """Whether a file of a trial's folder goes to the store by itself: not the checkpoints, and nothing half-written."""
    name = file.relative_to(folder)
    hidden = any(part.startswith(".") for part in name.parts)
    return file.is_file() and not hidden and name.parts[0] != LAST.parts[0] and file.suffix != ".tmp"
