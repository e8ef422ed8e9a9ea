"""Who may import whom: seen in fresh processes, and in the sources, where imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for package in ("model", "sweep") for path in (ROOT / package).rglob("*.py"))

# imports modules in a process where some packages cannot be imported; prints which of them do not go without
PROBE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused or name in refused:
            raise ImportError(f"{name} must not be imported here")

refused, modules = (words.split(",") for words in sys.argv[1:])
sys.meta_path.insert(0, Refuse())
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"{module}: {error}")
"""
COMMANDS = ("run", "agent", "agents", "single", "sync", "import_wandb", "doctor.__main__", "board")


@cache
def imports_of(path: Path) -> set[str]:
    """Every module that a source file imports, inside functions too: `from a import b` gives `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(package: str) -> set[str]:
    """Source files that import a package or a part of it, as `sweep/tuner.py`."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(f"{name}.".startswith(f"{package}.") for name in imports_of(path))
    }


@pytest.mark.process
@pytest.mark.parametrize(
    ("modules", "refused"),
    [
        (["model.trainer"], ["sweep", "ray", "wandb", "optuna"]),
        # configs, counts, rows and clips; and the command line of the trainer answers before torch is loaded
        (
            [
                "model.config",
                "model.configfile",
                "model.plan",
                "model.sinks",
                "model.data.clips",
                "model.data.verify",
                "model.train",
            ],
            ["torch", "timm", "sweep"],
        ),
        (["sweep.objective", "sweep.spec"], ["ray", "wandb", "torch", "model.trainer"]),
        ([f"sweep.{command}" for command in COMMANDS], ["wandb"]),  # it is imported when it is used
    ],
    ids=["the trainer", "configs", "specs and scores", "commands"],
)
def test_these_modules_are_imported_without(modules, refused):
    command = [sys.executable, "-c", PROBE, ",".join(refused), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_model_knows_nothing_of_the_sweep():
    users = importers("sweep") | importers("ray") | importers("wandb") | importers("optuna")
    assert [path for path in users if path.startswith("model/")] == []


def test_only_the_modules_of_that_name_know_wandb():
    assert [path for path in importers("wandb") if not path.startswith("sweep/wandb_")] == []


def test_only_these_modules_know_ray():
    parts_of_the_tuner = ("tuner", "trainable", "searcher", "schedulers", "memory_task", "cluster", "preflight")
    assert importers("ray") == {f"sweep/{name}.py" for name in (*parts_of_the_tuner, "submit")}


def test_nobody_imports_the_command():
    commands = {f"sweep.{name}" for name in ("run", "agent", "agents", "rescore", "import_wandb", "doctor.__main__")}
    assert {command for command in commands if importers(command)} == set()
    assert importers("model.train") == set()


def test_no_import_refers_to_tests_or_scripts():
    assert importers("tests") | importers("scripts") == set()
