"""Draw the default objective against the linear probes, a point per config of the replay tables.

    pip install -e '.[evidence]'
    python scripts/draw_objective.py

The figure is scripts/evidence/objective.png.
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from bench_objective import EVIDENCE, SOURCES, Configs, candidates
from evidence_text import correlation

from sweep.replay_table import ReplayTable

# chance of each probe: 1 / classes
SHOWN = {"procedural": {"indenter": 1 / 7, "motion": 1 / 3, "slip": 1 / 2}, "real": {"object": 1 / 28, "label": 1 / 2}}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figure, rows = plt.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
    for source, axes in zip(SOURCES, rows, strict=True):
        configs = Configs(ReplayTable.load(EVIDENCE / f"replay_{source}.csv.gz"))
        objective = candidates(configs)["the defaults"]
        for (label, chance), axis in zip(SHOWN[source].items(), axes, strict=False):
            accuracy = configs.probes[label]
            axis.scatter(objective, accuracy, s=14, alpha=0.7, color="#4c8bf5")
            axis.axhline(chance, color="#8b929c", linewidth=1, linestyle="--")
            axis.set_title(f"{source}, {label}: rank correlation {correlation(-objective, accuracy)}", fontsize=8)
            axis.set_xlabel("objective/value, mean over seeds (smaller is better)", fontsize=8)
            axis.set_ylabel("balanced accuracy of a linear probe", fontsize=8)
        for axis in axes[len(SHOWN[source]) :]:
            axis.set_axis_off()
    figure.suptitle("The default objective against linear probes; dashed: chance", fontsize=11)
    path = EVIDENCE / "objective.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(path)


if __name__ == "__main__":
    main()
