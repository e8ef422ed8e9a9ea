"""What a sweep leaves behind: the results folder and its files (README, "What a sweep leaves behind")."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from model.configfile import load_yaml
from model.errors import ConfigError, UserError
from model.sinks import remove_scratch, write_json, write_text
from sweep.logs import FOLDER as LOGS
from sweep.spec import SweepSpec
from sweep.study import JOURNAL, Record

# may differ between a sweep and its resumption: they do not change what a trial computes
FREE_TO_CHANGE = (
    *("description", "run_cap", "wandb", "retries", "entity", "confirm", "results"),
    *("resources.max_concurrent", "resources.memory_probe"),
)
RUNS = "runs.json"  # of trials that W&B's agents or the user ran one by one (sweep/trials_folder.py)
RECORDED_PACKAGES = ("torch", "timm", "ray", "optuna", "wandb", "numpy", "pydantic", "tactile-sweep")


class ResultsFolder:
    """The files of one sweep. `open` checks that they belong to it, and keeps other drivers out until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  # without ".."; links stay
        self.spec_file = self.path / "spec.yaml"
        self.provenance_file = self.path / "provenance.json"
        self.trials_file = self.path / "trials.csv"
        self.best_file = self.path / "best.yaml"
        self.front_file = self.path / "pareto.csv"
        self.front_folder = self.path / "pareto"
        self.warm_start_file = self.path / "warm_start.json"
        self.confirm_runs_file = self.path / "confirm.csv"
        self.conclusion_file = self.path / "confirm.json"
        self.report_file = self.path / "report.html"
        self.stop_file = self.path / ".stop"
        self._lock = FileLock(self.path / ".driver.lock")

    def check(self, spec: SweepSpec, resume: bool, single: bool = False) -> None:
        """Raise ConfigError where the folder cannot take this sweep: of another spec, finished, nothing to resume.

        Args:
            resume: go on with what is there.
            single: for single trials, which no driver of a sweep may mix with its own.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"results: {self.path} is a file; give a folder with --results DIR")
        if single and (self.path / JOURNAL).exists():
            raise ConfigError(
                f"results: {self.path} holds a sweep of python -m sweep.run; give another folder with --results DIR"
            )
        if not single and (self.path / RUNS).exists():
            raise ConfigError(
                f"results: {self.path} holds trials that W&B's agents or python -m sweep.trial ran; give another "
                "folder with --results DIR. search.warm_start can take them from there"
            )
        if not self.spec_file.exists():
            if resume:
                raise ConfigError(f"--resume: {self.path} holds no sweep; start it without --resume")
            if self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir()):
                raise ConfigError(
                    f"results: {self.path} holds files, but no sweep; give an empty or a new folder with --results DIR"
                )
            return
        changed = _differences(load_yaml(self.spec_file), spec.resolved())
        locked = [text for key, text in changed.items() if not key.startswith(FREE_TO_CHANGE)]
        if locked:
            shown = "; ".join(locked)
            raise ConfigError(
                f"results: {self.path} holds a sweep of another spec ({shown}). "
                "Give another folder with --results DIR (or another name), or the spec as it was, with --resume"
            )
        if not resume:
            raise ConfigError(
                f"results: {self.path} holds this sweep already; go on with it by --resume, "
                "or start anew in another folder with --results DIR"
            )

    def open(self, spec: SweepSpec, resume: bool) -> None:
        """Make or take over the folder. Raises ConfigError as `check`, or where another driver is at work in it."""
        self.check(spec, resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
        except OSError as error:
            raise ConfigError(
                f"results: cannot write to {self.path}: {error}. Choose a folder with --results DIR"
            ) from None
        self.check(spec, resume)  # again: another driver may have been here between
        remove_scratch(self.path)
        self.write_spec(spec)
        self.stop_file.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep other drivers out until `close`.

        Raises ConfigError, which says who, where another one is at work in it; OSError where it cannot be written to.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"results: another process is running this sweep in {self.path} "
                f"({self._driver()}); wait for it, or give another folder with --results DIR"
            ) from None

    def write_spec(self, spec: SweepSpec) -> None:
        """spec.yaml, with every default filled in."""
        write_text(self.spec_file, _dump(spec.resolved()))

    def discard(self) -> None:
        """Take back what `open` and the start of a sweep wrote, unless there are trials."""
        if (self.path / "trials").exists():
            return
        written = (self.spec_file, self.provenance_file, self.trials_file, self.warm_start_file, self.stop_file)
        for file in (*written, self.path / JOURNAL):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.path / LOGS, ignore_errors=True)

    def close(self) -> None:
        """Let other drivers in."""
        self._lock.release()

    def write_provenance(self, spec: SweepSpec) -> str:
        """Add this session to provenance.json; returns the sweep's uid, made in the first session."""
        known = self.provenance()
        content = {
            "sweep": spec.name,
            "uid": known.get("uid") or uuid.uuid4().hex[:8],
            "sessions": [*known.get("sessions", []), _session()],
        }
        write_json(self.provenance_file, content)
        return str(content["uid"])

    def provenance(self) -> dict[str, Any]:
        """provenance.json; empty where there is none."""
        try:
            content = json.loads(self.provenance_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self.provenance_file}: damaged ({error}); restore or remove it") from None
        return content if isinstance(content, dict) else {}

    def _driver(self) -> str:
        try:
            last = self.provenance()["sessions"][-1]
            return f"process {last['pid']} on {last['host']}, since {last['started']}"
        except (UserError, LookupError, TypeError):
            return "its name is not known"

    def trial_folder(self, trial: str) -> Path:
        """Where a trial's files are."""
        return self.path / "trials" / trial

    def write_best(self, config_text: str) -> None:
        """best.yaml: a config that `python -m model.train` takes as it is."""
        write_text(self.best_file, config_text)


def _session() -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "folder": str(Path.cwd()),
        "host": platform.node(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "git": _git(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of this program's checkout and whether it has changes; None where it is no checkout."""
    top = Path(__file__).resolve().parent.parent

    def ask(*words: str) -> str:
        command = ["git", "-C", str(top), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _differences(there: Any, here: Any, key: str = "") -> dict[str, str]:
    """Dotted keys whose values differ -> both values, as text."""
    if isinstance(there, dict) and isinstance(here, dict):
        found: dict[str, str] = {}
        for inner in sorted(there.keys() | here.keys()):
            found |= _differences(there.get(inner), here.get(inner), f"{key}.{inner}" if key else inner)
        return found
    return {} if there == here else {key: f"{key}: {there!r} there, {here!r} here"}


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def equal_weights(records: Iterable[Record]) -> Record | None:
    """The preset with alpha = beta, by which a sweep's gain is measured."""
    for record in records:
        if record.preset is not None and is_equal_weights(record):
            return record
    return None


def is_equal_weights(record: Record) -> bool:
    """Whether a trial weighs both losses alike."""
    alpha = record.values.get("alpha")
    beta = record.values.get("beta", None if alpha is None else 1 - alpha)
    return alpha is not None and alpha == beta
