"""The population of a sweep with `search.pbt`: hands Ray the trials part by part, and turns between two parts.

To Ray a part is a trial that ends. So nothing of Ray's pausing or of its checkpoints is needed: a part goes on from the
checkpoint in its trial's folder, as any trial that was interrupted. (Ray's own PopulationBasedTraining refuses a
searcher, copies weights from other epochs, and gives the copying trial the id of the copied one.)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.errors import ConfigError, UserError
from model.folder import LAST
from model.sinks import write_json
from sweep.pbt import COPIED, Change, turn
from sweep.searcher import EPOCHS, INTERRUPTED, PAUSED, SECONDS, StudySearcher
from sweep.spec import SweepSpec
from sweep.study import SweepStudy

LEDGER = "population.json"  # in the results folder


@dataclass
class Ledger:
    """What happened to the population: all changes, and the epochs done at the last turn. A turn is written at once."""

    path: Path
    turned: int = 0
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def of(cls, results: Path) -> Ledger:
        """The ledger of a results folder; empty before the first turn. Raises UserError for a damaged one."""
        path = results / LEDGER
        if not path.exists():
            return cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, int(content["turned"]), [Change.model_validate(change) for change in content["changes"]])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); restore it from a copy: it holds the values that trials changed to"
            ) from None

    def add(self, epochs: int, changes: list[Change]) -> None:
        """Note a turn."""
        self.turned = epochs
        self.changes += changes
        dumped = [change.model_dump(mode="json") for change in self.changes]
        write_json(self.path, {"turned": epochs, "changes": dumped})

    def changes_of(self, trial: str) -> list[Change]:
        """Of one trial, in their order."""
        return [change for change in self.changes if change.trial == trial]


class _State(Enum):
    WAITING = auto()  # for a worker
    TRAINING = auto()
    PAUSED = auto()  # until all have come to the same epoch


@dataclass
class _Member:
    number: int
    suggestion: dict[str, Any]  # as the study gave it: with the values of the trial's first part
    state: _State = _State.WAITING
    seconds: float = 0.0  # of its parts in this session

    @property
    def trial(self) -> str:
        return str(self.suggestion["trial"])


class PopulationSearcher(StudySearcher):
    """Hands Ray the next part of each trial of the population.

    The whole population is asked of the study before any of it trains: later trials are not modelled on earlier ones.
    Where the driver was killed, the next one takes the same turns: what a turn needs is in the study, and what it
    did in the ledger. Trials that a raised run_cap adds train up to the others' next turn first; after the last turn,
    without any.

    Args:
        spec: with search.pbt.
        results: the sweep's folder, which the workers see too.
        study, num_trials, crash_reason: as of StudySearcher.
    """

    def __init__(
        self, spec: SweepSpec, results: Path, study: SweepStudy, num_trials: int, crash_reason: Callable[[int], str]
    ) -> None:
        assert spec.search.pbt is not None
        self._pbt, self._spec, self._results = spec.search.pbt, spec, results
        super().__init__(study, num_trials, spec.objectives, self._config, crash_reason)
        self._ledger = Ledger.of(results)
        self._members: dict[int, _Member] | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # None: not now
        """Ray's call for something to train: the next part of a trial."""
        if not self._broken:
            with self._kept():
                return self._next_part(trial_id)
        return str(self.FINISHED)

    def _next_part(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._members is None:
            self._members = self._gathered(trial_id)
        members = self._members.values()
        if self.stopping or not members:
            for member in [member for member in members if member.state is not _State.TRAINING]:
                self._study.release(self._members.pop(member.number).number, member.seconds)
            return str(self.FINISHED)
        waiting = next((member for member in members if member.state is _State.WAITING), None)
        if waiting is None:
            return None
        waiting.state = _State.TRAINING
        self._numbers[trial_id] = waiting.number
        values = self._values_of(waiting)
        return {
            **waiting.suggestion,
            "values": values,
            "config": self._config(values).model_dump(mode="json"),
            "changes": [change.model_dump(mode="json") for change in self._ledger.changes_of(waiting.trial)],
            "until": self._next_turn,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray's word that a part ended, or with it the trial."""
        if not self._broken:
            with self._kept():
                self._part_ended(trial_id, result, error)

    def _part_ended(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        assert self._members is not None
        member = self._members[self._numbers[trial_id]]
        result = {INTERRUPTED: True} if result is None else result
        member.seconds += result.get(SECONDS, 0.0)
        if result.get(PAUSED) and not error:
            self._study.report(self._numbers.pop(trial_id), result[EPOCHS] - 1, *self._values(result))
            member.state = _State.PAUSED
        else:
            if self._ledger.changes_of(member.trial):
                self._study.set_final_values(member.number, self._values_of(member))
            super().on_trial_complete(trial_id, result | {SECONDS: member.seconds}, error)
            del self._members[member.number]
        if (
            self._members
            and not self.stopping
            and all(member.state is _State.PAUSED for member in self._members.values())
        ):
            self._turn()

    @property
    def _next_turn(self) -> int:
        """Epochs that are done by then."""
        return self._ledger.turned + self._pbt.every_epochs

    def _gathered(self, ray_id: str) -> dict[int, _Member]:
        members = {}
        while isinstance(suggestion := super().suggest(ray_id), dict):
            number = self._numbers.pop(ray_id)
            members[number] = _Member(number, suggestion)
        return members

    def _turn(self) -> None:
        assert self._members is not None
        epochs, members = self._next_turn, {member.trial: member for member in self._members.values()}
        reported = self._study.intermediate_values()
        sign = 1.0 if self.mode == "min" else -1.0
        scores = {
            trial: sign * reported[member.number][epochs - 1]
            for trial, member in members.items()
            if epochs - 1 in reported[member.number]
        }
        changes = turn(
            self._pbt,
            self._spec.space.parameters,
            epochs,
            scores,
            {trial: self._values_of(member) for trial, member in members.items()},
            [trial for trial, member in members.items() if member.suggestion["preset"] is not None],
            self._spec.search.seed,
        )
        made = [change for change in changes if self._possible(members[change.trial], change) and self._copied(change)]
        self._ledger.add(epochs, made)
        for member in members.values():
            member.state = _State.WAITING

    def _possible(self, member: _Member, change: Change) -> bool:
        """Each value is good; this combination with the trial's others may not be."""
        try:
            self._config(self._values_of(member) | change.values)
        except ConfigError:
            return False
        return True

    def _copied(self, change: Change) -> bool:
        """Keep the source's checkpoint where the trial finds it, before the source trains on."""
        trials = self._results / "trials"
        source, target = trials / change.source / LAST, (trials / change.trial / LAST).with_name(COPIED)
        target.unlink(missing_ok=True)
        try:
            try:
                os.link(source, target)  # the source's next checkpoint is a new file: this one stays as it is
            except OSError:  # a file system without links
                shutil.copyfile(source, target)
        except OSError:
            return False
        return True

    def _values_of(self, member: _Member) -> dict[str, Any]:
        """The trial's values now."""
        values = dict(member.suggestion["values"])
        for change in self._ledger.changes_of(member.trial):
            values |= change.values
        return values

    def _config(self, values: dict[str, Any]) -> TrainConfig:
        return self._spec.space.to_config(self._spec.trainer, values)
