"""What W&B's files of a run hold, read by wandb's own inspector, `wandb leet inspect`; wandb is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.metrics import BATCH_STEP, EPOCH_STEP

INSPECT_LIMIT_S = 60.0
# wandb's service writes a run's file behind the run's back: `finish` returns, and a killed worker is gone, before the
# last rows are in it. A file without its last record is complete once nothing was written to it for QUIET_S.
QUIET_S, WRITING_LIMIT_S = 2.0, 15.0


def last_rows(folder: Path, run_id: str) -> tuple[int, int]:
    """(batch/iteration, epoch) of the last rows in all parts of a run below `folder`/wandb; -1 where there is none.

    A part that was cut off by a kill counts as far as it can be read. Waits for a part that is still being written.
    """
    iteration = epoch = -1
    # two parts that start in the same second: the later one's folder ends with -1
    for file in sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")):
        for record in whole_records(file):
            if record.get("type") == "history":
                item = record["history"]["item"]
                iteration = max(iteration, int(item.get(BATCH_STEP, -1)))
                epoch = max(epoch, int(item.get(EPOCH_STEP, -1)))
    return iteration, epoch


def whole_records(file: Path) -> list[dict[str, Any]]:
    """The records of a run's file, once its end was written or nothing is written to it any more.

    Raises:
        Nothing: what cannot be read is left out.
    """
    give_up = time.monotonic() + WRITING_LIMIT_S
    while True:
        records = list(_records(file))
        if any(record.get("type") == "exit" for record in records) or time.monotonic() > give_up:
            return records
        try:
            quiet_s = time.time() - file.stat().st_mtime
        except OSError:
            return records
        if not 0 <= quiet_s < QUIET_S:  # below 0: the clock was set back
            return records
        time.sleep(0.1)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSPECT_LIMIT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return
    for line in done.stdout.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
