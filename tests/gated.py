"""`python -m tests.gated SPEC ...`: sweep.run, whose real workers stop at gates until the test lets them go.

A gate is a file in the folder that GATES names, TRIAL-EPOCHS: after so many epochs, before Ray is told of the last one,
the worker writes its process number to TRIAL-EPOCHS.reached and waits until the gate is taken away.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep import tuner
from sweep.run import main
from sweep.searcher import EPOCHS
from sweep.trainable import SweepTrainable, _noted
from sweep.tuner import RayTune, Search

GATES = "TESTS_GATES"


class Gates:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.env = {GATES: str(folder)}

    def shut(self, gate: str) -> None:
        """Nobody comes by, from now on."""
        (self.folder / gate).touch()

    def reached(self, gate: str) -> bool:
        """Whether a worker waits there."""
        return self._mark(gate).exists()

    def take_worker(self, gate: str) -> int:
        """The number of the process that waits there; another one may come there later."""
        number = int(self._mark(gate).read_text())
        self._mark(gate).unlink()
        return number

    def open(self, gate: str) -> None:
        """Who waits there goes on."""
        (self.folder / gate).unlink()

    def _mark(self, gate: str) -> Path:
        return self.folder / f"{gate}.reached"


class GatedTrainable(SweepTrainable):
    """A worker that stops at gates."""

    def step(self) -> dict[str, Any]:
        result = super().step()
        gate = Path(os.environ[GATES]) / f"{self.config['trial']}-{result.get(EPOCHS)}"
        if gate.exists():
            scratch = gate.with_suffix(".scratch")
            scratch.write_text(str(os.getpid()))
            scratch.replace(f"{gate}.reached")
            with _noted(signal.SIGTERM, self._terminated):  # a gate is within a step: Ray does not end the worker
                while gate.exists():
                    time.sleep(0.02)
        return result


class GatedRay(RayTune):
    """Ray with such workers."""

    def fit(self, search: Search) -> None:
        super().fit(replace(search, trainable=GatedTrainable))


if __name__ == "__main__":
    tuner.ENGINE = GatedRay()
    sys.exit(main())
