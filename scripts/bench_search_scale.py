"""What the search costs the driver as the sweep grows: time per suggestion, report and end of a trial, and memory.

    python scripts/bench_search_scale.py [--trials 100 1000 10000] [--sampler auto]      # two minutes

A study is filled with trials of made-up values through the searcher and ASHA (8 epochs, two thirds stopped early); then
some more trials are timed one by one, their suggestions by the sampler. Medians; memory is what the process has gained
per trial since the study was empty. Ray's own memory is not in it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from sweep.blocks import Sampler
from sweep.schedulers import STOP, make_scheduler
from sweep.searcher import EPOCHS, FINISHED, StudySearcher
from sweep.spec import SweepSpec, load_spec
from sweep.study import SweepStudy

SPEC = Path(__file__).parent.parent / "sweeps/alpha_beta.yaml"
TIMED = 15
WHAT = ("suggestion", "report", "end of a trial")


class RayTrial:
    """What schedulers look at of Ray's trials."""

    def __init__(self, trial_id: str, config: dict[str, Any]) -> None:
        self.trial_id, self.config = trial_id, config


class Driver:
    """The search's side of a sweep, with trials of made-up values."""

    def __init__(self, spec: SweepSpec, folder: Path, sampler: Sampler, trials: int) -> None:
        study = SweepStudy(folder, spec.name, spec.space, sampler=sampler, startup_trials=spec.search.startup_trials)
        self._searcher = StudySearcher(
            study, trials, spec.objectives, lambda values: spec.space.to_config(spec.trainer, values), str
        )
        self._scheduler = make_scheduler(spec, study)
        self._metric, self._epochs = spec.metric.name, spec.trainer.epochs
        self._draws = random.Random(trials)
        self.seconds: dict[str, list[float]] = {what: [] for what in WHAT}

    def run_one(self, trial_id: str) -> None:
        """A trial from its suggestion to its end."""
        config = self._timed("suggestion", lambda: self._searcher.suggest(trial_id))
        trial, value = RayTrial(trial_id, config), self._draws.random()
        self._scheduler.on_trial_add(None, trial)
        for epoch in range(1, self._epochs + 1):
            result = {EPOCHS: epoch, self._metric: 1 + value - 0.1 * epoch, FINISHED: epoch == self._epochs}
            if result[FINISHED] or self._scheduler.on_trial_result(None, trial, result) == STOP:
                break
            self._timed("report", lambda report=result: self._searcher.on_trial_result(trial_id, report))
        self._timed("end of a trial", lambda: self._searcher.on_trial_complete(trial_id, result))
        self._scheduler.on_trial_complete(None, trial, result)

    def _timed(self, what: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds[what].append(time.perf_counter() - start)


def measure(sampler: Sampler, trials: int) -> tuple[dict[str, float], float]:
    """(median milliseconds by step, KiB of memory per trial) of a study that holds so many trials."""
    spec = load_spec(SPEC)
    memory = psutil.Process().memory_info
    with tempfile.TemporaryDirectory() as folder:
        before = memory().rss
        filling = Driver(spec, Path(folder), "random", trials)
        for number in range(trials):
            filling.run_one(f"fill{number}")
        gained = (memory().rss - before) / 1024 / trials
        timed = Driver(spec, Path(folder), sampler, TIMED)
        for number in range(TIMED):
            timed.run_one(f"timed{number}")
    return {what: 1000 * statistics.median(times) for what, times in timed.seconds.items()}, gained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--sampler", default="auto")
    options = parser.parse_args()
    table = Table(title=f"search.sampler: {options.sampler}", title_justify="left")
    for name in ("trials", *(f"{what}, ms" for what in WHAT), "memory per trial, KiB"):
        table.add_column(name, justify="right")
    for trials in options.trials:
        times, gained = measure(options.sampler, trials)
        table.add_row(f"{trials}", *(f"{ms:.2f}" for ms in times.values()), f"{gained:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
