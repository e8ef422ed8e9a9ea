"""A small made-up replay table for the tests: losses of known formulas over 24 configs, two seeds and 8 epochs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from sweep.replay_table import MEASURED, PARAMETERS

EPOCHS = 8  # as of the ready specs
NOISE = 0.01  # of a trial's losses, in logarithms


def losses(alpha: float, base_lr: float, mask_ratio: float, epoch: int) -> dict[str, float]:
    """MEASURED without noise: best at alpha 0.5 and base_lr 0.02, falling from epoch to epoch."""
    far = (alpha - 0.5) ** 2 + 0.2 * math.log(base_lr / 0.02) ** 2
    level = (1 + far) * (0.5 + 1 / (1 + epoch))
    return {
        "epoch/loss_static": level * mask_ratio,
        "epoch/loss_dynamic": 2 * level * mask_ratio,
        "eval/loss_static": level,
        "eval/loss_recon": level,
        "eval/loss_pred": 0.8 * level,
        "ratio_mean": 0.5,
        "ratio_spread": 0.02 + 0.01 * mask_ratio,
    }


def made_up_rows(points: int = 24, seeds: int = 2) -> Iterator[dict[str, Any]]:
    """The table's rows; a trial's noise is one factor for all of its losses."""
    rng = np.random.default_rng(0)
    for point, (a, b, c) in enumerate(qmc.Sobol(3, rng=rng).random_base2(5)[:points].tolist()):
        config = {"alpha": 0.1 + 0.8 * a, "base_lr": 2e-3 * 30**b, "mask_ratio": 0.5 + 0.4 * c}
        for seed in range(seeds):
            factor = math.exp(NOISE * rng.standard_normal())
            for epoch in range(EPOCHS):
                measured = losses(**config, epoch=epoch)
                noisy = {name: value * factor for name, value in measured.items() if "loss" in name}
                yield {"point": point, "seed": seed, **config, "epoch": epoch, **measured, **noisy}


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table with these rows; returns its path."""
    columns = list(dict.fromkeys(["point", "seed", *PARAMETERS, "epoch", *MEASURED, *(n for row in rows for n in row)]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path
