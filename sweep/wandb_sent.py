"""What an online run's parts sent and left out, from one to the next: W&B's rate is of the run, not of a part."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.metrics import BATCH_STEP, EPOCH_STEP
from model.sinks import write_json
from sweep.wandb_files import STILL_WRITTEN_S
from sweep.wandb_rate import ROWS_PER_MINUTE

MOST_ROWS = 2000  # of one second that are looked at


@dataclass(frozen=True)
class SentRows:
    """What a run's earlier parts told the next one of the rows that they sent online.

    Attributes:
        ages: how many seconds ago each row of the last minute was sent; one more than that at most for each row.
        left_out: rows that were left out for W&B's rate, as the run's summary counts them.
        passed: those of them that come before the last row that went: they are not given out again on a resume.
    """

    ages: tuple[float, ...] = ()
    left_out: int = 0
    passed: int = 0


def write_sent_rows(folder: Path, run_id: str, sent: SentRows, unknown: int = 0) -> None:
    """Keep `sent` in a small file below `folder`/wandb, by the wall clock.

    Args:
        unknown: so many rows may go before this is called again; 0 at the run's end.
    """
    now = time.time()
    seconds: dict[str, int] = {}
    for age in sent.ages:
        second = str(math.ceil(now - age))
        seconds[second] = seconds.get(second, 0) + 1
    content = {"now": now, "seconds": seconds, "unknown": unknown, "left_out": sent.left_out, "passed": sent.passed}
    with suppress(OSError):
        write_json(_sent_rows_file(folder, run_id), content)


def read_sent_rows(folder: Path, run_id: str) -> SentRows | None:
    """What `write_sent_rows` kept; None where there is nothing, or nothing that can be read.

    Where the clock was set back since, rows count as sent just now.
    """
    now = time.time()
    try:
        content = json.loads(_sent_rows_file(folder, run_id).read_text(encoding="utf-8"))
        written = float(content["now"])
        seconds = {float(second): int(rows) for second, rows in content["seconds"].items()}
        # of a part that was killed: its last rows may have gone at any time since, but all of them by now
        seconds[now if now - written < STILL_WRITTEN_S else written] = int(content["unknown"])
        ages = [max(now - second, 0.0) for second, rows in seconds.items() for _ in range(min(rows, MOST_ROWS))]
        if not all(map(math.isfinite, ages)):
            return None
        return SentRows(tuple(ages), max(int(content["left_out"]), 0), max(int(content["passed"]), 0))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None


def _sent_rows_file(folder: Path, run_id: str) -> Path:
    return folder / "wandb" / f"rows-{run_id}.json"


def left_out_before(summary: Mapping[str, Any], known: SentRows | None, repeated: bool) -> int:
    """How many rows earlier parts of an online run left out.

    Args:
        summary: of the run, at the server.
        known: what the parts noted here.
        repeated: the rows behind the last that the server holds are given out once more; they are not counted then.
    """
    said = _whole(summary.get("rows_left_out"))
    if repeated and known is not None and known.left_out == said:
        return min(known.passed, said)
    return said


def sent_before(summary: Mapping[str, Any], known: SentRows | None) -> Sequence[float]:
    """How many seconds ago earlier parts of an online run sent their rows of the last minute.

    Where nothing is known of that, and the run has rows, the minute of its last one was full.
    """
    if known is not None:
        return known.ages
    if BATCH_STEP not in summary and EPOCH_STEP not in summary:
        return ()
    last = summary.get("_timestamp")
    age = max(time.time() - last, 0.0) if isinstance(last, int | float) and math.isfinite(last) else 0.0
    return [age] * ROWS_PER_MINUTE


def _whole(value: object) -> int:
    return max(int(value), 0) if isinstance(value, int | float) and math.isfinite(value) else 0
