"""A large sweep under Ray without its training: does the driver stay flat, and does no row get lost?

    python scripts/bench_load.py [--trials 1000] [--concurrent 2]
    python scripts/bench_load.py --trials 10000                      # the README's figures
    python scripts/bench_load.py --trials 400 --concurrent 200       # 200 trials at the same time

Everything is the sweep's own (spec, searcher, journal, ASHA, Ray Tune, progress, trials.csv, a trial's CSV files and
objective) but for the trainer: a trial replays losses of a made-up formula, 8 epochs of 4 updates, in no time, and
keeps no W&B run. Printed for each tenth of the trials: milliseconds of wall time per trial and per report, and what the
driver's memory has gained since the first tenth. At the end every row is looked for in the files, the study and
trials.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ray import tune
from rich.console import Console
from rich.table import Table

from model import metrics
from model.metrics import Level
from model.sinks import CsvSink, Event, read_csv
from sweep.objective import Objective, ObjectiveSettings
from sweep.plan import first_trials
from sweep.progress import Progress
from sweep.results import ResultsFolder
from sweep.searcher import DIVERGED, EPOCHS, FINISHED
from sweep.spec import SweepSpec, load_spec
from sweep.study import Outcome, SweepStudy
from sweep.trial_table import TrialTable
from sweep.tuner import run_trials

SPEC = Path(__file__).parent.parent / "sweeps/alpha_beta.yaml"
UPDATES = 4  # of an epoch


class ReplayedTrial(tune.Trainable):
    """A trial of made-up losses: its rows go where a real trial's go, and it reports what a real one reports."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial. Its files wait for its first step: Tune also sets up actors that it then does not need."""
        settings = ObjectiveSettings.model_validate(config["shared"]["objective"])
        self._values, self._config = config["values"], config["config"]
        self._folder = Path(config["shared"]["results"]) / "trials" / config["trial"]
        self._sink: CsvSink | None = None
        self._objective, self._epoch, self._best = Objective(settings), 0, math.inf

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch."""
        self._sink = self._sink or CsvSink(self._folder)
        far = (self._values["alpha"] - 0.6) ** 2 + 0.1 * math.log(self._values["base_lr"] / 0.02) ** 2
        for update in range(UPDATES):
            iteration = self._epoch * UPDATES + update
            loss = (1 + far) * (0.4 + 1 / (1 + iteration))
            row = dict.fromkeys(metrics.BATCH_NAMES, loss)
            row |= {"batch/iteration": iteration, "batch/epoch": self._epoch, "batch/loss_ratio": 0.5, "batch/mode": 2}
            self._objective.add_batch(row)
            self._sink.log(Event(Level.BATCH, row))
        self._best = min(self._best, loss)
        row = dict.fromkeys((*metrics.EPOCH_NAMES, *metrics.EVAL_NAMES), loss)
        row |= {"epoch": self._epoch, "epoch/best_loss_so_far": self._best}
        row |= {"epoch/actual_static_contribution": self._values["alpha"]}
        row |= self._objective.end_epoch(row)
        self._sink.log(Event(Level.EPOCH, row))
        self._epoch += 1
        finished = self._epoch == self._config["epochs"]
        told = {name: row[name] for name in metrics.OBJECTIVE_NAMES if name in row}
        return told | {EPOCHS: self._epoch, FINISHED: finished, DIVERGED: None, "done": finished}

    def cleanup(self) -> None:
        """The worker ends."""
        if self._sink is not None:
            self._sink.close(0)


class Clock(Progress):
    """The terminal's progress, without its lines; notes the time and the driver's memory at each trial's end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Console(quiet=True), **options)
        self.reports = 0
        self.ends: list[tuple[float, int, int]] = []

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None:
        """A trial ended an epoch."""
        self.reports += 1
        super().epoch(trial, epochs, metrics)

    def ended(self, trial: str) -> None:
        """A trial ended."""
        super().ended(trial)
        self.ends.append((time.perf_counter(), self.reports, psutil.Process().memory_info().rss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--concurrent", type=int, default=2, help="trials at the same time")
    options = parser.parse_args()
    cpu = min(1.0, 2.0 / options.concurrent)
    changes = [f"run_cap={options.trials}", f"resources.cpu={cpu}", f"resources.max_concurrent={options.concurrent}"]
    spec = load_spec(SPEC, [*changes, "wandb.mode=disabled", "confirm=null"])
    with tempfile.TemporaryDirectory() as scratch:
        run(spec, ResultsFolder(Path(scratch) / spec.name))


def run(spec: SweepSpec, results: ResultsFolder) -> None:
    """Run the sweep of replayed trials in this folder; prints what it cost and whether all of it is there."""
    results.open(spec, resume=False)
    study = SweepStudy(
        results.path,
        spec.name,
        spec.space,
        sampler=spec.search.sampler or "auto",
        startup_trials=spec.search.startup_trials,
        first=first_trials(spec),
    )
    table = TrialTable(results, spec)
    clock = Clock(
        num_trials=spec.num_trials,
        earlier=(),
        epochs=spec.trainer.epochs,
        find=study.record,
        sign=1.0,
        metric=spec.metric.name,
        on_ended=table.update,
    )
    with clock:
        run_trials(spec, results, study, "load", spec.num_trials, clock, trainable=ReplayedTrial)
    for record in study.records():
        table.update(record)
    table.write()
    print_costs(clock)
    print_losses(spec, results, study)


def print_costs(clock: Clock) -> None:
    """A line for each tenth of the trials; the first holds Ray's and the workers' start."""
    shown = Table("trials", "ms a trial", "ms a report", "reports a second", "driver +MiB", title="the driver's cost")
    tenth = max(1, len(clock.ends) // 10)
    first_memory = clock.ends[tenth - 1][2]  # with what the searcher imports for its first model
    for begin in range(0, len(clock.ends) - tenth + 1, tenth):
        (start, reports_then, _), (end, reports, memory) = clock.ends[begin], clock.ends[begin + tenth - 1]
        seconds, count = end - start, reports - reports_then
        per_trial = seconds / max(1, tenth - 1) * 1e3
        row = (per_trial, seconds / max(1, count) * 1e3, count / max(seconds, 1e-9), (memory - first_memory) / 2**20)
        shown.add_row(f"{begin + 1}-{begin + tenth}", *(f"{value:.1f}" for value in row))
    Console().print(shown)


def print_losses(spec: SweepSpec, results: ResultsFolder, study: SweepStudy) -> None:
    """Whether every row is where it belongs. Raises AssertionError where one is not."""
    records = study.records()
    with results.trials_file.open(newline="", encoding="utf-8") as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert len(records) == len(rows) == spec.num_trials
    epochs = 0
    for record in records:
        assert record.outcome in (Outcome.COMPLETE, Outcome.PRUNED), record
        folder = results.trial_folder(record.trial)
        found = [row["epoch"] for row in read_csv(folder / "epoch.csv")]
        assert found == list(range(record.epochs)), (record, found)
        updates = [row["batch/iteration"] for row in read_csv(folder / "batch.csv")]
        assert updates == list(range(record.epochs * UPDATES))
        assert rows[record.trial]["state"] == record.outcome.value
        assert int(rows[record.trial]["epochs_done"]) == record.epochs
        epochs += record.epochs
    reported = sum(len(values) for values in study.intermediate_values().values())
    assert reported == epochs
    pruned = sum(record.outcome is Outcome.PRUNED for record in records)
    print(
        f"{len(records)} trials ({pruned} stopped early), {epochs} epochs, {epochs * UPDATES} updates: each row is in "
        "its CSV file once, each epoch in the study, each trial in trials.csv"
    )


if __name__ == "__main__":
    main()
