"""The shell scripts: their help, and the environment that they make and share. Nothing is installed for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from model.sinks import read_csv
from model.train import main as train
from tests.tiny import TINY

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"agents.sh": "sweep.agents", "sync.sh": "sweep.sync", "sweep.sh": "sweep.run"}
# what `python` is in the environment: it tells its prefix, notes what it is asked to install, and has no packages
PYTHON = """#!/bin/bash
case "$*" in
  *sys.prefix*) dirname "$(dirname "$0")" ;;
  *"pip install"*) echo "${@: -1}" >> "$(dirname "$0")/installed" ;;
  *) exit 1 ;;
esac
"""


def checkout(folder: Path) -> Path:
    """A copy of the scripts, as of a fresh checkout."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("evidence", "*.py"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def bash(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    command = ["bash", *map(str, words)]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An active virtual environment that only notes what is installed."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    python = tmp_path / "env" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return {"VIRTUAL_ENV": str(tmp_path / "env"), "PATH": path}


def installed(environment: dict[str, str]) -> list[str]:
    noted = Path(environment["VIRTUAL_ENV"]) / "bin" / "installed"
    return noted.read_text().splitlines() if noted.exists() else []


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.process
def test_help_without_an_environment_is_the_scripts_head_and_installs_nothing(tmp_path, script, word):
    root = checkout(tmp_path / "a place")
    done = bash(root / "scripts" / script, word)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    head = [line[2:] for line in (root / "scripts" / script).read_text().splitlines()[1:] if line.startswith("# ")]
    assert done.stdout.splitlines() == head
    assert not (root / ".venv").exists()


@pytest.mark.process
def test_help_where_the_package_is_installed_is_that_of_the_command(tmp_path):
    root = checkout(tmp_path / "checkout")
    active = {"VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    active["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stamps = {path: path.read_bytes() for path in Path(sys.prefix).glob(".tactile-sweep*")}
    done = bash(root / "scripts" / "agents.sh", "--help", **active)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m sweep.agents ")
    assert stamps == {path: path.read_bytes() for path in Path(sys.prefix).glob(".tactile-sweep*")}


@pytest.mark.process
def test_an_environment_that_had_another_checkout_is_said_and_installed_anew(tmp_path, environment):
    first, second = checkout(tmp_path / "first one"), checkout(tmp_path / "second")
    made = bash(first / "scripts" / "_env.sh", **environment)
    assert made.returncode == 0, made.stderr
    assert "note:" not in made.stdout
    assert bash(first / "scripts" / "_env.sh", **environment).stdout == ""
    other = bash(second / "scripts" / "_env.sh", **environment)
    assert f"note: {environment['VIRTUAL_ENV']} had {first}; it has {second} now\n" in other.stdout
    assert installed(environment) == [str(first), str(second)]
    assert bash(second / "scripts" / "_env.sh", **environment).stdout == ""


@pytest.mark.process
def test_an_install_for_developers_does_not_outlive_that_of_another_checkout(tmp_path, environment):
    first, second = checkout(tmp_path / "first"), checkout(tmp_path / "second")
    developer = f'. "{first}/scripts/_env.sh"; prepare_env "[dev]"'
    assert bash("-c", developer, **environment).returncode == 0
    assert bash(first / "scripts" / "_env.sh", **environment).stdout == "", "an install with more in it serves as well"
    bash(second / "scripts" / "_env.sh", **environment)
    bash(first / "scripts" / "_env.sh", **environment)
    assert installed(environment) == [f"{first}[dev]", str(second), str(first)]


@pytest.mark.parametrize("recipe", sorted((ROOT / "model/recipes").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.process
def test_a_training_script_trains_its_recipe_with_the_options_it_was_given(tmp_path, environment, recipe):
    python = Path(environment["VIRTUAL_ENV"]) / "bin" / "python"
    noting = 'printf "%s\\0" "$@" > "$(dirname "$0")/asked"; exit 7'
    python.write_text(PYTHON.replace("*) exit 1", f"*) {noting}"))
    tiny = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in TINY.items()]
    options = [word for option in (*tiny, "warmup_epochs=1") for word in ("--set", option)]
    done = bash(ROOT / "scripts" / f"train_{recipe.stem}.sh", "--out", tmp_path / "an out", *options, **environment)
    assert done.returncode == 7, "the script's exit code is that of the training"
    module, *words = (python.parent / "asked").read_text().split("\0")[1:-1]
    # what it asked python for, without the seconds that another process takes to import torch
    assert (module, train(words)) == ("model.train", 0)
    trained = read_csv(tmp_path / "an out" / "batch.csv")
    assert {row["batch/mode"] for row in trained} == ({0, 1} if recipe.stem == "baseline_alternating" else {2})
    ours, its = (yaml.safe_load(path.read_text()) for path in (tmp_path / "an out" / "config.yaml", recipe))
    assert [ours[key] for key in ("mode", "alpha", "beta")] == [its[key] for key in ("mode", "alpha", "beta")]
