"""What a sweep leaves behind: the results folder and its files (README, "What a sweep leaves behind")."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
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
from model.metrics import EPOCH_NAMES, EVAL_NAMES, FEATURE_NAMES, OBJECTIVE_NAMES, SUMMARY_NAMES
from model.sinks import read_csv, read_json, write_json, write_text
from sweep.space import Space
from sweep.spec import SweepSpec
from sweep.study import JOURNAL, Outcome, Record

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


class TrialTable:
    """trials.csv, a row per trial: kept in memory, rewritten at most every few seconds and at the end.

    Args:
        folder: where the trials are.
        spec: of the sweep.
        confirming: the space of the confirmation runs; the table is then confirm.csv, a row per run.
    """

    REWRITE_EVERY_S = 2.0
    MOST_TIME = 0.05  # share of the driver's time that goes into rewriting: thousands of rows take half a second

    def __init__(self, folder: ResultsFolder, spec: SweepSpec, confirming: Space | None = None) -> None:
        self._folder = folder
        self._spec = spec
        self._space = confirming or spec.space
        self._file = folder.trials_file if confirming is None else folder.confirm_runs_file
        self._name = "preset" if confirming is None else "candidate"  # what the trial's name is a name of
        self._rows: dict[int, dict[str, Any]] = {}
        self._written_at = self._write_s = 0.0

    def load(self) -> None:
        """Take the rows that the file has. Raises UserError where it is damaged."""
        try:
            with self._file.open(newline="", encoding="utf-8") as file:
                self._rows = {int(row["trial"]): dict(row) for row in csv.DictReader(file)}
        except FileNotFoundError:
            pass
        except (OSError, csv.Error, LookupError, ValueError) as error:
            raise UserError(f"{self._file}: damaged ({error}); restore or remove it") from None

    def best(self) -> int | None:
        """Number of the complete trial with the best metric; None without any."""
        metric = self._spec.metric
        sign = 1.0 if metric.goal == "minimize" else -1.0
        complete = [
            (sign * float(row[metric.name]), number)
            for number, row in self._rows.items()
            if row["state"] == Outcome.COMPLETE.value and row.get(metric.name) not in (None, "")
        ]
        return min(complete)[1] if complete else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names; metrics are those after the trial's last epoch."""
        last = tuple(name for name in EPOCH_NAMES if name != "epoch")
        head = ("trial", "state", "reason", self._name, "epochs_done", "seconds")
        return (
            *head,
            *self._space.parameters,
            "effective_mask_ratio",
            *OBJECTIVE_NAMES,
            *EVAL_NAMES,
            *FEATURE_NAMES,
            *last,
            *SUMMARY_NAMES,
        )

    def put(self, record: Record, row: dict[str, Any] | None = None) -> None:
        """Put a trial's row in its present state, or this row of it; nothing is written."""
        self._rows[record.number] = self.row(record) if row is None else dict(row)

    def update(self, record: Record) -> None:
        """Put a trial's row in its present state, and write the file where that is due."""
        self.put(record)
        if time.monotonic() - self._written_at > max(self.REWRITE_EVERY_S, self._write_s / self.MOST_TIME):
            self.write()

    def row(self, record: Record) -> dict[str, Any]:
        """A trial's row as its files and the study have it now."""
        folder = self._folder.trial_folder(record.trial)
        epochs = read_csv(folder / "epoch.csv")
        row: dict[str, Any] = {
            "trial": record.trial,
            "state": record.outcome.value,
            "reason": record.reason,
            self._name: record.preset,
            "epochs_done": len(epochs),
            "seconds": record.seconds or None,
            **record.values,
            "effective_mask_ratio": self._effective_mask_ratio(record),
            **(epochs[-1] if epochs else {}),
        }
        summary = folder / "summary.json"
        if summary.exists():
            row |= read_json(summary)
        return row

    def _effective_mask_ratio(self, record: Record) -> float | None:
        try:
            return self._space.to_config(self._spec.trainer, record.values).effective_mask_ratio
        except ConfigError:  # a trial that failed because its values do not go together
            return None

    def write(self) -> None:
        """Write all rows, by trial."""
        began = time.monotonic()
        self._write(self._file, sorted(self._rows))
        self._written_at = time.monotonic()
        self._write_s = self._written_at - began

    def write_front(self, front: Iterable[Record]) -> None:
        """pareto.csv: the rows of these trials, in this order."""
        self._write(self._folder.front_file, [record.number for record in front])

    def text(self) -> str:
        """The file as it should be."""
        return self._text(sorted(self._rows))

    def _write(self, file: Path, numbers: Iterable[int]) -> None:
        write_text(file, self._text(numbers))

    def _text(self, numbers: Iterable[int]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[number] for number in numbers)
        return text.getvalue()


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
