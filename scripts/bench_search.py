"""How many epochs of training does a search need to find what random search finds with 64 full trials?

    python scripts/bench_search.py [--out]         # 50 seeds of every arm but SLOW ones: about 20 minutes on 2 cores
    python scripts/bench_search.py --arms ours stock random --seeds 100
    python scripts/bench_search.py --arms ours --also "search.startup_trials=12 early_terminate.min_iter=1"

Sweeps are simulated on the replay table (sweep/simulation.py): real searchers, schedulers and objective, replayed
trials. For each seed, the target is what random search picks: of its 64 full trials the one with the best value seen.
A search reaches the target when its own pick, the best value seen among its finished trials (presets are trials as all
others), is as good. Both picks are judged by their value without noise, which no search knows; a second table judges by
the values seen. The random arm has other seeds than the target's. Epochs count for all trials, stopped ones too; a
search that does not get there counts as more than its budget.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the GP's matrices are small: threads of two processes only wait

import numpy as np
from evidence_text import bar, interval, markdown
from replay_arms import EVIDENCE, NO_PRESETS, NO_STOP, SPECS, Arm, Pick, refusal, replay_of, search, spec_of
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from scipy.stats import qmc

from sweep.replay import Replay
from sweep.replay_table import MEASURED

RANDOM = Arm("random, full trials", ("search.sampler=random", NO_PRESETS, NO_STOP))
ARMS = {
    "random": RANDOM,
    "random-asha": Arm("random + ASHA", ("search.sampler=random", NO_PRESETS)),
    "stock": Arm("stock: OptunaSearch + ASHA", (NO_PRESETS,), stock=True),
    "stock-presets": Arm("stock, with our presets", (), stock=True),
    "ours": Arm("ours: the ready spec"),
    "tpe": Arm("tpe + ASHA", ("search.sampler=tpe",)),
    "tpe-full": Arm("tpe, full trials", ("search.sampler=tpe", NO_STOP)),
    "tpe-median": Arm("tpe + median", ("search.sampler=tpe", "early_terminate={type: median, min_iter: 2}")),
    "gp": Arm("gp + ASHA", ("search.sampler=gp",)),
    "gp-full": Arm("gp, full trials", ("search.sampler=gp", NO_STOP)),
    "cmaes": Arm("cmaes + ASHA", ("search.sampler=cmaes",)),
    "nsgaii": Arm("nsgaii + ASHA", ("search.sampler=nsgaii",)),
    "qmc": Arm("qmc + ASHA", ("search.sampler=qmc",)),
}
SLOW = ("gp", "gp-full")  # not run unless asked for
FULL_TRIALS = 64
OTHER_SEEDS = 10_000  # between the seeds of the targets and of the searches
TIMES = (64, 128, 256, 512)


@dataclass(frozen=True)
class Task:
    """A search to run."""

    name: str
    """Of the arm; empty for the search that sets the target."""
    arm: Arm
    seed: int
    source: str
    table: Path
    budget: int
    workers: int


def work(task: Task) -> tuple[str, int, list[Pick]]:
    return task.name, task.seed, search(task.arm, task.source, task.table, task.seed, task.budget, task.workers)


def reached(picks: Sequence[Pick], target: Pick, value: Callable[[Pick], float]) -> float:
    """Epochs until a pick is as good as the target; infinite where none is."""
    return next((float(pick.spent) for pick in picks if value(pick) <= value(target)), math.inf)


def value_after(picks: Sequence[Pick], epochs: int) -> float:
    """Value without noise of the pick after so many epochs; infinite before the first one."""
    return next((pick.true for pick in reversed(picks) if pick.spent <= epochs), math.inf)


def medians(samples: np.ndarray) -> np.ndarray:
    """Medians over the last axis, where an infinite middle stays infinite."""
    middle = np.sort(samples, axis=-1)
    return middle[..., (samples.shape[-1] - 1) // 2]


def wins(epochs: np.ndarray, others: np.ndarray) -> str:
    """`64% [50%, 78%]`: share of the seeds with fewer epochs; one of equal cost is half a win."""
    won = np.where(epochs == others, 0.5, epochs < others)
    low, high = interval(won, lambda resamples: resamples.mean(axis=-1))
    return f"{won.mean():.0%} [{low:.0%}, {high:.0%}]"


def cost_table(
    found: dict[str, dict[int, list[Pick]]], targets: dict[int, Pick], cost: int, budget: int, seen: bool
) -> str:
    """Epochs to the target by arm: median and quartiles, ratio to the random search's cost, share that got there, and
    share of the seeds in which it took fewer epochs than the stock one."""

    def value(pick: Pick) -> float:
        return pick.seen if seen else pick.true

    def shown(epochs: float) -> str:
        return f"{epochs:.0f}" if math.isfinite(epochs) else f"> {budget}"

    def ratio(epochs: float) -> str:
        return f"{epochs / cost:.2f}" if math.isfinite(epochs) else f"> {budget / cost:.2g}"

    by_arm = {
        name: np.array([reached(picks, targets[seed], value) for seed, picks in sorted(searches.items())])
        for name, searches in found.items()
    }
    stock = by_arm.get(ARMS["stock"].name)
    rows = []
    for name, epochs in by_arm.items():
        first, median, third = np.quantile(epochs, (0.25, 0.5, 0.75), method="inverted_cdf")
        low, high = interval(epochs, medians)
        rows.append(
            (
                name,
                shown(median),
                f"{shown(first)} to {shown(third)}",
                ratio(median),
                f"{ratio(low)} to {ratio(high)}",
                f"{np.isfinite(epochs).mean():.0%}",
                "-" if stock is None or epochs is stock else wins(epochs, stock),
                bar(median / cost, 10),
            )
        )
    head = ("search", "median epochs", "quartiles", "ratio to random", "95 %", "got there", "beats stock", "")
    return markdown(head, rows)


def excess_table(found: dict[str, dict[int, list[Pick]]], best: float, budget: int) -> str:
    """Median distance of the pick's value without noise from the least of the surface, after some epochs."""
    times = [epochs for epochs in TIMES if epochs <= budget]
    rows = []
    for name, searches in found.items():
        values = np.array([[value_after(picks, epochs) for epochs in times] for picks in searches.values()])
        rows.append((name, *(f"{median - best:.4f}" for median in medians(values.T))))
    return markdown(("search", *(f"after {epochs} epochs" for epochs in times)), rows)


def accuracy_table(replay: Replay) -> str:
    """R² of the surface at points that it was made without, and the noise around it, of each measured metric."""
    epochs = replay.table.epochs
    shown = sorted({1, 2, epochs // 2, epochs})
    rows = [
        (
            name,
            *(f"{replay.r2[name][epoch - 1]:.2f}" for epoch in shown),
            f"{replay.noise[:, -1, place].std():.1%}",
        )
        for place, name in enumerate(MEASURED)
    ]
    return markdown(("metric", *(f"R² after epoch {epoch}" for epoch in shown), "noise at the end"), rows)


def least_value(source: str, table: Path) -> float:
    """The least objective without noise over the spec's space."""
    spec, replay = spec_of(source, ()), replay_of(table)
    unit = qmc.Sobol(3, rng=np.random.default_rng(0)).random_base2(12)
    values = [
        replay.trial(0.1 + 0.8 * a, 2e-3 * 30**b, 0.5 + 0.05 * round(8 * c), spec.objective)[-1][spec.metric.name]
        for a, b, c in unit.tolist()
    ]
    return min(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=SPECS, default="procedural")
    parser.add_argument("--table", type=Path, help="(default: scripts/evidence/replay_<source>.csv.gz)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[key for key in ARMS if key not in SLOW])
    parser.add_argument("--also", action="append", default=[], metavar="'KEY=VALUE ...'", help="ours, with overrides")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--budget", type=int, help="epochs of each search (default: what the 64 full trials cost)")
    parser.add_argument("--workers", type=int, default=1, help="trials of a sweep at the same time")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", action="store_true", help="write scripts/evidence/search_efficiency_<source>.md")
    options = parser.parse_args()
    console = Console(highlight=False)
    table = options.table or EVIDENCE / f"replay_{options.source}.csv.gz"
    cost = FULL_TRIALS * spec_of(options.source, ()).trainer.epochs
    budget = options.budget or cost
    arms = {}
    for arm in [ARMS[key] for key in options.arms] + [Arm(text, tuple(text.split())) for text in options.also]:
        if why := refusal(arm, options.source):
            console.print(f"note: left out {arm.name}: {why}", style="yellow", markup=False)
        else:
            arms[arm.name] = arm
    tasks = [
        Task(name, arm, seed, options.source, table, budget, options.workers)
        for seed in range(options.seeds)
        for name, arm in arms.items()
    ]
    tasks += [
        Task("", RANDOM, seed + OTHER_SEEDS, options.source, table, cost, workers=1) for seed in range(options.seeds)
    ]
    found: dict[str, dict[int, list[Pick]]] = {name: {} for name in ("", *arms)}
    with get_context("spawn").Pool(options.jobs) as pool:
        for name, seed, picks in track(pool.imap_unordered(work, tasks), "sweeps", total=len(tasks), console=console):
            found[name][seed] = picks
    targets = {seed - OTHER_SEEDS: picks[-1] for seed, picks in found.pop("").items()}
    replay = replay_of(table)
    text = (
        f"# Search efficiency, {options.source} clips\n\n"
        f"{options.seeds} seeds, {options.workers} trial(s) at a time, {budget} epochs each; simulated on "
        f"{len(replay.table.points)} real trials of {len(np.unique(replay.table.points))} configs.\n"
        f"`python scripts/bench_search.py --source {options.source} --seeds {options.seeds} "
        f"--workers {options.workers} --out`\n\n"
        "Epochs of training until the pick is as good as the one of a random search of 64 full trials, by the value "
        f"without noise:\n\n{cost_table(found, targets, cost, budget, seen=False)}\n"
        f"The same by the values seen:\n\n{cost_table(found, targets, cost, budget, seen=True)}\n"
        "How far the pick is from the best of the whole space, by the value without noise (median):\n\n"
        f"{excess_table(found, least_value(options.source, table), budget)}\n"
        "How well the table's surface foretells the logarithm of each metric at a config that was left out, and the "
        f"noise of a trial around it:\n\n{accuracy_table(replay)}"
    )
    console.print(Markdown(text))
    if options.out:
        path = EVIDENCE / f"search_efficiency_{options.source}.md"
        path.write_text(text, encoding="utf-8")
        console.print(f"{path}")


if __name__ == "__main__":
    main()
