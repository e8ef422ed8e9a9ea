"""Hyperparameter sweeps of the joint tactile MAE: Ray Tune runs the trials, Optuna searches, W&B records.

>>> from sweep import load_results
>>> sweep = load_results("results/alpha_beta")
>>> sweep.trials, sweep.batches, sweep.epochs        # pandas tables
>>> sweep.best, sweep.conclusion, sweep.figures      # the best trial, the confirmed answer, plotly figures
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.tables import SweepTables

__all__ = ["load_results"]


def load_results(folder: str | Path) -> SweepTables:
    """A results folder, for a notebook: its tables, best trial, conclusion and figures (sweep/tables.py).

    Raises UserError where the folder holds no sweep.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "IProgress not found"
        )  # Optuna's progress bars, in a notebook: none are shown
        from sweep.tables import SweepTables  # pandas, optuna: a second that other imports of this package need not

    return SweepTables(Path(folder).expanduser())
