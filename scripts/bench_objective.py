"""Is the objective worth minimising? Rank correlation of candidate objectives with linear-probe accuracy.

    python scripts/bench_objective.py [--out]        # some 20 seconds

Over the configs of the replay table's Sobol points: the mean over seeds of a candidate after the last epoch, against
the mean over seeds of each probe's balanced accuracy and against the mean of their ranks. All signs are such that +
means: the better by the objective, the better for the probe. Intervals are of 95 %, by bootstrap over the configs. What
can be reached at all is bounded by how well the probe of one seed tells that of another, and nothing where a probe's
accuracies are those of chance: 1 / classes, which are 7 indenters, 3 motions, slip or not; 28 objects, slip or wiggle.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from evidence_text import correlation, interval, markdown, spearman
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown
from scipy.stats import rankdata

from sweep.objective import ObjectiveSettings
from sweep.replay import epoch_rows
from sweep.replay_table import PARAMETERS, ReplayTable

EVIDENCE = Path(__file__).parent / "evidence"
SOURCES = ("procedural", "real")
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0)
SETTLES = (0, 1, 2, 3, 4)
PARTS = ("objective/loss", "objective/imbalance", "objective/instability")
MEAN_RANK = "mean rank"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Configs:
    """The Sobol points of a table, P of them."""

    table: ReplayTable

    @cached_property
    def of_trial(self) -> NDArray[np.int64]:
        """Place of each trial's config [N]; -1 for trials of presets."""
        points = np.unique(self.table.points[self.table.points >= 0])
        return np.where(self.table.points >= 0, np.searchsorted(points, self.table.points), -1)

    def mean(self, values: Array) -> Array:
        """Of trials [N, ...] -> means over the seeds of each config [P, ...]."""
        return np.stack([values[self.of_trial == place].mean(axis=0) for place in range(self.of_trial.max() + 1)])

    @cached_property
    def probes(self) -> dict[str, Array]:
        """Balanced accuracy of each label [P], and the mean of their ranks."""
        names = [name for name in self.table.columns if name.startswith("probe_") and name.endswith("_balanced")]
        found = {_label(name): self.mean(self.table.columns[name][:, -1]) for name in names}
        return {**found, MEAN_RANK: rankdata(list(found.values()), axis=1).mean(axis=0)}

    def parts(self, settle_epochs: int) -> Array:
        """PARTS after the last epoch, by the sweep's own objective [P, 3]."""
        settings = ObjectiveSettings(settle_epochs=settle_epochs)
        measured = np.exp(self.table.logs)
        last = [
            epoch_rows(m, alpha, settings)[-1] for m, (alpha, _, _) in zip(measured, self.table.configs, strict=True)
        ]
        return self.mean(np.array([[row[part] for part in PARTS] for row in last]))

    def reliability(self) -> dict[str, str]:
        """Correlation of each probe between the first two seeds, over the configs that have both."""
        both = [np.flatnonzero(self.of_trial == place)[:2] for place in range(self.of_trial.max() + 1)]
        pairs = np.array([pair for pair in both if len(pair) == 2])
        if len(pairs) < 3:
            return {}
        names = [name for name in self.table.columns if name.startswith("probe_") and name.endswith("_balanced")]
        found = {_label(name): self.table.columns[name][:, -1][pairs] for name in names}
        found[MEAN_RANK] = rankdata(list(found.values()), axis=1).mean(axis=0)
        return {label: correlation(of_seeds[:, 0], of_seeds[:, 1]) for label, of_seeds in found.items()}


def _label(column: str) -> str:
    return column.removeprefix("probe_").removesuffix("_balanced")


def candidates(configs: Configs) -> dict[str, Array]:
    """Candidate objectives by name [P]; the smaller, the better."""
    loss, imbalance, instability = configs.parts(ObjectiveSettings().settle_epochs).T
    defaults = ObjectiveSettings()
    last = {name: configs.mean(column[:, -1]) for name, column in configs.table.columns.items() if "eval/" in name}
    return {
        "training loss (best)": configs.mean(configs.table.columns["epoch/train_loss"].min(axis=1)),
        "reference loss (best)": loss,
        f"reference + {defaults.contribution_weight} imbalance": loss + defaults.contribution_weight * imbalance,
        f"reference + {defaults.ratio_weight} instability": loss + defaults.ratio_weight * instability,
        "the defaults": loss + defaults.contribution_weight * imbalance + defaults.ratio_weight * instability,
        "imbalance alone": imbalance,
        "instability alone": instability,
        "held-out static loss": last["eval/loss_static"],
        "held-out dynamic loss": last["eval/loss_dynamic"],
        "static skill": -last["eval/static_skill"],
        "pred skill": -last["eval/pred_skill"],
        **({"effective rank": -last["eval/effective_rank"]} if "eval/effective_rank" in last else {}),
    }


def by_candidate(configs: Configs) -> str:
    """Every candidate against every probe."""
    rows = [
        [name, *(correlation(-values, probe) for probe in configs.probes.values())]
        for name, values in candidates(configs).items()
    ]
    spread = (f"{np.quantile(probe, 0.1):.2f} to {np.quantile(probe, 0.9):.2f}" for probe in configs.probes.values())
    rows.append(["*accuracy of most configs*", *list(spread)[:-1], "-"])
    reliability: Mapping[str, str] = configs.reliability()
    rows.append(["*the probe of another seed*", *(reliability.get(label, "-") for label in configs.probes)])
    return markdown(("candidate, smaller is better", *configs.probes), rows)


def by_weights(configs: Configs) -> str:
    """The penalties' weights, against the mean rank of the probes."""
    loss, imbalance, instability = configs.parts(ObjectiveSettings().settle_epochs).T
    probe = configs.probes[MEAN_RANK]
    rows = [
        [f"{c:g}", *(f"{_plain(loss + c * imbalance + r * instability, probe):.2f}" for r in WEIGHTS)] for c in WEIGHTS
    ]
    return markdown(("contribution_weight \\ ratio_weight", *(f"{r:g}" for r in WEIGHTS)), rows)


def by_settle_epochs(configs: Configs) -> str:
    """settle_epochs at the default weights."""
    defaults, probe, row = ObjectiveSettings(), configs.probes[MEAN_RANK], []
    for settle in SETTLES:
        loss, imbalance, instability = configs.parts(settle).T
        value = loss + defaults.contribution_weight * imbalance + defaults.ratio_weight * instability
        row.append(correlation(-value, probe))
    return markdown(("settle_epochs", *map(str, SETTLES)), [["the defaults", *row]])


def by_parameter(configs: Configs) -> str:
    """What the parameters themselves have to do with the probes: + means the larger, the better."""
    rows = [
        [name, *(correlation(configs.mean(column), probe) for probe in configs.probes.values())]
        for name, column in zip(PARAMETERS, configs.table.configs.T, strict=True)
    ]
    return markdown(("parameter, larger is better", *configs.probes), rows)


def gain(configs: Configs) -> str:
    """What each penalty at its default weight adds to the correlation, with a paired interval."""
    defaults, probe = ObjectiveSettings(), configs.probes[MEAN_RANK]
    loss, imbalance, instability = configs.parts(defaults.settle_epochs).T
    penalties = {
        f"{defaults.contribution_weight} imbalance": defaults.contribution_weight * imbalance,
        f"{defaults.ratio_weight} instability": defaults.ratio_weight * instability,
        "both": defaults.contribution_weight * imbalance + defaults.ratio_weight * instability,
    }

    def difference(sample: Array) -> Array:  # [..., P, 3]: with, without, probe
        return spearman(-sample[..., [0, 2]] * [1, -1]) - spearman(-sample[..., [1, 2]] * [1, -1])

    rows = []
    for name, penalty in penalties.items():
        sample = np.stack([loss + penalty, loss, probe], axis=-1)
        low, high = interval(sample, difference)
        rows.append([name, f"{difference(sample):+.2f} [{low:+.2f}, {high:+.2f}]"])
    return markdown(("penalty added to the reference loss", "change of the correlation"), rows)


def _plain(objective: Array, probe: Array) -> float:
    return float(spearman(np.stack([-objective, probe], axis=-1)))


def report(source: str, table: ReplayTable) -> str:
    configs = Configs(table)
    return (
        f"## {source}: {len(configs.probes[MEAN_RANK])} configs, {(configs.of_trial >= 0).sum()} trials\n\n"
        f"{by_candidate(configs)}\n{by_parameter(configs)}\n"
        f"What the penalties change (against the mean rank):\n\n{gain(configs)}\n"
        f"Weights of the penalties (against the mean rank):\n\n{by_weights(configs)}\n{by_settle_epochs(configs)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=EVIDENCE, help="folder of replay_<source>.csv.gz")
    parser.add_argument("--out", action="store_true", help="write scripts/evidence/objective.md")
    options = parser.parse_args()
    parts = [report(source, ReplayTable.load(options.tables / f"replay_{source}.csv.gz")) for source in SOURCES]
    text = (
        "# Is the objective worth minimising?\n\n"
        "Spearman's rank correlation with linear-probe accuracy (balanced), 95 % intervals over the configs; + means: "
        "better by the objective, better for the probe. `python scripts/bench_objective.py --out`\n\n"
        + "\n".join(parts)
    )
    console = Console(highlight=False)
    console.print(Markdown(text))
    if options.out:
        (EVIDENCE / "objective.md").write_text(text, encoding="utf-8")
        console.print(f"{EVIDENCE / 'objective.md'}")


if __name__ == "__main__":
    main()
