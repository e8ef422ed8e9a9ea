"""What a sweep will take: time, memory, disk and rows, from its plan and a few measured updates. Pure arithmetic.

Early stopping decides as trials come, so times are a range: from the shares that the rule lets go on to every trial
trained to its end.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from model.config import TrainConfig
from model.plan import EpochPlan
from sweep.cluster import ADDRESS, fits
from sweep.memory import most_demanding
from sweep.plan import SweepPlan
from sweep.probe import Measurement, Took
from sweep.room import COPIES, checkpoint_bytes
from sweep.wandb_mode import resolve_mode

RAY_S = 10.0  # from "starting Ray" to the first update: Ray, and the imports of its workers
FORWARD_SHARE = 1 / 3  # of an update's time: an evaluation of as many clips, where there was no time to try one
CSV_BYTES, WANDB_BYTES = 230, 600  # of an update's row, where none was measured
MEDIAN_SHARE = 1 / 2  # of trials that the median rule lets go on


@dataclass(frozen=True)
class Forecast:
    """What a sweep takes. None: it cannot be told here.

    Attributes:
        concurrent: trials at a time; None where only the cluster knows.
        updates: of all trials of the search, at most.
        confirm_updates: of the confirmation, at most.
        trial_s: seconds of a trial of the base config that is not stopped.
        demanding_s: of one of the most demanding config.
        search_s: of the search, least and most.
        confirm_s: of the confirmation, at most; 0 without one.
        trial_bytes: that a trial leaves on the disk, its checkpoint of `checkpoint_bytes` included.
        disk_bytes: that the sweep needs, at most.
        free_bytes: of the disk of the results folder.
    """

    concurrent: int | None
    updates: int
    confirm_updates: int
    trial_s: float | None
    demanding_s: float | None
    search_s: tuple[float, float] | None
    confirm_s: float | None
    trial_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    free_bytes: int


def forecast(plan: SweepPlan, measured: Measurement, results: Path) -> Forecast:
    """Work out what the sweep takes.

    Args:
        measured: an empty one where nothing was measured.
        results: its folder, which need not exist.
    """
    spec, base = plan.spec, measured.base
    trials, runs = spec.num_trials, confirmation_runs(plan)
    concurrent = trials_at_a_time(plan, measured.gpus)
    checkpoint = checkpoint_bytes(plan.base)
    wandb_bytes = 0 if resolve_mode(spec.wandb.mode)[0] == "disabled" else base.wandb_bytes or WANDB_BYTES
    trial_bytes = checkpoint + plan.rows_per_trial * ((base.csv_bytes or CSV_BYTES) + wandb_bytes)
    folder = next(place for place in (results, *results.parents) if place.is_dir())
    trial_s = trial_seconds(base, plan.base, plan.epoch.updates) if base.updates else None
    search_s = confirm_s = None
    if trial_s is not None and concurrent is not None:
        share = epochs_with_stops(plan) / (trials * plan.base.epochs)
        most = math.ceil(trials / concurrent) * trial_s
        search_s = (RAY_S + min(most, max(trial_s, share * trials * trial_s / concurrent)), RAY_S + most)
        confirm_s = RAY_S + math.ceil(runs / concurrent) * trial_s if runs else 0.0
    return Forecast(
        concurrent=concurrent,
        updates=trials * plan.base.epochs * plan.epoch.updates,
        confirm_updates=runs * plan.base.epochs * plan.epoch.updates,
        trial_s=trial_s,
        demanding_s=_demanding_seconds(plan, measured),
        search_s=search_s,
        confirm_s=confirm_s,
        trial_bytes=trial_bytes,
        checkpoint_bytes=checkpoint,
        disk_bytes=(trials + runs) * trial_bytes + (COPIES - 1) * (concurrent or 1) * checkpoint,
        free_bytes=shutil.disk_usage(folder).free,
    )


def confirmation_runs(plan: SweepPlan) -> int:
    """Trainings of the confirmation, at most."""
    return 0 if plan.spec.confirm is None else plan.confirmation_configs * len(plan.spec.confirm.seeds)


def trial_seconds(took: Took, config: TrainConfig, updates: int) -> float:
    """Of a trial of all epochs of so many updates, its worker's imports aside."""
    judge_s = took.judge_s
    if judge_s is None:
        judge_s = FORWARD_SHARE * took.update_s * config.data.eval_clips / (config.batch_size * config.accum_iter)
    probes = 1 if config.probe.every_epochs is None else math.ceil(config.epochs / config.probe.every_epochs)
    return took.start_s + config.epochs * (updates * took.update_s + judge_s) + probes * took.probe_s


def _demanding_seconds(plan: SweepPlan, measured: Measurement) -> float | None:
    took = measured.demanding
    if took is None or not took.updates:
        return None
    config = most_demanding(plan.spec)
    return trial_seconds(took, config, EpochPlan.of(config, plan.train_clips).updates)


def trials_at_a_time(plan: SweepPlan, gpus: int) -> int | None:
    """How many fit on this machine; None where another one, or a GPU that is not here, decides."""
    resources, most = plan.spec.resources, plan.spec.resources.max_concurrent
    if os.environ.get(ADDRESS) or (resources.gpu and not gpus):
        return None if most == "auto" else min(most, plan.spec.num_trials)
    here = fits(resources, {"CPU": os.cpu_count() or 1, "GPU": gpus})
    return max(1, min(here, plan.spec.num_trials, here if most == "auto" else most))


def epochs_with_stops(plan: SweepPlan) -> float:
    """Epochs of the whole search where early stopping stops the share that it is made to stop, presets aside."""
    trials, epochs, stop = plan.spec.num_trials, plan.base.epochs, plan.spec.early_terminate
    if stop is None or plan.spec.search.pbt is not None or stop.first_rung >= epochs:
        return float(trials * epochs)
    presets = min(trials, sum(name is not None for name, _ in plan.first))
    if stop.type == "median":
        each = stop.first_rung + MEDIAN_SHARE * (epochs - stop.first_rung)
    else:
        each, rung, share = 0.0, float(stop.first_rung), 1.0
        done = 0.0
        while rung < epochs:
            each += share * (rung - done)
            done, rung, share = rung, rung * stop.eta, share / stop.eta
        each += share * (epochs - done)
    return presets * epochs + (trials - presets) * each
