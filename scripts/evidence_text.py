"""Intervals and Markdown tables of the benchmarks under scripts/evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

RESAMPLES = 2000
BARS = "▏▎▍▌▋▊▉█"


def interval(
    sample: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float, float]:
    """95 % percentile bootstrap interval; `statistic` takes resamples [R, N, ...] of the sample [N, ...] -> [R]."""
    rng = np.random.default_rng(0)
    drawn = sample[rng.integers(len(sample), size=(RESAMPLES, len(sample)))]
    low, high = np.nanquantile(statistic(drawn), (0.025, 0.975), method="higher")
    return float(low), float(high)


def spearman(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation over pairs [..., N, 2] -> [...]; NaN where one side is constant."""
    ranks = rankdata(pairs, axis=-2)
    ranks = ranks - ranks.mean(axis=-2, keepdims=True)
    covariance = (ranks[..., 0] * ranks[..., 1]).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = covariance / np.sqrt((ranks**2).sum(axis=-2).prod(axis=-1))
    return found


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
    """`0.81 [0.72, 0.87]`: Spearman's rank correlation and its interval over the configs; `-` where one is constant."""
    pairs = np.stack([first, second], axis=-1)
    found = spearman(pairs)
    if np.isnan(found):
        return "-"
    low, high = interval(pairs, spearman)
    return f"{found:.2f} [{low:.2f}, {high:.2f}]"


def bar(share: float, width: int = 16) -> str:
    """A bar of characters as long as the share of the width."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return BARS[-1] * (eighths // 8) + (BARS[eighths % 8 - 1] if eighths % 8 else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
