"""Confirmation: the best configs of a search and the presets, trained again with fresh seeds and to their end.

The runs are trials of a second study in the sweep's journal, so they are resumed, retried and recorded as the search's
are; their ids start with c. A run belongs to its config and seed, not to its place: after more search trials, another
top_k or more seeds, what was trained before counts, and only what is missing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from sweep.candidates import Candidates, pick
from sweep.conclusion import SEED, Conclusion, conclude, config_key
from sweep.results import ResultsFolder
from sweep.space import Space
from sweep.spec import SweepSpec
from sweep.study import Record, Suggestion, SweepStudy, Values

PREFIX = "c"  # of the runs' ids
ALL_SEEDS = {"min": 0, "max": 2**31 - 1}  # not the spec's few: Optuna keeps a study's ranges for good


class Confirmation(SweepStudy):
    """The study of the confirmation runs: its suggestions are the pairs of config and seed that are missing.

    Pairs come seed by seed, so that an interrupted confirmation has compared its configs on the same seeds. None is
    enqueued before it is handed out: a confirmation that goes on with other candidates finds no stale queue.

    Args:
        folder: the results folder.
        spec: with `confirm`.
        records: of the search.

    Raises:
        ValueError, LookupError, OSError: the journal cannot be used.
    """

    def __init__(self, folder: ResultsFolder, spec: SweepSpec, records: Sequence[Record]) -> None:
        assert spec.confirm is not None
        super().__init__(
            folder.path,
            f"{spec.name}.confirm",
            Space({**spec.parameters, SEED: ALL_SEEDS}, spec.search.conditions),
            sampler="random",
            goals=[spec.metric.goal],
            prefix=PREFIX,
        )
        self.candidates: Candidates = pick(spec, records)
        self._metric = spec.metric
        self._seeds = spec.confirm.seeds
        self._pairs: list[tuple[str, Values]] = [
            (candidate.name, {**candidate.values, SEED: seed})
            for seed in spec.confirm.seeds
            for candidate in self.candidates.configs
        ]

    @property
    def num_runs(self) -> int:
        """Runs of the whole confirmation."""
        return len(self._pairs)

    @property
    def to_run(self) -> int:
        """Runs that this session has still to start or to go on with."""
        return self.unfinished + len(self._missing())

    def next(self) -> Suggestion:
        """A run that an earlier driver left unfinished, else the first pair that was never begun."""
        if not self.unfinished and not self.waiting:
            self.enqueue(*self._missing()[0])
        return super().next()

    def conclude(self) -> Conclusion:
        """What the runs show until now."""
        return conclude(self._metric, self._seeds, self.candidates, self.records())

    def _missing(self) -> list[tuple[str, Values]]:
        begun = {config_key(record.values) for record in self.records()}
        return [(name, values) for name, values in self._pairs if config_key(values) not in begun]
