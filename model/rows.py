"""The rows of metrics.md, from the few numbers of an update: pure arithmetic in float64, so its identities are exact.

A value whose inputs were not computed (a branch left out in modes 0 and 1), or that would divide by 0, is absent.
"""

from __future__ import annotations

from dataclasses import dataclass

from model import metrics


@dataclass(frozen=True)
class Update:
    """What one gradient update left: the means of its micro-batches, and the weights that it was made with."""

    iteration: int
    epoch: int
    lr: float
    mode: int
    alpha: float
    beta: float
    static: float | None
    recon: float | None
    pred: float | None

    @property
    def dynamic(self) -> float | None:
        """`recon + pred`, exactly."""
        return None if self.recon is None or self.pred is None else self.recon + self.pred


def batch_row(update: Update) -> dict[str, float]:
    """The batch metrics (16 in joint mode) of an update."""
    weighted_static = _times(update.alpha, update.static)
    weighted_dynamic = _times(update.beta, update.dynamic)
    total = (weighted_static or 0.0) + (weighted_dynamic or 0.0)
    values = (
        total,
        update.lr,
        update.epoch,
        update.iteration,
        update.static,
        update.dynamic,
        update.recon,
        update.pred,
        _ratio(update.static, update.dynamic),
        weighted_static,
        weighted_dynamic,
        update.alpha,
        update.beta,
        _ratio(weighted_static, total),
        _ratio(weighted_dynamic, total),
        update.mode,
    )
    return _present(metrics.BATCH_NAMES, values)


def epoch_row(epoch: int, means: Means, lr: float, best: float) -> dict[str, float]:
    """The epoch metrics (11 where both losses were computed).

    Args:
        means: of the epoch's batch rows.
        lr: of its last update.
        best: smallest mean `loss_total` of an epoch so far, this one included.
    """
    static, dynamic = means.mean("batch/weighted_static"), means.mean("batch/weighted_dynamic")
    total = None if static is None or dynamic is None else static + dynamic
    values = (
        epoch,
        means.mean("batch/loss_total"),
        lr,
        best,
        means.mean("batch/loss_static"),
        means.mean("batch/loss_dynamic"),
        means.mean("batch/loss_ratio"),
        static,
        dynamic,
        _ratio(static, total),
        _ratio(dynamic, total),
    )
    return _present(metrics.EPOCH_NAMES, values)


class Means:
    """Running means of the batch metrics of an epoch; of each, over the rows that have it."""

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    def add(self, row: dict[str, float]) -> None:
        """Take one batch row."""
        for name, value in row.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float | None:
        """The mean of a metric; None where no row had it."""
        return self.sums[name] / self.counts[name] if name in self.counts else None


def _times(weight: float, loss: float | None) -> float | None:
    return None if loss is None else weight * loss


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _present(names: tuple[str, ...], values: tuple[float | None, ...]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}
