"""The diagnosis of a trial under way: each rule speaks at its first firing, and again where its severity rises. Pure.

The rules are those of sweep/diagnosis.py. What they say too early is not told: the balance of the losses is judged from
the second epoch on (the first belongs to the warm-up), and whether the losses fall once as many epochs as a quick test
has, and the warm-up of the learning rate, are over. A shorter trial is judged at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from model.config import TrainConfig
from model.sinks import Row
from sweep.diagnosis import RECENT_EPOCHS, SETTLE_EPOCHS, Finding, findings_of
from sweep.diagnosis_rows import BatchDigest
from sweep.limits import Rule, Severity

AT_ONCE = frozenset({Rule.NOT_FINITE, Rule.JUMPS})


class LiveDiagnosis:
    """What is new in a trial's diagnosis. Feed it every row in order; ask at each epoch's end.

    Args:
        config: of the trial.
        told: what earlier parts of the trial said: the rules, and the severity of each.
    """

    def __init__(self, config: TrainConfig, told: Mapping[Rule, Severity] | None = None) -> None:
        self._config = config
        self.told = dict(told or {})
        self._epochs: list[Row] = []
        self._batches = BatchDigest()

    def replay(self, epochs: Iterable[Row], batches: Iterable[Row]) -> None:
        """Take the rows of the trial's earlier parts; nothing is said of them."""
        self._epochs += epochs
        for row in batches:
            self._batches.add(row)

    def add_batch(self, row: Row) -> None:
        """Take the row of an update."""
        self._batches.add(row)

    def add_epoch(self, row: Row) -> None:
        """Take the row of an epoch that has ended."""
        self._epochs.append(row)

    def news(self) -> list[Finding]:
        """The findings that were not told yet, or with a lower severity; they count as told from here on."""
        new = []
        for found in findings_of(self._epochs, self._batches, self._config):
            told = self.told.get(found.rule)
            if self._is_due(found.rule) and (told is None or found.severity.rank > told.rank):
                self.told[found.rule] = found.severity
                new.append(found)
        return new

    def _is_due(self, rule: Rule) -> bool:
        ended = len(self._epochs)
        if rule in AT_ONCE or ended >= self._config.epochs:
            return True
        if rule is Rule.NOT_FALLING:
            return ended >= max(RECENT_EPOCHS, self._config.warmup_epochs + 1)
        return ended > SETTLE_EPOCHS
