"""W&B's book of a sweep: what the runs on disk hold of each trial, and how one that breaks off is completed.

Only files are looked at, no server is asked. What an online run's server lacks is sent by sweep/sync.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model.metrics import BATCH_STEP, EPOCH_STEP, Level
from model.sinks import Event, History, read_csv, read_json
from sweep.doctor.ledger import RunBook
from sweep.outcome import Outcome
from sweep.spec import SweepSpec
from sweep.study import Record
from sweep.wandb_files import KINDS, OFFLINE, broken_stream, read_head, unsent_marker, whole_records
from sweep.wandb_run import RunIdentity
from sweep.wandb_sink import WandbSink

AT_ONCE = 4  # inspections side by side: each is a process of some 20 ms
SUMMED_UP = "summary/total_time_seconds"
OF_AN_EPOCH = "epoch/train_loss"  # is in the row of every epoch
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has no word for them


def run_parts(results: Path) -> dict[str, list[Path]]:
    """The `.wandb` files below a results folder by run id, in the order of their folders' names."""
    parts: dict[str, list[Path]] = {}
    for kind in KINDS:
        for file in sorted(results.glob(f"wandb/{kind}-*/run-*.wandb")):
            parts.setdefault(file.stem.removeprefix("run-"), []).append(file)
    return parts


def run_books(parts: Mapping[str, Sequence[Path]]) -> dict[str, RunBook]:
    """What the parts of each run hold."""
    files = [file for own in parts.values() for file in own]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        records = dict(zip(files, pool.map(whole_records, files), strict=True))
    return {run: _book(own, [records[file] for file in own]) for run, own in parts.items()}


def _book(files: Sequence[Path], parts: Sequence[Sequence[Mapping[str, Any]]]) -> RunBook:
    iteration = epoch = -1
    ends: list[int] = []
    summed_up: list[int] = []
    for records in parts:
        code = None
        has_summary = False
        for record in records:
            if record.get("type") == "history":
                item = record["history"]["item"]
                iteration = max(iteration, int(item.get(BATCH_STEP, -1)))
                if OF_AN_EPOCH in item:  # W&B adds the axis to other rows, too
                    epoch = max(epoch, int(item.get(EPOCH_STEP, -1)))
            elif record.get("type") == "exit":
                code = int(record["exit"].get("exit_code", 0))
            elif record.get("type") == "summary":
                has_summary |= SUMMED_UP in (record["summary"].get("update") or {})
        if code is not None:
            ends.append(code)
            summed_up += [code] if has_summary else []
    online = [file.parent for file in files if not file.parent.name.startswith(OFFLINE)]
    unsent = bool(online) and (not ends or any(unsent_marker(part).exists() or broken_stream(part) for part in online))
    return RunBook(bool(online), unsent, (iteration, epoch), tuple(ends), tuple(summed_up))


def recorded_rows(files: Iterable[Path]) -> dict[str, dict[int, dict[str, Any]]]:
    """The rows that a run's files hold, by the CSV file that they belong to and their place in it."""
    found: dict[str, dict[int, dict[str, Any]]] = {"batch.csv": {}, "epoch.csv": {}}
    for file in files:
        for record in whole_records(file):
            item = record["history"]["item"] if record.get("type") == "history" else {}
            row = {name: _NOT_FINITE.get(x, x) if isinstance(x, str) else x for name, x in item.items()}
            if BATCH_STEP in row:
                found["batch.csv"].setdefault(int(row[BATCH_STEP]), row)
            elif EPOCH_STEP in row and OF_AN_EPOCH in row:
                found["epoch.csv"].setdefault(int(row[EPOCH_STEP]), row)
    return found


def complete_run(
    results: Path, spec: SweepSpec, run: str, record: Record, parts: Sequence[Path], config: dict[str, Any]
) -> None:
    """Add to a trial's run, as one more offline part, the rows that it lacks, its summary and its end.

    wandb's service process goes on, for the next run; `sweep.wandb_client.reset_client` ends it.

    Args:
        run: its id.
        config: of the run, where its parts do not tell.
    """
    known = next((head["config"] for file in reversed(parts) if (head := read_head(file)).get("config")), config)
    identity = RunIdentity(
        id=run,
        name=f"{spec.name}-{record.trial}",
        group=spec.name,
        project=spec.project,
        entity=spec.entity,
        folder=results,
        tags=(record.preset,) if record.preset else (),
    )
    folder = results / "trials" / record.trial
    rows = History(batch=list(read_csv(folder / "batch.csv")), epoch=list(read_csv(folder / "epoch.csv")))
    plain = {name: value for name, value in known.items() if name != "_wandb"}
    sink = WandbSink(identity, plain, spec.wandb.model_copy(update={"mode": "offline"}), resumed=bool(parts))
    for event in rows.events():
        sink.log(event)
    if record.outcome is Outcome.DIVERGED:
        sink.note_divergence([metric.name for metric in spec.objectives], record.reason or "it diverged")
    if (folder / "summary.json").exists():
        sink.log(Event(Level.SUMMARY, read_json(folder / "summary.json")))
    sink.close(0 if record.outcome in (Outcome.COMPLETE, Outcome.PRUNED) else 1)
