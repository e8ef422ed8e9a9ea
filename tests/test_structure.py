"""Who may import whom: seen in fresh processes, and in the sources, where imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for package in ("model", "sweep") for path in (ROOT / package).rglob("*.py"))

# imports a module in a process where some packages cannot be imported, then prints which of them are loaded
PROBE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused or name in refused:
            raise ImportError(f"{name} must not be imported here")

module, *refused = sys.argv[1:]
sys.meta_path.insert(0, Refuse())
importlib.import_module(module)
print(*(name for name in refused if name in sys.modules))
"""


def loaded_by(module: str, *refused: str) -> list[str]:
    """Which of the refused modules are loaded after the import; fails where the import needs one."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module, *refused], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


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


def test_the_trainer_works_without_the_sweep_and_its_libraries():
    assert loaded_by("model.trainer", "sweep", "ray", "wandb", "optuna") == []


@pytest.mark.parametrize(
    "module", ["model.config", "model.configfile", "model.plan", "model.sinks", "model.data.clips"]
)
def test_configs_counts_rows_and_clips_need_no_torch(module):
    assert loaded_by(module, "torch", "timm", "sweep") == []


@pytest.mark.parametrize("module", ["sweep.objective", "sweep.spec"])
def test_specs_and_scores_need_neither_ray_nor_wandb_nor_the_trainer(module):
    assert loaded_by(module, "ray", "wandb", "torch", "model.trainer") == []


def test_the_command_line_of_the_trainer_answers_before_torch_is_loaded():
    assert loaded_by("model.train", "torch", "sweep") == []


def test_the_model_knows_nothing_of_the_sweep():
    users = importers("sweep") | importers("ray") | importers("wandb") | importers("optuna")
    assert [path for path in users if path.startswith("model/")] == []


def test_only_the_modules_of_that_name_know_wandb():
    assert [path for path in importers("wandb") if not path.startswith("sweep/wandb_")] == []


@pytest.mark.parametrize(
    "command", ["run", "agent", "agents", "single", "sync", "import_wandb", "doctor.__main__", "board"]
)
def test_wandb_is_imported_when_it_is_used(command):
    assert loaded_by(f"sweep.{command}", "wandb") == []


def test_only_these_modules_know_ray():
    parts_of_the_tuner = ("tuner", "trainable", "searcher", "schedulers", "memory_task", "cluster", "preflight")
    assert importers("ray") == {f"sweep/{name}.py" for name in (*parts_of_the_tuner, "submit")}


def test_nobody_imports_the_command():
    commands = {f"sweep.{name}" for name in ("run", "agent", "agents", "rescore", "import_wandb", "doctor.__main__")}
    assert {command for command in commands if importers(command)} == set()
    assert importers("model.train") == set()


def test_no_import_refers_to_tests_or_scripts():
    assert importers("tests") | importers("scripts") == set()
