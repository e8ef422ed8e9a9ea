"""A sweep's own files (study, spec, tables, report), from its driver to an object store and back.

The study's journal goes last: at the store it never says that a trial has ended whose files are not there. So whatever
dies, a resumed sweep finds each trial ended and whole, or goes on with it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import ConfigError
from model.folder import LAST
from sweep.mirror import STATE, Progress, TrialMirror, is_sent, note_progress
from sweep.outcome import Outcome
from sweep.remote import Store, StoreError, cache_folder
from sweep.remote_lock import BEAT_S, DriverLock
from sweep.study import JOURNAL, Record

SPEC = "spec.yaml"
LEAST_PAUSE_S = 3.0  # between two looks at what has changed
PAUSE_FACTOR = 10.0  # and so many times as long as the last look took: of a large study the copies cost little
FILES_LIMIT_S = 120.0  # how long the journal waits for the files of a trial that ended: its worker may be gone
END_LIMIT_S, STOP_LIMIT_S = 600.0, 5.0  # how long the end waits for a store that takes files; where the user stops it
GRACE_S = 2.0  # for the last word to a store that may be silent

Say = Callable[[str], None]


class SweepMirror:
    """Keeps a sweep's results at a URL; the sweep itself works in `folder`.

    Args:
        url: see `sweep.remote.checked_url`.
        say: told once what the user should know.

    Raises:
        ConfigError, StoreError: the URL cannot be used.
    """

    def __init__(self, url: str, say: Say) -> None:
        self._store = Store(url)
        self.url = self._store.url
        self.folder = cache_folder(self.url)
        self._say = say
        self._lock = DriverLock(self._store)
        self._ended: dict[str, float] = {}  # trials whose files the store may lack yet -> when they ended
        self._ended_ever: set[str] = set()  # of this session
        self._ended_guard = threading.Lock()
        self._sent: dict[str, tuple[int, int]] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._working = threading.Lock()
        self._lost = False  # another driver has taken over
        self.hurry = False
        """The user has stopped the sweep: the end takes STOP_LIMIT_S at most."""

    @contextmanager
    def opened(self, resume: bool, dry_run: bool) -> Iterator[None]:
        """Within, this driver has the URL, and `folder` what is there.

        Raises:
            ConfigError: another driver has it, or without `resume` it holds a sweep.
            StoreError: it cannot be read and written.
        """
        self._store.check()
        if not resume and self._store.read(JOURNAL) is not None:
            raise ConfigError(
                f"results: {self.url} holds a sweep already; go on with it by --resume, or give another place with "
                "--results"
            )
        if dry_run:
            self._fetch()
            yield
            return
        note = self._lock.acquire()
        try:
            if note is not None:
                self._say(note)
            self._fetch()
            yield
        finally:
            _in_time(self._release, GRACE_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, what changes in `folder` goes to the URL; at the end the rest does. The folder holds a sweep.

        Raises StoreError where the first files cannot be sent.
        """
        self._send_leftovers(time.monotonic() + END_LIMIT_S)
        self._send_files()
        self._closing.clear()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()
        limit_s = STOP_LIMIT_S  # what ends by an exception was stopped
        try:
            yield
            limit_s = END_LIMIT_S
        finally:
            self._closing.set()
            self._finish(STOP_LIMIT_S if self.hurry else limit_s)

    def ended(self, record: Record) -> None:
        """A trial ended: the journal says so at the store once its files are there."""
        if record.outcome in (Outcome.COMPLETE, Outcome.PRUNED, Outcome.DIVERGED):
            with self._ended_guard:
                self._ended[record.trial] = time.monotonic()
                self._ended_ever.add(record.trial)

    def pull(self) -> None:
        """Bring here what workers on other machines sent: all of ended trials but their checkpoints. Never raises."""
        here = (Progress.here(self._trial(trial)) for trial in self._ended_ever)
        if all(known is not None and known.ended for known in here):
            return
        try:
            self._pull()
        except (StoreError, OSError) as error:
            self._say(f"{error}. What other machines sent is missing in {self.folder}")

    def discard(self) -> None:
        """Take back what a sweep without trials sent, and nothing else: the place may hold other people's files."""
        with suppress(StoreError):
            if not self._store.folders("trials"):
                self._store.remove(self._sent)

    # --- here <- store ---

    def _fetch(self) -> None:
        """Bring the sweep here, unless what is here is as new: one that could not be sent at its end."""
        theirs = self._store.read(JOURNAL)
        if self._store.read(SPEC) is None or theirs is None:
            return
        journal = self.folder / JOURNAL
        ours = journal.read_bytes() if journal.exists() else b""
        if not ours.startswith(theirs):
            if not theirs.startswith(ours):  # the sweep went on elsewhere since: this is the past of another one
                self._set_aside()
            for name in self._store.sizes():
                if "/" not in name and not name.startswith("."):
                    self._store.fetch(name, self.folder / name)
        self._pull()

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        self._say(f"the copy on this machine is of another course of the sweep; it is kept in {aside}")

    def _pull(self) -> None:
        known = {trial: Progress.here(self._trial(trial)) for trial in self._store.folders("trials")}
        open_ones = [trial for trial, here in known.items() if here is None or not here.ended]
        states = self._store.read_all(f"trials/{trial}/{STATE}" for trial in open_ones)
        for trial in open_ones:
            there, here = Progress.parse(states.get(f"trials/{trial}/{STATE}")), known[trial]
            if there is None or (here is not None and here >= there):
                continue
            for name in self._store.sizes(f"trials/{trial}"):
                if not name.rpartition("/")[2].startswith(".") and not name.endswith(LAST.as_posix()):
                    self._store.fetch(name, self.folder / name)
            if there.ended:
                note_progress(self._trial(trial), there, sent=True)
        for name, size in self._store.sizes("wandb").items() if open_ones else ():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size < size:
                self._store.fetch(name, file)

    # --- here -> store ---

    def _work(self) -> None:
        beaten = time.monotonic()
        look_at = beaten + LEAST_PAUSE_S
        while not self._closing.wait(LEAST_PAUSE_S):
            began = time.monotonic()
            try:
                with self._working:
                    if began - beaten > BEAT_S / 2:
                        beaten = began
                        if not self._lock.beat():
                            self._lose()
                            return
                    if began < look_at:
                        continue
                    self._send_files()
            except (StoreError, OSError):
                pass  # the workers, which meet the same store, tell; what is left at the end is told then
            now = time.monotonic()
            look_at = now + max(LEAST_PAUSE_S, PAUSE_FACTOR * (now - began))

    def _lose(self) -> None:
        self._lost = True
        self._say(
            f"another process has taken over {self.url}, since this one gave no sign of life for a while; what this "
            f"one finds stays in {self.folder}. Stop it"
        )

    def _send_files(self) -> None:
        """Send what has changed of the sweep's own files, the journal last."""
        journal = self.folder / JOURNAL
        lines = _whole_lines(journal)
        for file in sorted(self.folder.iterdir()) + sorted((self.folder / "pareto").glob("*.yaml")):
            if file.is_file() and not file.name.startswith(".") and file.suffix != ".tmp" and file != journal:
                status = file.stat()
                self._send(file.relative_to(self.folder).as_posix(), file, (status.st_mtime_ns, status.st_size))
        if lines and self._sent.get(JOURNAL) != (0, len(lines)) and self._files_are_there():
            self._store.write(JOURNAL, lines)
            self._sent[JOURNAL] = (0, len(lines))

    def _send(self, name: str, file: Path, like: tuple[int, int]) -> None:
        if self._sent.get(name) != like:
            with suppress(FileNotFoundError):
                self._store.write(name, file.read_bytes())
                self._sent[name] = like

    def _files_are_there(self) -> bool:
        """Whether the store has the files of all trials that ended, or they are overdue."""
        with self._ended_guard:
            waiting = dict(self._ended)
        for trial, since in waiting.items():
            here = Progress.here(self._trial(trial))
            there = here if is_sent(self._trial(trial)) else None
            if there is None or not there.ended:
                there = Progress.parse(self._store.read(f"trials/{trial}/{STATE}"))
            if (there is None or not there.ended) and time.monotonic() - since < FILES_LIMIT_S:
                return False
            with self._ended_guard:
                self._ended.pop(trial, None)
        return True

    def _send_leftovers(self, until: float) -> int:
        """Send trials on this machine that could not be sent before; the number of those that are left."""
        trials = self.folder / "trials"
        unsent = [
            folder
            for folder in (sorted(trials.iterdir()) if trials.is_dir() else ())
            if (folder / STATE).exists() and not is_sent(folder)
        ]
        for place, folder in enumerate(unsent):
            uid = _uid_of(self.folder)
            mirror = TrialMirror(self.url, self.folder, folder.name, f"{uid}-{folder.name}", tells=False)
            here = Progress.here(folder) or Progress(0)
            mirror.saved(here.update, here.ended)
            if not mirror.settle(max(until - time.monotonic(), 0.1)):
                return len(unsent) - place
        return 0

    def _finish(self, limit_s: float) -> None:
        if self._lost:
            return
        left = ["some of its files (the store does not answer)"]

        def send() -> None:
            left[:] = self._send_rest(time.monotonic() + limit_s)

        _in_time(send, limit_s + GRACE_S)
        for what in left:
            self._say(
                f"{what} could not be sent to {self.url}; they are kept in {self.folder}, and the same command with "
                "--resume sends them"
            )

    def _send_rest(self, until: float) -> list[str]:
        """Send what the store lacks; what could not be sent, in words."""
        if self._thread is not None:
            self._thread.join(max(until - time.monotonic(), 0))
        try:
            with self._working:
                if (trials := self._send_leftovers(until)) > 0:
                    return [f"{trials} of its trials"]
                with self._ended_guard:
                    self._ended.clear()  # what is here was sent
                self._send_files()
        except (StoreError, OSError) as error:
            return [f"some of its files ({error.brief if isinstance(error, StoreError) else error})"]
        return []

    def _release(self) -> None:
        with suppress(StoreError):
            self._lock.release()

    def _trial(self, trial: str) -> Path:
        return self.folder / "trials" / trial


def _in_time(job: Callable[[], None], limit_s: float) -> None:
    """Do a job, but wait no longer: a store that takes connections and is silent would hold us for minutes."""
    thread = threading.Thread(target=job, name="mirror-end", daemon=True)
    thread.start()
    thread.join(limit_s)


def _whole_lines(path: Path) -> bytes:
    """What a file that is appended to holds, without a line that is being written."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def _uid_of(results: Path) -> str:
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads((results / "provenance.json").read_text(encoding="utf-8")).get("uid", ""))
    return ""
