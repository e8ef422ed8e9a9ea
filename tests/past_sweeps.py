"""Results folders of sweeps that never ran: made-up rows, written and scored as those of a trial."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model import metrics
from model.metrics import Level
from model.sinks import CsvSink, Event
from sweep.objective import Objective
from sweep.outcome import Outcome
from sweep.spec import SweepSpec

UPDATES = 4  # of an epoch


@dataclass
class Past:
    """A trial of a made sweep.

    Attributes:
        values: of its searched parameters.
        state: as trials.csv has it; RUNNING keeps it out of there.
        epochs: that it trained; all of its config if None.
        last: metrics of its last epoch, in place of made-up ones; None takes one away.
        nan_in: "batch" or "epoch": where its last row is not finite.
    """

    values: dict[str, Any]
    state: Outcome = Outcome.COMPLETE
    epochs: int | None = None
    preset: str | None = None
    last: Mapping[str, float | None] = field(default_factory=dict)
    nan_in: str | None = None


def past_sweep(results: Path, spec: SweepSpec, *trials: Past) -> Path:
    """A results folder of `spec` with these trials, numbered from 0."""
    results.mkdir(parents=True)
    (results / "spec.yaml").write_text(yaml.safe_dump(spec.resolved(), sort_keys=False), encoding="utf-8")
    rows = [["trial", "state", "reason", "preset"]]
    for number, past in enumerate(trials):
        write_trial(results / "trials" / f"{number:04d}", spec, past, seed=number)
        if past.state is not Outcome.RUNNING:
            rows.append([f"{number:04d}", past.state.value, "", past.preset or ""])
    with (results / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return results


def write_trial(folder: Path, spec: SweepSpec, past: Past, seed: int) -> None:
    """A trial's folder, as `TrialRun` leaves it."""
    config = spec.space.to_config(spec.trainer, past.values)
    rng = random.Random(seed)
    sink = CsvSink(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    objective = Objective(spec.objective)
    epochs = config.epochs if past.epochs is None else past.epochs
    for epoch in range(epochs):
        last = epoch == epochs - 1
        for update in range(UPDATES):
            row: dict[str, float] = {name: rng.uniform(0.1, 2) for name in metrics.BATCH_NAMES}
            row |= {"batch/epoch": epoch, "batch/iteration": epoch * UPDATES + update, "batch/mode": 2}
            if past.nan_in == "batch" and last and update == UPDATES - 1:
                row["batch/loss_total"] = math.nan
            objective.add_batch(row)
            sink.log(Event(Level.BATCH, row))
        if past.nan_in == "batch" and last:
            break  # the trainer gives up before the epoch ends
        row = {name: rng.uniform(0.1, 2) for name in (*metrics.EPOCH_NAMES, *metrics.EVAL_NAMES)} | {"epoch": epoch}
        row["epoch/actual_static_contribution"] = rng.random()
        if last:
            row |= {name: value for name, value in past.last.items() if value is not None}
            row = {name: value for name, value in row.items() if past.last.get(name, 0) is not None}
        if past.nan_in == "epoch" and last:
            row["eval/loss_pred"] = math.nan
        sink.log(Event(Level.EPOCH, row | objective.end_epoch(row)))
    sink.close(0)
