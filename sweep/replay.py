"""Trials replayed from a table of real ones: every epoch's metrics of a config, in microseconds, without training.

The table (scripts/make_replay_table.py) holds trials over alpha, base_lr and mask_ratio. Over these a smooth surface is
laid through the measured metrics of every epoch; what a trial deviates from it by is its noise. A replayed trial is the
surface at its own config, plus the whole deviation of one real trial, so that epochs and metrics belong together as
in that one. From what was measured, the other metrics follow by their formulas (model/metrics.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from sweep.objective import Objective, ObjectiveSettings
from sweep.replay_table import MEASURED, Array, ReplayTable

REPLAYED = (
    "epoch/train_loss",
    "epoch/best_loss_so_far",
    "epoch/loss_static",
    "epoch/loss_dynamic",
    "epoch/loss_ratio",
    "epoch/weighted_static",
    "epoch/weighted_dynamic",
    "epoch/actual_static_contribution",
    "epoch/actual_dynamic_contribution",
    "eval/loss_static",
    "eval/loss_recon",
    "eval/loss_pred",
    "eval/loss_dynamic",
    "eval/reference_loss",
    "objective/value",
    "objective/loss",
    "objective/imbalance",
    "objective/instability",
    "summary/best_loss",
)
STRETCH = np.array([1.0, 2.0, 1.0])  # losses bend about twice as fast along log base_lr as along the others
CONSTANT = 1e-12  # a sum of squares below it is rounding
NEAR = 0.25  # share of the table's trials that lend their deviations to a place: noise grows with base_lr
MARGIN = 0.1  # of a parameter's range: so far beyond the outermost trials is the surface still trusted
SMOOTHINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


class Surface:
    """Curves over the space: cubic radial basis functions, smoothed as leaving out one point after the other tells.

    Args:
        configs: alpha, base_lr, mask_ratio of each point [P, 3].
        curves: mean curves of each point [P, K].
        counts: trials behind each mean [P].

    Attributes:
        smoothing: the one with the least error at the point that was left out.
        r2: share of the variance over the points that is foretold for the point that was left out [K].
        leverages: weight of each point's own mean in the surface there [P].
    """

    def __init__(self, configs: Array, curves: Array, counts: NDArray[np.int64]) -> None:
        places = _scaled(configs)
        self._low, self._high = places.min(axis=0), places.max(axis=0)
        units = self.units(configs)
        variances = np.maximum(((curves - curves.mean(axis=0)) ** 2).sum(axis=0), CONSTANT)
        least = math.inf
        for smoothing in SMOOTHINGS:
            hat = self._fit(units, np.eye(len(units)), smoothing / counts)(units)
            leverages = np.diag(hat)
            left_out = (curves - hat @ curves) / (1 - leverages)[:, None]
            errors = (left_out**2).sum(axis=0) / variances
            if errors.mean() < least:
                least, self.smoothing, self.leverages, self.r2 = errors.mean(), smoothing, leverages, 1 - errors
        self._curves = self._fit(units, curves, self.smoothing / counts)

    def __call__(self, configs: Array) -> Array:
        """Configs [B, 3] -> curves [B, K]."""
        curves: Array = self._curves(self.units(configs))
        return curves

    def units(self, configs: Array) -> Array:
        """Configs [B, 3] -> where they lie in the space that distances are measured in [B, 3]."""
        units: Array = STRETCH * (_scaled(configs) - self._low) / (self._high - self._low)
        return units

    @staticmethod
    def _fit(units: Array, curves: Array, smoothing: Array) -> RBFInterpolator:
        return RBFInterpolator(units, curves, kernel="cubic", smoothing=smoothing, degree=1)


class Replay:
    """Replays trials of a table.

    Attributes:
        noise: deviations of the table's trials from the surface [N, E, M], in logarithms.
        r2: by name of MEASURED, how well the surface foretells each epoch of a point that it has not seen [E].
    """

    def __init__(self, table: ReplayTable) -> None:
        self.table = table
        logs = table.logs.reshape(len(table.points), -1)
        _, first, point, counts = np.unique(table.points, return_index=True, return_inverse=True, return_counts=True)
        means = np.zeros((len(first), logs.shape[1]))
        np.add.at(means, point, logs)
        self._surface = Surface(table.configs[first], means / counts[:, None], counts)
        self._shape = table.logs.shape[1:]
        self.r2 = dict(zip(MEASURED, self._surface.r2.reshape(self._shape).T, strict=True))
        # the surface leans towards each point's own trials, so that these deviate from it by less than others would
        shrunk = np.sqrt(np.clip(1 - self._surface.leverages / counts, 0.1, 1))
        deviations = logs - self._surface(table.configs)
        self.noise = (deviations / shrunk[point][:, None]).reshape(-1, *self._shape)
        self._units = self._surface.units(table.configs)

    def ends(self, name: str) -> tuple[float, float]:
        """Least and greatest value of a parameter in the table."""
        values = self.table.columns[name]
        return float(values.min()), float(values.max())

    def covers(self, name: str, value: float) -> bool:
        """Whether the table knows of trials near this value of a parameter."""
        low, high = self.ends(name)
        if name == "base_lr":
            low, high, value = math.log(low), math.log(high), math.log(value)
        margin = MARGIN * (high - low)
        return low - margin <= value <= high + margin

    def trial(
        self, alpha: float, base_lr: float, mask_ratio: float, settings: ObjectiveSettings, noise: int | None = None
    ) -> list[dict[str, float]]:
        """The epoch rows of a trial, objective included.

        Args:
            alpha, base_lr, mask_ratio: its config; beta is 1 - alpha.
            settings: of the objective.
            noise: which of the table's nearest trials lends its deviation, modulo their number; None replays the
                surface itself.
        """
        config = np.array([[alpha, base_lr, mask_ratio]])
        logs = self._surface(config).reshape(self._shape)
        if noise is not None:
            distances = ((self._units - self._surface.units(config)) ** 2).sum(axis=1)
            near = np.argsort(distances, kind="stable")[: math.ceil(NEAR * len(distances))]
            logs = logs + self.noise[near[noise % len(near)]]
        return epoch_rows(np.exp(logs), alpha, settings)


def epoch_rows(measured: Array, alpha: float, settings: ObjectiveSettings) -> list[dict[str, float]]:
    """MEASURED by epoch [E, M] of a trial whose beta is 1 - alpha -> its epoch rows, REPLAYED by name and epoch."""
    rows = []
    best, objective = math.inf, Objective(settings)
    for epoch, (static, dynamic, held_static, held_recon, held_pred, ratio, spread) in enumerate(measured.tolist()):
        weighted_static, weighted_dynamic = alpha * static, (1 - alpha) * dynamic
        total = weighted_static + weighted_dynamic
        best = min(best, total)
        held_dynamic = held_recon + held_pred
        row = {
            "epoch": epoch,
            "epoch/train_loss": total,
            "epoch/best_loss_so_far": best,
            "epoch/loss_static": static,
            "epoch/loss_dynamic": dynamic,
            "epoch/loss_ratio": ratio,
            "epoch/weighted_static": weighted_static,
            "epoch/weighted_dynamic": weighted_dynamic,
            "epoch/actual_static_contribution": weighted_static / total,
            "epoch/actual_dynamic_contribution": weighted_dynamic / total,
            "eval/loss_static": held_static,
            "eval/loss_recon": held_recon,
            "eval/loss_pred": held_pred,
            "eval/loss_dynamic": held_dynamic,
            "eval/reference_loss": 0.5 * held_static + 0.5 * held_dynamic,
        }
        for side in (1 - spread, 1 + spread):  # two ratios that have exactly this mean and relative spread
            objective.add_batch({"batch/epoch": epoch, "batch/loss_ratio": side * ratio})
        rows.append(row | objective.end_epoch(row) | {"summary/best_loss": best})
    return rows


def _scaled(configs: Array) -> Array:
    """Configs [B, 3] with the logarithm of base_lr in its place."""
    alpha, base_lr, mask_ratio = configs.T
    return np.stack([alpha, np.log(base_lr), mask_ratio], axis=1)
