"""Trials that are run one by one, by W&B's agents or by hand: a results folder without a driver.

Processes that know nothing of each other share it. Each of them claims its trial by a key (the W&B run's id; by hand,
what the trial trains), so that a run that is started again finds its checkpoint, and enters what became of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from model.config import TrainConfig
from model.configfile import field_value
from model.errors import ConfigError, UserError
from model.sinks import write_json
from sweep.candidates import how_to_confirm
from sweep.plan import first_trials
from sweep.results import RUNS, ResultsFolder
from sweep.spec import SweepSpec
from sweep.study import Outcome, Record, Values
from sweep.trial_table import TrialTable

LOCK_LIMIT_S = 60.0  # a trial holds the lock for some milliseconds


class TrialsFolder:
    """The results folder `path` of single trials of `spec`.

    Raises ConfigError (from each method) where the folder belongs to another spec or to a sweep with a driver, or
    cannot be written to.
    """

    def __init__(self, path: Path, spec: SweepSpec) -> None:
        self._spec = spec
        self.results = ResultsFolder(path)
        self._runs_file = self.results.path / RUNS
        self._lock = FileLock(self.results.path / ".runs.lock")

    def claim(self, key: str, config: TrainConfig) -> Record:
        """The trial with this key, as RUNNING: a new one, or the one that was begun with it before."""
        content = config.model_dump(mode="json")
        space = self._spec.space
        every = {name: field_value(content, name) for name in space.parameters}
        every = {name: value for name, value in every.items() if value is not None}
        values = {name: value for name, value in every.items() if space.matters(name, every | space.constants)}
        with self._alone():
            runs = self._runs()
            if key not in runs:
                runs[key] = f"{len(runs):04d}"
                write_json(self._runs_file, runs)
            record = self._record(runs[key], values, Outcome.RUNNING)
            self._enter(record)
        return record

    def ended(
        self,
        record: Record,
        config: TrainConfig,
        outcome: Outcome,
        value: float | None = None,
        epochs: int = 0,
        reason: str | None = None,
    ) -> Record:
        """Keep what became of a trial: its row of trials.csv, and best.yaml where it is the best so far."""
        done = Record(
            number=record.number,
            trial=record.trial,
            values=record.values,
            preset=record.preset,
            outcome=outcome,
            value=value,
            epochs=epochs,
            reason=reason,
        )
        with self._alone():
            table = self._enter(done)
            if outcome is Outcome.COMPLETE and not self._spec.metrics and table.best() == record.number:
                self._write_best(done, config)
        return done

    def refresh(self, record: Record) -> None:
        """Bring the row of a trial that was interrupted up to date."""
        with self._alone():
            self._enter(record)

    @property
    def uid(self) -> str:
        """Tells this folder's trials apart from those of another with the same sweep name."""
        return str(self.results.provenance().get("uid", ""))

    def _record(self, trial: str, values: Values, outcome: Outcome) -> Record:
        return Record(int(trial), trial, values, self._preset(values), outcome, None, 0, None)

    def _preset(self, values: Values) -> str | None:
        for name, preset in first_trials(self._spec):
            if name is not None and all(values.get(key) == value for key, value in preset.items()):
                return name
        return None

    def _write_best(self, record: Record, config: TrainConfig) -> None:
        from sweep.trial import config_text  # imports torch

        folder = self.results.path
        head = f"# {how_to_confirm(self._spec, folder)}\n"
        about = f"best of {folder.name} (trial {record.trial}, {self._spec.metric.name} {record.value:.6g})"
        self.results.write_best(head + config_text(config, about))

    def _enter(self, record: Record) -> TrialTable:
        table = TrialTable(self.results, self._spec)
        table.load()
        table.update(record)
        table.write()
        return table

    def _runs(self) -> dict[str, str]:
        try:
            content = json.loads(self._runs_file.read_text(encoding="utf-8"))
            return {str(key): str(trial) for key, trial in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self._runs_file}: damaged ({error}); restore it, or give another --results DIR"
            ) from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Alone among the processes that share the folder; makes it, or checks that it is one of this spec."""
        folder = self.results
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_LIMIT_S)
        except Timeout:
            raise ConfigError(
                f"results: another process has held the lock of {folder.path} for {LOCK_LIMIT_S:.0f} s; end it, or "
                "give another folder with --results DIR"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"results: cannot write to {folder.path}: {error}. Choose a folder with --results DIR"
            ) from None
        try:
            known = folder.spec_file.exists()
            folder.check(self._spec, resume=known, single=True)
            if not known:
                folder.write_spec(self._spec)
            if not folder.provenance().get("uid"):  # new, or whoever began it was killed here
                folder.write_provenance(self._spec)
            yield
        finally:
            self._lock.release()
