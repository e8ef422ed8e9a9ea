"""What the diagnosis rules need of a run's rows; of the batch rows a digest that takes them one by one. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from model.sinks import Row

JUMP_WINDOW = 32  # values of which the running median is taken
JUMP_HISTORY_EPOCHS, JUMP_HISTORY_BATCHES = 1, 8  # values that a median needs; single batches are noisy
# not batch/loss_total: in modes 0 and 1 it is now the one loss, now the other
JUMPING = ("batch/loss_static", "batch/loss_dynamic")
AVERAGED = ("batch/loss_recon", "batch/loss_pred")  # which no epoch row has

Reading = tuple[int, float]  # (epoch, value)
Place = tuple[int, str, float]  # (epoch, metric, value)


class BatchDigest:
    """What the rules need of batch rows. Its size grows with the epochs, not with the updates.

    Attributes:
        weights: (alpha, beta) of the last row; NaN where it does not tell.
        first_bad, last_bad: of the values that are not finite, the first one of the first and of the last epoch that
            has one; None where all are finite.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.weights = (math.nan, math.nan)
        self.first_bad: Place | None = None
        self.last_bad: Place | None = None
        self._before: dict[str, deque[float]] = {name: deque(maxlen=JUMP_WINDOW) for name in JUMPING}
        self._highest: dict[str, dict[int, float]] = {name: {} for name in JUMPING}
        self._sums: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in AVERAGED}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Take the next row."""
        epoch = epoch_of(row)
        self.weights = (row.get("batch/alpha", math.nan), row.get("batch/beta", math.nan))
        bad = first_not_finite(row)
        if bad is not None:
            if self.first_bad is None or epoch < self.first_bad[0]:
                self.first_bad = bad
            if self.last_bad is None or epoch > self.last_bad[0]:
                self.last_bad = bad
        for name, before in self._before.items():
            value = row.get(name)
            if value is None or not math.isfinite(value):
                continue
            if len(before) >= JUMP_HISTORY_BATCHES and (usual := median(before)) > 0:
                highest = self._highest[name]
                highest[epoch] = max(highest.get(epoch, -math.inf), value / usual)
            before.append(value)
        for name, sums in self._sums.items():
            value = row.get(name)
            if value is not None and math.isfinite(value):
                total, count = sums.get(epoch, (0.0, 0))
                sums[epoch] = total + value, count + 1

    def jumps(self) -> list[tuple[Reading, str]]:
        """Per epoch and loss: the highest value over the median of those just before it, and the metric's name."""
        return [((epoch, times), name) for name, highest in self._highest.items() for epoch, times in highest.items()]

    def means(self, name: str, epochs: Iterable[int]) -> list[Reading]:
        """The mean of a metric of AVERAGED in each of these epochs that has it."""
        sums = self._sums[name]
        return [(epoch, sums[epoch][0] / sums[epoch][1]) for epoch in epochs if epoch in sums]


def epoch_of(row: Row) -> int:
    """The epoch that a row belongs to."""
    return int(row["epoch"] if "epoch" in row else row["batch/epoch"])


def first_not_finite(row: Row) -> Place | None:
    """The first value of a row that is NaN or infinite; not objective/..., NaN by design for a diverged trial."""
    for name, value in row.items():
        if not math.isfinite(value) and not name.startswith("objective/"):
            return epoch_of(row), name, value
    return None


def readings_of(rows: Iterable[Row], name: str) -> list[Reading]:
    """The finite values of a metric."""
    return [(epoch_of(row), row[name]) for row in rows if name in row and math.isfinite(row[name])]


def mean(values: Sequence[float]) -> float:
    """Not fmean, which raises OverflowError on what a diverging run can log."""
    return sum(values) / len(values)


def over_running_median(values: Sequence[Reading]) -> list[Reading]:
    """Of epochs: every value over the median of those just before it, from the second on."""
    result = []
    for index in range(JUMP_HISTORY_EPOCHS, len(values)):
        epoch, value = values[index]
        usual = median(before for _, before in values[max(0, index - JUMP_WINDOW) : index])
        if usual > 0:
            result.append((epoch, value / usual))
    return result
