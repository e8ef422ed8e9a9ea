"""Reads the `.wandb` files that offline runs leave behind, with wandb's own inspector (`wandb leet inspect`).

The inspector's program is called directly: the `wandb` command takes half a second to get there.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from wandb.util import get_core_path

FLUSH_LIMIT_S = 10.0  # a run's end returns a moment before the service process has written the file to its end

# JSON has no word for these, so the client writes texts
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def run_files(folder: Path) -> list[Path]:
    """The `.wandb` files of the offline runs of a folder, by the second of their start, then by run id and part."""
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of all offline runs of a folder, in the order of `run_files`."""
    return [record for file in run_files(folder) for record in records_of(file)]


def records_of(file: Path) -> list[dict[str, Any]]:
    """All records of one `.wandb` file, once it has its last one; of a run that was killed, those that there are."""
    give_up = time.monotonic() + FLUSH_LIMIT_S
    while True:
        may_grow = _is_written(file) and time.monotonic() < give_up
        records = [json.loads(line) for line in _inspect(file).splitlines() if line]
        if not may_grow or any(record["type"] == "exit" for record in records):
            return records
        time.sleep(0.02)


def _is_written(file: Path) -> bool:
    """Whether a service process of W&B has the file open."""
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "wandb-core":
            with suppress(psutil.Error):
                if any(Path(there.path) == file.resolve() for there in process.open_files()):
                    return True
    return False


def read_history(folder: Path, pictures: bool = False) -> list[dict[str, float]]:
    """The history rows of all offline runs of a folder, without the client's own `_...` columns.

    Args:
        pictures: keep the rows that hold a picture.
    """
    items = [record["history"]["item"] for record in read_records(folder) if record["type"] == "history"]
    rows = [{name: _number(value) for name, value in item.items() if name[0] != "_"} for item in items]
    return rows if pictures else [row for row in rows if not any(name.startswith("pictures/") for name in row)]


def read_pictures(folder: Path) -> list[tuple[str, int, Path]]:
    """(name, epoch, file) of the pictures that all offline runs of a folder hold."""
    pictures = []
    for file in run_files(folder):
        for record in records_of(file):
            item = record["history"]["item"] if record["type"] == "history" else {}
            names = [name.removesuffix(".path") for name in item if name.endswith(".path")]
            pictures += [(name, item["pictures/epoch"], file.parent / "files" / item[f"{name}.path"]) for name in names]
    return pictures


def read_summary(folder: Path) -> dict[str, Any]:
    """Of the last offline run: `run_id`, `name`, `project`, `tags`, `config`, `summary`, `state`, `exit_code`, ..."""
    last = run_files(folder)[-1]
    records_of(last)
    content: dict[str, Any] = json.loads(_inspect(last, "--summary"))
    content["summary"] = {name: _number(value) for name, value in content["summary"].items()}
    return content


def read_axes(folder: Path) -> dict[str, str]:
    """Metric name or pattern -> its step axis, as defined in the offline runs."""
    metrics = [record["metric"] for record in read_records(folder) if record["type"] == "metric"]
    return {m.get("glob_name") or m["name"]: m["step_metric"] for m in metrics if "step_metric" in m}


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _inspect(file: Path, *options: str) -> str:
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
    command += ["--run-file", str(file), str(file.parents[1])]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
