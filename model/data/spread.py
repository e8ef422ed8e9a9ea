"""Some of many, evenly spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spread(count: int, at_most: int) -> NDArray[np.int64]:
    """At most so many of the numbers 0..count-1, at even distances, ascending: int64 [min(count, at_most)]."""
    kept = min(count, at_most)
    return ((np.arange(kept) + 0.5) * (count / max(kept, 1))).astype(np.int64)
