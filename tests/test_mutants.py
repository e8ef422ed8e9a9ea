"""The list of scripts/benchmarks/mutants.py fits the code that there is; the script itself takes some minutes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.command_lines import ROOT


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutants = load(ROOT / "scripts/benchmarks/mutants.py")
LISTED = mutants.read_list()


def test_every_mutation_of_the_list_still_applies() -> None:
    """Who moves a line or a test moves it in scripts/benchmarks/mutants.yaml, too."""
    assert [f"{mutant.name}: {problem}" for mutant in LISTED if (problem := mutant.problem()) is not None] == []


def test_no_mutation_is_listed_twice_and_each_says_what_it_breaks() -> None:
    assert len({mutant.name for mutant in LISTED}) == len({(m.file, m.old, m.new) for m in LISTED}) == len(LISTED)
    assert all(len(mutant.breaks.split()) >= 3 for mutant in LISTED)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"old": "no such text"}, "stands there 0 times, not once"),
        ({"old": "value"}, "times, not once"),
        ({"new": "return 1"}, "a mutation changes one line"),
        ({"file": "sweep/none.py"}, "there is no sweep/none.py"),
        ({"tests": "tests/test_none.py"}, "there is no tests/test_none.py"),
        ({"tests": "tests/test_one.py::test_two"}, "there is no tests/test_one.py::test_two"),
        ({}, None),
    ],
)
def test_a_mutation_that_no_longer_applies_says_why(
    tmp_path: Path, changes: dict[str, str], problem: str | None
) -> None:
    for file, text in (("sweep/one.py", "value = 1\nreturn 1\nvalue\n"), ("tests/test_one.py", "def test_one():\n")):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    entry = {"file": "sweep/one.py", "old": "return 1", "new": "return 2", "breaks": "the sum of it"}
    found = mutants.Mutant(**entry | {"tests": "tests/test_one.py::test_one"} | changes).problem(tmp_path)
    assert found is None if problem is None else problem in found


@pytest.mark.process
def test_a_mutant_is_killed_or_survives_or_applies_no_longer_and_the_checkout_stays_as_it_is(tmp_path: Path) -> None:
    """On a list of its own: a mutation that a test sees, one that none can, one whose line went."""
    mutations = [
        ("if outcome is not Outcome.FAILED:", "if True:", "crashes end a search"),
        ("self._best, self._since_best = first, 0", "self._best, self._since_best = first, False", "nothing at all"),
        ("a line that went", "", "what it once was"),
    ]
    same = {"file": "sweep/stopping.py", "tests": "tests/test_stopping.py"}
    entries = [{**same, "old": old, "new": new, "breaks": breaks} for old, new, breaks in mutations]
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(entries))
    before = (ROOT / "sweep/stopping.py").read_bytes()
    command = [sys.executable, "scripts/benchmarks/mutants.py", "--jobs", "1", "--mutants", str(tmp_path / "list.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    gone, killed, survived, summary = done.stdout.splitlines()
    assert gone.startswith("no longer applies  sweep/stopping.py: what it once was")
    assert killed.startswith(
        "killed             sweep/stopping.py: crashes end a search  [FAILED tests/test_stopping.py"
    )
    assert survived.startswith("SURVIVED           sweep/stopping.py: nothing at all")
    assert summary.startswith("1 killed, 1 SURVIVED, 0 equivalent, 1 no longer applies: 3 mutants in ")
    assert (ROOT / "sweep/stopping.py").read_bytes() == before
