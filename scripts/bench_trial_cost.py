"""What a trial costs beyond its training: a sweep of trials of one update each, against a plain Ray Tune loop.

    python scripts/bench_trial_cost.py [--trials 20]

Both train the same one-update trials and log them to CSV and offline W&B. The plain loop is what one writes first: a
function trainable, a fresh worker and a fresh W&B run for each trial. Printed are seconds per trial less the training
itself, once with everything (Ray's start and the workers' imports included) and once from the first trial's end on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SPEC: dict[str, Any] = {
    "name": "cost",
    "method": "random",
    "parameters": {"alpha": {"min": 0.1, "max": 0.9}},
    "trainer": {"epochs": 1, "warmup_epochs": 0, "data": {"clips_per_epoch": 32, "eval_clips": 32}},
    "search": {"presets": []},
    "wandb": {"mode": "offline"},
}


class Clock:
    """A watcher that notes when trials end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def started(self, trial: str) -> None: ...

    def epoch(self, trial: str, epochs: int, metrics: dict[str, Any]) -> None: ...

    def ended(self, trial: str) -> None:
        self.ends.append(time.perf_counter())

    def finding(self, trial: str, text: str, severity: str) -> None: ...

    def warning(self, text: str) -> None:
        print("note:", text)


def ours(trials: int, folder: Path) -> tuple[float, float, float]:
    """(whole wall seconds, seconds from the first trial's end to the last's, training seconds of a trial)."""
    from model.configfile import validated
    from sweep.plan import make_plan
    from sweep.results import ResultsFolder
    from sweep.spec import SweepSpec
    from sweep.study import SweepStudy
    from sweep.trial_table import TrialTable
    from sweep.tuner import run_trials

    spec = validated(SweepSpec, SPEC | {"run_cap": trials}, "benchmark")
    plan = make_plan(spec)
    results = ResultsFolder(folder / "ours")
    results.open(spec, resume=False)
    study = SweepStudy(results.path, spec.name, spec.space, sampler="random", first=plan.first)
    clock = Clock()
    start = time.perf_counter()
    run_trials(spec, results, study, "bench", trials, clock)
    wall = time.perf_counter() - start
    table = TrialTable(results, spec)
    seconds = []
    for record in study.records():
        row = table.row(record)
        seconds.append(row["summary/total_time_seconds"])
    assert len(seconds) == trials
    return wall, clock.ends[-1] - clock.ends[0], statistics.median(seconds)


def plain_trial(config: dict[str, Any]) -> None:
    """What one writes first: everything anew in each trial."""
    import torch
    import wandb
    from ray import tune

    from model.config import TrainConfig
    from model.sinks import CsvSink
    from model.trainer import Trainer

    torch.set_num_threads(1)
    run = wandb.init(project="cost", mode="offline", dir=config["folder"], reinit=True)
    trainer = Trainer(TrainConfig.model_validate(SPEC["trainer"] | {"alpha": config["alpha"]}))
    sink = CsvSink(Path(config["folder"]) / tune.get_context().get_trial_id())
    for event in trainer.train():
        sink.log(event)
        run.log(dict(event.values))
        if "eval/reference_loss" in event.values:
            tune.report(dict(event.values))
    run.finish()


def plain(trials: int, folder: Path) -> float:
    """Wall seconds of the plain loop."""
    import ray
    from ray import tune

    folder = folder / "plain"
    folder.mkdir()
    start = time.perf_counter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    tune.Tuner(
        tune.with_resources(plain_trial, {"cpu": 1}),
        param_space={"alpha": tune.uniform(0.1, 0.9), "folder": str(folder)},
        tune_config=tune.TuneConfig(num_samples=trials, metric="eval/reference_loss", mode="min"),
        run_config=tune.RunConfig(name="ray", storage_path=str(folder), verbose=0),
    ).fit()
    ray.shutdown()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--skip-plain", action="store_true", help="leave the plain loop out")
    trials = (options := parser.parse_args()).trials
    os.environ["WANDB_SILENT"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        wall, steady, training = ours(trials, Path(folder))
        workers = min(os.cpu_count() or 1, trials)
        share = training / workers  # wall time that training takes per trial when all cores train
        print(f"{trials} trials of one update, {workers} at a time; training itself: {training:.3f} s a trial")
        print(f"ours : {wall:.1f} s in all; beyond training {wall / trials - share:.3f} s a trial with every start,")
        print(f"       {steady / (trials - 1) - share:.3f} s a trial once the workers are warm")
        if not options.skip_plain:
            plain_wall = plain(trials, Path(folder))
            print(f"plain: {plain_wall:.1f} s in all; beyond training {plain_wall / trials - share:.3f} s a trial")
            print(f"ratio of the whole walls, plain / ours: {plain_wall / wall:.1f}")


if __name__ == "__main__":
    main()
