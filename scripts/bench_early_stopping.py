"""Does early stopping keep the winners? What an epoch's objective tells of the last one, and whom ASHA stops.

    python scripts/bench_early_stopping.py [--out]        # about 2 minutes on 2 cores

First, rank correlations over the real trials of the replay table: the objective after e epochs with the one at the
end. Then random searches of 64 trials, simulated on the table, with ASHA as the sweep uses it: how often it stops the
trial that would have been the best, and those that would have been among the best tenth; by the value that would have
been seen at the end, and by the one without noise.
"""

from __future__ import annotations

import argparse
import tempfile
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from evidence_text import correlation, interval, markdown
from numpy.typing import NDArray
from replay_arms import EVIDENCE, MEMORY, NO_PRESETS, SPECS, replay_of, spec_of
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from sweep.objective import ObjectiveSettings
from sweep.replay import epoch_rows
from sweep.replay_table import PARAMETERS, ReplayTable
from sweep.simulation import noise_of, simulate

TRIALS = 64
TOP = 6  # a tenth of the trials
MIN_ITERS = (1, 2, 3, 4)
ETA = 3

Array = NDArray[np.float64]
Stopped = tuple[float, float, float, float, float]  # best: seen, true; best tenth: seen, true; share of epochs trained


def values_by_epoch(table: ReplayTable, settings: ObjectiveSettings) -> Array:
    """objective/value of every trial after every epoch [N, E]."""
    trials = zip(np.exp(table.logs), table.configs, strict=True)
    return np.array([[row["objective/value"] for row in epoch_rows(m, c[0], settings)] for m, c in trials])


def foretelling(source: str, table: ReplayTable) -> list[str]:
    """Correlation of each epoch's value with the last one over the trials of the Sobol points; the first seed's."""
    _, first = np.unique(table.points, return_index=True)
    values = values_by_epoch(table, spec_of(source, ()).objective)[first[table.points[first] >= 0]]
    return [correlation(values[:, epoch], values[:, -1]) for epoch in range(values.shape[1])]


def work(task: tuple[str, Path, int, int]) -> tuple[str, int, Stopped]:
    """One random search with ASHA from `min_iter` on."""
    source, path, min_iter, seed = task
    asha = f"early_terminate={{type: hyperband, min_iter: {min_iter}, eta: {ETA}}}"
    spec = spec_of(source, ("search.sampler=random", NO_PRESETS, asha, f"run_cap={TRIALS}"))
    replay, metric = replay_of(path), spec.metric.name
    with tempfile.TemporaryDirectory(prefix="replay-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        sweep = simulate(spec, replay, Path(folder), seed)
    trials = sorted(sweep.ended, key=lambda trial: trial.number)
    stopped = np.array([not trial.finished for trial in trials])

    def at_the_end(noisy: bool) -> Array:
        return np.array(
            [
                replay.trial(
                    *(trial.config["config"][name] for name in PARAMETERS),
                    settings=spec.objective,
                    noise=noise_of(seed, trial.number) if noisy else None,
                )[-1][metric]
                for trial in trials
            ]
        )

    seen, true = np.argsort(at_the_end(noisy=True)), np.argsort(at_the_end(noisy=False))
    shares = [float(stopped[order[:top]].mean()) for top in (1, TOP) for order in (seen, true)]
    return source, min_iter, (*shares, sweep.epochs / (TRIALS * spec.trainer.epochs))  # type: ignore[return-value]


def stopping(found: dict[int, list[Stopped]]) -> str:
    """A row per min_iter."""

    def shown(shares: Array) -> str:
        low, high = interval(shares, lambda resamples: resamples.mean(axis=-1))
        return f"{shares.mean():.0%} [{low:.0%}, {high:.0%}]"

    rows = [
        (
            str(min_iter),
            *(shown(shares) for shares in np.array(searches).T[:4]),
            f"{np.array(searches)[:, 4].mean():.0%}",
        )
        for min_iter, searches in found.items()
    ]
    head = (
        "min_iter",
        "best stopped, as seen",
        "without noise",
        "best tenth, as seen",
        "without noise",
        "epochs trained",
    )
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=EVIDENCE, help="folder of replay_<source>.csv.gz")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", action="store_true", help="write scripts/evidence/early_stopping.md")
    options = parser.parse_args()
    console = Console(highlight=False)
    tables = {source: options.tables / f"replay_{source}.csv.gz" for source in SPECS}
    rows = [[source, *foretelling(source, ReplayTable.load(path))] for source, path in tables.items()]
    found: dict[str, dict[int, list[Stopped]]] = {source: {m: [] for m in MIN_ITERS} for source in SPECS}
    tasks = [(s, path, m, seed) for s, path in tables.items() for m in MIN_ITERS for seed in range(options.seeds)]
    with get_context("spawn").Pool(options.jobs) as pool:
        done = pool.imap_unordered(work, tasks, chunksize=8)
        for source, min_iter, shares in track(done, "sweeps", total=len(tasks), console=console):
            found[source][min_iter].append(shares)
    text = (
        "# Does early stopping keep the winners?\n\n"
        f"`python scripts/bench_early_stopping.py --seeds {options.seeds} --out`; intervals of 95 %.\n\n"
        "Spearman's rank correlation of objective/value after an epoch with the last one's, over the configs:\n\n"
        + markdown(("after epoch", *(str(epoch + 1) for epoch in range(len(rows[0]) - 1))), rows)
        + f"\nTrials that ASHA (eta {ETA}) stops in random searches of {TRIALS} trials, though they would have been "
        f"the best, or among the best {TOP}:\n"
        + "".join(f"\n## {source}\n\n{stopping(by_iter)}" for source, by_iter in found.items())
    )
    console.print(Markdown(text))
    if options.out:
        (EVIDENCE / "early_stopping.md").write_text(text, encoding="utf-8")
        console.print(f"{EVIDENCE / 'early_stopping.md'}")


if __name__ == "__main__":
    main()
