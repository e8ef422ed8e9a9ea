"""Small sweeps for the tests: trials of a fraction of a second, on the procedural clips."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from model.configfile import validated
from sweep.spec import SweepSpec
from tests.tiny import tiny_content as trainer_content

TINY_TRAINER: dict[str, Any] = trainer_content(epochs=3, warmup_epochs=1)


def tiny_content(**changes: Any) -> dict[str, Any]:
    """A spec's content: 4 trials of 3 epochs of 6 updates; `changes` replace whole blocks."""
    return {
        "name": "tiny",
        "parameters": {
            "alpha": {"min": 0.1, "max": 0.9},
            "base_lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 0.3},
        },
        "run_cap": 4,
        "trainer": TINY_TRAINER,
        "search": {"startup_trials": 2},
        "wandb": {"mode": "offline"},
        **changes,
    }


def tiny_spec(**changes: Any) -> SweepSpec:
    """A checked spec of `tiny_content`."""
    return validated(SweepSpec, tiny_content(**changes), "test")


def trial_folders(results: Path) -> list[Path]:
    """The folders of a sweep's trials, by id."""
    return sorted((results / "trials").iterdir())


def write_spec(folder: Path, **changes: Any) -> Path:
    """A spec file of `tiny_content`."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content(**changes)), encoding="utf-8")
    return path


def table(results: Path, name: str = "trials.csv") -> list[dict[str, str]]:
    """The rows of trials.csv."""
    with (results / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
