"""History -> objective value and its parts (metrics.md, Objective). Pure: rows in, numbers out.

    value = loss + contribution_weight * imbalance + ratio_weight * instability

`Objective` is fed rows as they come and does work for the current epoch only; `score` is the same on a whole history.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from model.sinks import Row

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_LOSS_METRIC = {"reference": "eval/reference_loss", "train": "epoch/train_loss"}


class ObjectiveSettings(BaseModel):
    """The spec's `objective` block: what `objective/value` is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Literal["reference", "train"] = "reference"
    """`reference`: best eval/reference_loss, comparable across trials. `train`: best epoch/train_loss, which is not
    comparable across alpha, beta and mask ratio."""
    contribution_weight: NonNegative = 0.5
    """Weight of objective/imbalance."""
    ratio_weight: NonNegative = 0.5
    """Weight of objective/instability."""
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The static loss's share of the total that counts as balanced."""
    settle_epochs: Annotated[int, Field(ge=0)] = 1
    """First epoch (from 0) whose imbalance and instability count."""


class Objective:
    """The objective of one trial, epoch by epoch.

    Feed `add_batch` with every batch row and `end_epoch` with every epoch row, in order. The cost of an epoch depends
    on its own batches only, not on the trial's length.

    A part that has no input (no ratio in a trial of mode 0 or 1, for example) is left out of the result and counts 0.
    A part's weight of 0 keeps the part in the result and out of the value.

    Attributes:
        diverged: why the trial has no value (metric, value, epoch), or None. The first non-finite number in any row
            decides; `objective/value` is NaN from then on.
    """

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings
        self.diverged: str | None = None
        self._best_loss = math.inf
        self._ratios: dict[int, list[float]] = {}  # of epochs that have not ended
        self._imbalance = _SettledMean(settings.settle_epochs)
        self._instability = _SettledMean(settings.settle_epochs)

    @classmethod
    def replay(cls, epochs: Iterable[Row], batches: Iterable[Row], settings: ObjectiveSettings) -> Self:
        """The objective as it stood after these rows: how a resumed trial gets its own back."""
        objective = cls(settings)
        by_epoch: dict[int, list[Row]] = {}
        for batch in batches:
            by_epoch.setdefault(int(batch["batch/epoch"]), []).append(batch)
        for epoch in epochs:
            for batch in by_epoch.get(int(epoch["epoch"]), []):
                objective.add_batch(batch)
            objective.end_epoch(epoch)
        return objective

    def add_batch(self, row: Row) -> None:
        """Take one batch row (one gradient update)."""
        self._note_divergence(row, int(row["batch/epoch"]))
        if "batch/loss_ratio" in row:
            self._ratios.setdefault(int(row["batch/epoch"]), []).append(row["batch/loss_ratio"])

    def end_epoch(self, row: Row) -> dict[str, float]:
        """Take an epoch row, `eval/...` included, and return `values()` after it. Raises KeyError without a loss."""
        epoch = int(row["epoch"])
        self._note_divergence(row, epoch)
        ratios = self._ratios.pop(epoch, [])
        loss = row[_LOSS_METRIC[self.settings.loss]]
        if self.diverged is None:
            self._best_loss = min(self._best_loss, loss)
            if "epoch/actual_static_contribution" in row:
                share = row["epoch/actual_static_contribution"]
                self._imbalance.add(epoch, abs(share - self.settings.target))
            if ratios:
                self._instability.add(epoch, relative_spread(ratios))
        return self.values()

    def values(self) -> dict[str, float]:
        """The `objective/...` metrics after the last epoch; only `objective/value`, NaN, for a diverged trial."""
        if self.diverged is not None:
            return {"objective/value": math.nan}
        parts = {"objective/imbalance": self._imbalance.mean, "objective/instability": self._instability.mean}
        present = {name: part for name, part in parts.items() if part is not None}
        value = (
            self._best_loss
            + self.settings.contribution_weight * present.get("objective/imbalance", 0.0)
            + self.settings.ratio_weight * present.get("objective/instability", 0.0)
        )
        return {"objective/value": value, "objective/loss": self._best_loss, **present}

    def _note_divergence(self, row: Row, epoch: int) -> None:
        if self.diverged is None:
            inputs = {name: number for name, number in row.items() if not name.startswith("objective/")}
            bad = next((name for name, number in inputs.items() if not math.isfinite(number)), None)
            if bad is not None:
                self.diverged = f"{bad} = {row[bad]} in epoch {epoch}"


class _SettledMean:
    """Mean over the settled epochs; over the last epoch alone while none is settled yet."""

    def __init__(self, settle_epochs: int) -> None:
        self._settle_epochs = settle_epochs
        self._sum = 0.0
        self._count = 0
        self._unsettled: float | None = None

    def add(self, epoch: int, part: float) -> None:
        if epoch >= self._settle_epochs:
            self._sum += part
            self._count += 1
        else:
            self._unsettled = part

    @property
    def mean(self) -> float | None:
        return self._sum / self._count if self._count else self._unsettled


def relative_spread(ratios: Sequence[float]) -> float:
    """std / mean of non-negative numbers; std is the population's (ddof = 0). Zeros alone have no spread: 0."""
    largest = max(ratios)
    if largest == 0:
        return 0.0
    scaled = [ratio / largest for ratio in ratios]  # the spread has no scale; squares of scaled numbers do not overflow
    mean = math.fsum(scaled) / len(scaled)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in scaled) / len(scaled)) / mean


def score(epochs: Sequence[Row], batches: Sequence[Row], settings: ObjectiveSettings) -> dict[str, float]:
    """The `objective/...` values after the last of `epochs` (in order); batches of other epochs do not matter.

    Raises ValueError where there is no epoch: an objective exists from the first epoch's end on.
    """
    if not epochs:
        raise ValueError("no epoch has ended: the objective is reported at epoch ends")
    return Objective.replay(epochs, batches, settings).values()
