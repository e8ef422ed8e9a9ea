"""Names of files in a run's folder that several modules know of. Needs no torch."""

from __future__ import annotations

from pathlib import Path

LAST = Path("checkpoint") / "last.pt"
PREVIOUS = "previous.pt"  # beside it: the checkpoint before
