"""Mutations that must die: each changes one line of the code, and a test that covers the line has to fail.

    python scripts/benchmarks/mutants.py [--only TEXT] [--jobs 2]

The mutations, the tests that cover each, and what each would break for a user are in mutants.yaml beside this file.
Everything runs in temporary copies of this checkout, which itself stays as it is. The exit code is 0 where every
mutant is killed, 1 where one survives or no longer applies, 2 where a test fails without any mutation.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.yaml")
LIMIT_S = 1800.0  # a mutant may loop for ever; no test of the list takes a tenth of this
# imported once, before the children are forked: most of the time of a short test. Nothing of this repository is.
HEAVY = ("hypothesis", "numpy", "optuna", "pandas", "pytest", "ray.tune", "scipy.stats", "timm", "torch")
OWN = ("model", "sweep", "tests")


@dataclass(frozen=True)
class Mutant:
    """A mutation: `old`, which stands in `file` once, becomes `new`, which `breaks` something.

    `equivalent` is the reason why no test can tell; such a mutant is listed and not run.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: str
    equivalent: str | None = None

    @property
    def name(self) -> str:
        """For people: where, and what it breaks."""
        return f"{self.file}: {self.breaks}"

    def problem(self, root: Path = ROOT) -> str | None:
        """Why it no longer applies to the tree at `root`; None where it does."""
        path = root / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if not path.is_file():
            return f"there is no {self.file}"
        if count != 1:
            return f"{self.old!r} stands there {count} times, not once"
        if self.old == self.new or "\n" in self.old + self.new:
            return "a mutation changes one line"
        return next((f"there is no {test}" for test in self.tests.split() if not _exists(test, root)), None)


def read_list(path: Path = LIST) -> list[Mutant]:
    """The mutants of the committed list."""
    return [Mutant(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _exists(test: str, root: Path) -> bool:
    file, _, name = test.partition("::")  # of a function, or of a class as those that run a contract
    path = root / file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    return path.is_file() and (not name or f"def {name}(" in source or f"class {name}(" in source)


@dataclass(frozen=True)
class Child:
    """A process that runs `tests` in a copy of the tree, with a mutation in place or without."""

    pid: int
    tree: Path
    tests: str
    mutant: Mutant | None
    original: str
    """Of the mutated file."""
    started: float

    def ended(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs. One that never ends is ended."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            if time.monotonic() - self.started < LIMIT_S:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    @property
    def said(self) -> str:
        """The first test that failed, or else the last line that pytest wrote; and how long it took."""
        text = self.tree.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no word"]
        failed = (line.split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR ")))
        return f"{next(failed, lines[-1])}; {time.monotonic() - self.started:.0f} s"


class Runner:
    """Runs tests in forked processes, `jobs` at a time, each in a copy of the tree of its own."""

    def __init__(self, scratch: Path, jobs: int) -> None:
        self._trees = [_copied(scratch / f"tree{number}") for number in range(jobs)]

    def run(self, work: Iterable[tuple[str, Mutant | None]]) -> Iterator[tuple[Child, int]]:
        """Children and their exit codes, as they end; each ran some tests with a mutation in place or without."""
        waiting, running = deque(work), list[Child]()
        try:
            while waiting or running:
                while waiting and self._trees:
                    running.append(self._started(*waiting.popleft()))
                for child in tuple(running):
                    if (code := child.ended()) is not None:
                        running.remove(child)
                        yield child, code
                        self._trees.append(child.tree)
                        if child.mutant is not None:
                            _put(child.tree / child.mutant.file, child.original)
                time.sleep(0.05)
        finally:
            for child in running:
                os.killpg(child.pid, signal.SIGKILL)

    def _started(self, tests: str, mutant: Mutant | None) -> Child:
        tree = self._trees.pop()
        original = ""
        if mutant is not None:
            original = (tree / mutant.file).read_text(encoding="utf-8")
            _put(tree / mutant.file, original.replace(mutant.old, mutant.new))
        sys.stdout.flush()  # else the child would print it too
        pid = os.fork()
        if pid == 0:
            _run_tests(tree, tests.split())
        return Child(pid, tree, tests, mutant, original, time.monotonic())


def _put(path: Path, text: str) -> None:
    """Change a module; Python may not see that by itself where size and second are the same."""
    path.write_text(text, encoding="utf-8")
    Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)


def _copied(tree: Path) -> Path:
    """A copy of what git knows, or would take, of this checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def _run_tests(tree: Path, tests: Sequence[str]) -> NoReturn:
    code = 3
    try:
        os.setsid()  # what the tests leave running is ended with this process
        out = os.open(tree.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(out, number)
        os.chdir(tree)
        sys.path.insert(0, str(tree))  # before the checkout itself, which is installed
        os.environ["PYTHONPATH"] = str(tree)
        assert not [name for name in sys.modules if name.partition(".")[0] in OWN]
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, f"--basetemp={tree.with_suffix('.tmp')}", *tests]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="mutants whose file, or what they break, has this")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--mutants", type=Path, default=LIST, metavar="FILE", help="another list than mutants.yaml")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}; must be 1 or more")
    mutants = [mutant for mutant in read_list(options.mutants) if options.only in mutant.name]
    if not mutants:
        parser.error(f"--only {options.only!r}: no mutant's file or what it breaks has this; see --list")
    if options.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    return _run(mutants, options.jobs)


def _run(mutants: Sequence[Mutant], jobs: int) -> int:
    began = time.monotonic()
    counts = dict.fromkeys(("killed", "SURVIVED", "equivalent", "no longer applies"), 0)

    def tell(outcome: str, name: str, why: str) -> None:
        counts[outcome] += 1
        print(f"{outcome:<17}  {name}  [{why}]", flush=True)

    waiting: list[Mutant] = []
    for mutant in mutants:
        if (problem := mutant.problem()) is not None:
            tell("no longer applies", mutant.name, problem)
        elif mutant.equivalent is not None:
            tell("equivalent", mutant.name, mutant.equivalent)
        else:
            waiting.append(mutant)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as tests/conftest.py: read when torch is imported
    for module in HEAVY:
        __import__(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        runner = Runner(Path(scratch), jobs)
        every = sorted({test for mutant in waiting for test in mutant.tests.split()})
        for child, code in runner.run((test, None) for test in every):
            if code != 0:
                print(f"fails without a mutation: {child.tests}  [{child.said}]")
                return 2
        for child, code in runner.run((mutant.tests, mutant) for mutant in waiting):
            assert child.mutant is not None
            tell("SURVIVED" if code == 0 else "killed", child.mutant.name, child.said)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), end="")
    print(f": {len(mutants)} mutants in {time.monotonic() - began:.0f} s")
    return 1 if counts["SURVIVED"] or counts["no longer applies"] else 0


if __name__ == "__main__":
    sys.exit(main())
