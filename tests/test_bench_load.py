"""The benchmark of large sweeps runs, and looks for every row. Nothing is timed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/bench_load.py"


@pytest.mark.slow
def test_a_small_load_runs_to_its_end_with_all_rows() -> None:
    command = [sys.executable, str(SCRIPT), "--trials", "10", "--concurrent", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "the driver's cost" in done.stdout
    assert "10 trials (" in done.stdout
    assert "each row is in its CSV file once" in " ".join(done.stdout.split())
