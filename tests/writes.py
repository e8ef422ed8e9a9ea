"""Faults at every write: a process whose writes are counted, and something done at each.

What a process has not yet written when it is killed is gone, and what it has written is there. So the folder, copied at
a write, is what `kill -9` at that moment leaves behind, and one run of a sweep yields all of them. For a fault that the
process lives to see, such as a full disk, it is forked at each write: the child goes on with the fault in a copy.

Only for children of a test (`forked`): nothing is ever put back.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

# what is done to a file: rows and bytes; a file, folder or link made; another put in its place, or taken away
BYTES, MAKE, REPLACE, REMOVE, TRUNCATE, SYNC = "bytes", "make", "replace", "remove", "truncate", "sync"


class Write(NamedTuple):
    """A write that is about to happen.

    Attributes:
        place: the file, below the folder.
        act: one of the above.
        half: the first half of the bytes is there already.
    """

    place: Path
    act: str
    half: bool = False


def watch_writes(folder: Path, at_each: Callable[[Write], None]) -> None:
    """Call this before each write of this process below `folder`, and in the middle of those of several bytes.

    Args:
        at_each: what it raises, the write raises.
    """
    busy = False

    def about_to(path: Any, act: str, half: bool = False) -> None:
        nonlocal busy
        if busy or isinstance(path, int) or not (whole := os.path.abspath(os.fsdecode(path))).startswith(f"{folder}/"):  # noqa: PTH100
            return
        busy = True  # what is done at a write is not watched
        try:
            at_each(Write(Path(whole).relative_to(folder), act, half))
        finally:
            busy = False

    class Watched(io.FileIO):
        def write(self, content: Any, /) -> int:
            whole = memoryview(content).cast("B")
            about_to(self.name, BYTES)
            cut = len(whole) // 2
            if cut:
                super().write(whole[:cut])
                about_to(self.name, BYTES, half=True)
            return cut + super().write(whole[cut:])

        def truncate(self, size: int | None = None, /) -> int:
            about_to(self.name, TRUNCATE)
            return super().truncate(size)

    real_open = io.open

    def watched_open(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wxa+"):
            return real_open(file, mode, buffering, *args, **kwargs)
        about_to(file, TRUNCATE if "w" in mode and os.path.exists(file) else MAKE)  # noqa: PTH110
        raw = Watched(os.fspath(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        encoding, errors, newline = (*args, None, None, None)[:3]
        named = {"encoding": encoding, "errors": errors, "newline": newline} | kwargs
        return io.TextIOWrapper(buffered, line_buffering=buffering == 1, **named)

    builtins.open = io.open = watched_open  # type: ignore[assignment]

    def watch(name: str, act: str, place: int = 0) -> None:
        real = getattr(os, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            about_to(args[place], act)
            return real(*args, **kwargs)

        setattr(os, name, watched)

    for name in ("replace", "rename", "link"):
        watch(name, REPLACE, 1)
    watch("symlink", MAKE, 1)
    watch("mkdir", MAKE)
    watch("truncate", TRUNCATE)
    for name in ("unlink", "remove", "rmdir"):
        watch(name, REMOVE)
    real_os_open, real_fsync, real_os_write = os.open, os.fsync, os.write

    def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):  # noqa: PTH110
            about_to(path, MAKE)
        return real_os_open(path, flags, *args, **kwargs)

    def fsync(file: Any) -> None:
        about_to(_path_of(file), SYNC)
        real_fsync(file)

    def os_write(file: int, content: Any) -> int:
        about_to(_path_of(file), BYTES)
        return real_os_write(file, content)

    os.open, os.fsync, os.write = os_open, fsync, os_write


def _path_of(file: Any) -> str:
    number = file if isinstance(file, int) else file.fileno()
    return os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115


def forked(action: Callable[[], int], output: Path) -> int:
    """The exit code of a fork of this process that did this; negative: the signal that ended it.

    Args:
        output: a file for what it prints.
    """
    pid = os.fork()
    if pid == 0:
        end_with(action, output)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def end_with(action: Callable[[], int], output: Path) -> None:
    """Do this in a process that was forked, and end it."""
    code = 70
    try:
        print_to(output)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def print_to(output: Path) -> None:
    """What this process prints goes to a file from now on, also through copies that were made of its streams."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    streams = {_path_of(1), _path_of(2)}
    numbers = [int(number) for number in os.listdir("/proc/self/fd")]  # noqa: PTH208
    for number in numbers:
        with suppress(OSError):  # that of the listing itself
            if _path_of(number) in streams:
                os.dup2(file, number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


Entry = tuple[object, ...]


def _state(folder: Path) -> dict[str, Entry]:
    """What is on disk, told apart from what is there a moment later; half of a scratch file is as good as any other."""
    found: dict[str, Entry] = {}
    for place, folders, files in os.walk(folder):
        found |= {f"{place}/{name}": () for name in folders}
        for name in files:
            path = f"{place}/{name}"
            there = os.lstat(path)
            scratch = name.endswith(".tmp")
            found[path] = (there.st_size > 0,) if scratch else (there.st_ino, there.st_size, there.st_mtime_ns)
    return found


class Moments:
    """The moments of a sweep that differ in what is on disk.

    Args:
        results: where the sweep writes.
        kept: a folder for what `keep` and `fail` make of each moment: N is a results folder, N.txt what was printed,
            and a line in moments.txt: N, what was to be written, and the exit code of a process that lived on.
        wanted: which moments, by number.
    """

    def __init__(self, results: Path, kept: Path, wanted: Callable[[int], bool] = lambda number: True) -> None:
        self._results = results
        self._kept = kept
        self._wanted = wanted
        self._number = -1
        self._last: dict[str, Entry] | None = None
        self._fault: int | None = None  # of this process, a child of the one that is watched
        kept.mkdir(exist_ok=True)

    def keep(self, write: Write) -> None:
        """Copy the results as a process leaves them that is killed now."""
        if (number := self._new()) is not None:
            shutil.copytree(self._results, self._kept / f"{number:04d}", symlinks=True)
            self._note(number, write)

    def die(self, write: Write) -> None:
        """End this process, as SIGKILL does."""
        if self._new() is not None:
            os._exit(9)

    def fail(self, fault: int, write: Write) -> None:
        """What becomes of the sweep if this write and all later ones are refused; it itself goes on undisturbed.

        Args:
            fault: the errno.
        """
        if not _refuses(fault, write.act):
            return
        if self._fault is None:
            if (number := self._new()) is None:
                return
            aside = self._results.with_name("aside")
            self._results.rename(aside)
            shutil.copytree(aside, self._results, symlinks=True)
            pid = os.fork()
            if pid:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                self._results.rename(self._kept / f"{number:04d}")
                aside.rename(self._results)
                self._note(number, write, str(code))
                return
            self._fault = fault
            print_to(self._kept / f"{number:04d}.txt")
        named = () if write.act in (BYTES, SYNC) else (str(self._results / write.place),)
        raise OSError(fault, os.strerror(fault), *named)

    def _new(self) -> int | None:
        """The moment's number, where it is a new one that is wanted."""
        state = _state(self._results)
        if state == self._last:
            return None
        self._last = state
        self._number += 1
        return self._number if self._wanted(self._number) else None

    def _note(self, number: int, write: Write, code: str = "-") -> None:
        half = "half" if write.half else "-"
        with (self._kept / "moments.txt").open("a", encoding="utf-8") as file:
            file.write(f"{number} {code} {write.act} {half} {write.place}\n")


class Moment(NamedTuple):
    """What `Moments` has noted of one."""

    results: Path
    code: str
    write: Write

    @property
    def printed(self) -> str:
        """What a process printed that lived on."""
        return self.results.with_suffix(".txt").read_text(encoding="utf-8")


def noted(kept: Path) -> list[Moment]:
    """All moments of which something is kept."""
    lines = (kept / "moments.txt").read_text(encoding="utf-8").splitlines()
    fields = [line.split(" ", 4) for line in lines]
    return [
        Moment(kept / f"{int(number):04d}", code, Write(Path(place), act, half == "half"))
        for number, code, act, half, place in fields
    ]


def _refuses(fault: int, act: str) -> bool:
    """Whether a file system in this state refuses that. One without room takes away and renames."""
    return act in (BYTES, MAKE) if fault in (errno.ENOSPC, errno.EDQUOT) else True
