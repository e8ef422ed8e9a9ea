"""Early stopping behind Optuna's pruner interface, for studies that are driven without Ray; the rules are those of
sweep/early_stopping.py. Several epochs, of several trials, may have arrived since the last look.
"""

from __future__ import annotations

import math
from collections import Counter

from optuna.pruners import BasePruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from sweep.early_stopping import EarlyStopping, early_stopping
from sweep.spec import SweepSpec

# attributes of a trial
PRESET = "preset"  # name of the preset that it came from, if any
EPOCHS = "epochs"  # how many its config has


class EpochPruner(BasePruner):
    """A trial's step is its epoch, from 0; PRESET and EPOCHS are its attributes."""

    def __init__(self, stopping: EarlyStopping) -> None:
        self._stopping = stopping
        self._seen: Counter[int] = Counter()  # values that were told, by trial
        self._stopped: set[int] = set()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell the rule what is new in the whole study; whether it has said that this trial should stop."""
        for other in study.get_trials(deepcopy=False):
            self._catch_up(other)
        return trial.number in self._stopped

    def _catch_up(self, trial: FrozenTrial) -> None:
        number, values = trial.number, trial.intermediate_values
        if number in self._stopped or self._seen[number] == len(values):
            return
        last, preset = trial.user_attrs.get(EPOCHS, math.inf), trial.user_attrs.get(PRESET) is not None
        for epoch in sorted(values)[self._seen[number] :]:
            self._seen[number] += 1
            if self._stopping.stops(number, epoch + 1, values[epoch], preset=preset) and epoch + 1 < last:
                self._stopped.add(number)  # what it did later, until it was really stopped, would not be there in Ray
                return


def make_pruner(spec: SweepSpec) -> BasePruner:
    """The pruner of the spec's `early_terminate`; one that stops nothing where no rule would."""
    stopping = early_stopping(spec)
    return NopPruner() if stopping is None else EpochPruner(stopping)
