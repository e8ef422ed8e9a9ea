"""Ways to search that the benchmarks compare on a replay table: ours by overrides of a spec, and Ray's stock one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from sweep.replay import Replay
from sweep.replay_table import PARAMETERS, ReplayTable
from sweep.simulation import Ended, noise_of, run, simulate
from sweep.spec import SweepSpec, load_spec

EVIDENCE = Path(__file__).parent / "evidence"
SWEEPS = Path(__file__).parent.parent / "sweeps"
SPECS = {"procedural": SWEEPS / "alpha_beta.yaml", "real": SWEEPS / "real_frames.yaml"}
MOST_TRIALS = "run_cap=1000"  # more than any budget of epochs here pays for
NO_PRESETS, NO_STOP = "search.presets=[]", "early_terminate=null"
MEMORY = Path("/dev/shm")  # thousands of small writes to a study that nobody keeps


@dataclass(frozen=True)
class Arm:
    """A way to search: by the source's spec with `KEY=VALUE` overrides; `stock` has only presets and ASHA of it."""

    name: str
    options: tuple[str, ...] = ()
    stock: bool = False


@dataclass(frozen=True)
class Pick:
    """A search's best finished trial from `spent` epochs on: what was seen of it, and its value without noise."""

    spent: int
    seen: float
    true: float


@cache
def replay_of(table: Path) -> Replay:
    """Made once per process."""
    return Replay(ReplayTable.load(table))


@cache
def spec_of(source: str, options: tuple[str, ...]) -> SweepSpec:
    """The source's ready spec with these overrides. Raises ConfigError where they do not go together."""
    return load_spec(SPECS[source], options)


def search(arm: Arm, source: str, table: Path, seed: int, budget: int, workers: int = 1) -> list[Pick]:
    """One search until `budget` epochs were trained; its picks, each better in sight than the one before."""
    replay = replay_of(table)
    spec = spec_of(source, (*arm.options, MOST_TRIALS))
    if arm.stock:
        ended = stock_search(spec, replay, seed, budget, workers)
    else:
        with tempfile.TemporaryDirectory(prefix="replay-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
            ended = simulate(spec, replay, Path(folder), seed, workers, budget).ended
    return picks_of(ended, spec, replay)


def picks_of(ended: Sequence[Ended], spec: SweepSpec, replay: Replay) -> list[Pick]:
    """The best finished trial after each that finished, where it changed."""
    metric, found = spec.metric.name, []
    for trial in ended:
        seen = trial.last[metric]
        if trial.finished and (not found or seen < found[-1].seen):
            config = trial.config.get("config", trial.config)
            surface = replay.trial(*(config[name] for name in PARAMETERS), settings=spec.objective)
            found.append(Pick(trial.spent, seen, surface[-1][metric]))
    return found


def stock_search(spec: SweepSpec, replay: Replay, seed: int, budget: int, workers: int) -> list[Ended]:
    """Ray's OptunaSearch and its ASHA as one writes them first: default settings, our space and ASHA's two numbers."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
    from ray.tune.search.optuna import OptunaSearch

    metric, stop = spec.metric.name, spec.early_terminate
    searcher = OptunaSearch(
        OptunaSearch.convert_search_space(
            {
                "alpha": tune.uniform(0.1, 0.9),
                "base_lr": tune.loguniform(2e-3, 6e-2),
                "mask_ratio": tune.quniform(0.5, 0.9, 0.05),
            }
        ),
        metric=metric,
        mode="min",
        points_to_evaluate=[spec.space.fill_preset(preset, spec.trainer) for preset in spec.presets] or None,
        seed=seed,
    )
    scheduler: Any = FIFOScheduler()
    if stop is not None:
        scheduler = AsyncHyperBandScheduler(
            metric=metric,
            mode="min",
            max_t=spec.trainer.epochs,
            grace_period=stop.first_rung,
            reduction_factor=stop.eta,
        )

    def train(config: dict[str, Any], number: int) -> list[dict[str, float]]:
        return replay.trial(**config, settings=spec.objective, noise=noise_of(seed, number))

    return run(searcher, scheduler, train, workers=workers, budget=budget)


def refusal(arm: Arm, source: str) -> str | None:
    """Why the spec does not take an arm's overrides; None where it does."""
    try:
        spec_of(source, (*arm.options, MOST_TRIALS))
    except ConfigError as error:
        return str(error)
    return None
