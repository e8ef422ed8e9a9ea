"""How many threads decode frames: the share of the machine that this process was given."""

from __future__ import annotations

import os

MAX_THREADS = 8  # more decode no more frames a second


def decoding_threads() -> int:
    """OMP_NUM_THREADS, which says what share of the cores a process has (Ray sets it to a trial's), else all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    share = int(given) if given.isascii() and given.isdigit() and int(given) > 0 else os.cpu_count() or 1
    return min(MAX_THREADS, share)
