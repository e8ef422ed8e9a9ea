"""What W&B's files of a run hold, read by wandb's own inspector, `wandb leet inspect`; wandb is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from model.metrics import BATCH_STEP, EPOCH_STEP

INSPECT_LIMIT_S = 60.0


def last_rows(folder: Path, run_id: str) -> tuple[int, int]:
    """(batch/iteration, epoch) of the last rows in all parts of a run below `folder`/wandb; -1 where there is none.

    A part that was cut off by a kill counts as far as it can be read.
    """
    iteration = epoch = -1
    for file in sorted(folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSPECT_LIMIT_S, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        for line in done.stdout.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("type") == "history":
                item = record["history"]["item"]
                iteration = max(iteration, int(item.get(BATCH_STEP, -1)))
                epoch = max(epoch, int(item.get(EPOCH_STEP, -1)))
    return iteration, epoch
