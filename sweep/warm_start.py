"""What a sweep can use of earlier ones: trials that its sampler knows from the start, or configs to try first.

A trial of an earlier sweep is known to the sampler where the present sweep could have run that very trial (see
sweep/mapping.py). It is scored anew from its rows under the present objective, so the earlier one need not match.

Where the earlier trainer differs in something that neither sweep searches, values do not compare; and some samplers
model nothing, or only what they suggested themselves. Then the earlier sweep's best configs are tried first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import DataError, UserError
from model.sinks import write_json
from sweep.mapping import NoCounterpartError, SpaceMapping
from sweep.outcome import Outcome
from sweep.pareto import pareto_front
from sweep.scored import PastTrial, check_results, past_trials, picked
from sweep.spec import SweepSpec, load_spec
from sweep.words import few

USES_PRIOR = ("auto", "tpe", "gp")  # samplers that model trials which others suggested
TRIED_FIRST = 3  # configs of each earlier sweep, where its trials cannot be prior

Values = dict[str, Any]


@dataclass(frozen=True)
class Prior:
    """A trial of an earlier sweep in terms of the present one.

    Attributes:
        source: the earlier results folder.
        trial: its id there.
        values: of every searched parameter of the present sweep, by dotted name.
        outcome: COMPLETE, PRUNED or DIVERGED.
        steps: epoch -> the present objectives after it.
    """

    source: str
    trial: str
    values: Values
    outcome: Outcome
    steps: dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class WarmStart:
    """What the earlier sweeps give.

    Attributes:
        prior: what the sampler knows.
        first: (label, values) of configs to try first; values of the searched parameters that matter.
        notes: sentences for the terminal.
    """

    prior: tuple[Prior, ...] = ()
    first: tuple[tuple[str, Values], ...] = ()
    notes: tuple[str, ...] = ()

    def save(self, file: Path) -> None:
        """Keep it, to the last bit: the earlier folders may be gone when the sweep is resumed."""
        write_json(file, asdict(self) | {"prior": [_plain(prior) for prior in self.prior]})

    @classmethod
    def load(cls, file: Path) -> WarmStart:
        """What `save` kept. Raises UserError where the file is missing or damaged."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                prior=tuple(_prior(plain) for plain in content["prior"]),
                first=tuple((str(label), dict(values)) for label, values in content["first"]),
                notes=tuple(map(str, content["notes"])),
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{file}: cannot be read ({error}); restore it from a copy, or start anew in another folder"
            ) from None


def _plain(prior: Prior) -> dict[str, Any]:
    return asdict(prior) | {"steps": [[epoch, list(values)] for epoch, values in prior.steps.items()]}


def _prior(plain: Mapping[str, Any]) -> Prior:
    steps = {int(epoch): tuple(map(float, values)) for epoch, values in plain["steps"]}
    return Prior(str(plain["source"]), str(plain["trial"]), dict(plain["values"]), Outcome(plain["outcome"]), steps)


def load_warm_start(paths: Sequence[Path], spec: SweepSpec, own: Path | None = None) -> WarmStart:
    """Read earlier results folders; they stay as they are.

    Args:
        paths: those of `search.warm_start`.
        spec: the present sweep's.
        own: the results folder of the present sweep, which cannot be an earlier one.

    Raises UserError for a path that is no results folder, is named twice or is `own`, where a file in it is damaged,
    and where a complete trial's rows lack what the present sweep optimises.
    """
    _check_paths(paths, own)
    prior: list[Prior] = []
    first: list[tuple[str, Values]] = []
    notes: list[str] = []
    for path in paths:
        there = _Earlier(path, spec)
        notes += there.notes()
        if there.is_prior:
            prior += there.trials
        else:
            first += [(label, values) for label, values in there.best() if all(values != other for _, other in first)]
    return WarmStart(tuple(prior), tuple(first), tuple(notes))


def _check_paths(paths: Sequence[Path], own: Path | None) -> None:
    seen = set()
    for path in paths:
        try:
            check_results(path)
        except UserError as error:
            raise UserError(f"search.warm_start: {error}") from None
        if own is not None and path.resolve() == own.resolve():
            raise UserError(
                f"search.warm_start: {path} is the results folder of this very sweep; name that of an earlier one, or "
                "leave it out: --resume goes on with this one"
            )
        if path.resolve() in seen:
            raise UserError(f"search.warm_start: {path} is named twice; name each folder once")
        seen.add(path.resolve())


class _Earlier:
    """One earlier results folder.

    Attributes:
        trials: those that ended, have values in the present space and, where values compare at all, are trials that the
            present sweep could have run.
    """

    def __init__(self, path: Path, spec: SweepSpec) -> None:
        self.path = path
        self.trials: list[Prior] = []
        self._spec = spec
        self._left_out: dict[str, list[str]] = {}
        self._lacking: str | None = None
        try:
            self._mapping = SpaceMapping(spec, load_spec(path / "spec.yaml"))
            for trial in past_trials(path):
                try:
                    self.trials.append(self._counterpart(trial))
                except NoCounterpartError as why:
                    self._left_out.setdefault(str(why), []).append(trial.name)
            if self._lacking is not None and not self.trials:
                raise DataError(self._lacking)
        except UserError as error:
            raise UserError(f"search.warm_start: {error}") from None

    @property
    def is_prior(self) -> bool:
        """Whether the sampler can use the trials, rather than the user's few best configs being tried first."""
        return self._spec.search.sampler in USES_PRIOR and not self._mapping.differing

    def _counterpart(self, trial: PastTrial) -> Prior:
        spec = self._spec
        scored = trial.scored(spec.objective)
        outcome = scored.outcome
        if outcome in (Outcome.RUNNING, Outcome.FAILED):
            raise NoCounterpartError("it is not finished" if outcome is Outcome.RUNNING else "it failed")
        if outcome is Outcome.PRUNED and spec.metrics:
            raise NoCounterpartError("it was stopped early, which tells nothing of several metrics")
        values = self._mapping.values(trial.config, seed=trial.name)
        if not self._mapping.differing:
            self._mapping.check_same(trial.config, values)
        names = [metric.name for metric in spec.objectives]
        if outcome is Outcome.COMPLETE and scored.value(names) is None:
            lacking = next(name for name in names if scored.value([name]) is None)
            self._lacking = (
                f"{trial.folder / 'epoch.csv'}: has no value of {lacking} after the last epoch, but this sweep "
                "optimises it; optimise another metric, or leave this folder out"
            )
            raise NoCounterpartError(f"it has no value of {lacking}")
        reported = ((int(report["epoch"]), picked(report, names)) for report in scored.reports)
        steps = {epoch: step for epoch, step in reported if step is not None}
        return Prior(str(self.path), trial.name, values, outcome, steps)

    def best(self) -> list[tuple[str, Values]]:
        """Label and values of the TRIED_FIRST best different configs; of several metrics, some of the Pareto front."""
        goals = [metric.goal for metric in self._spec.objectives]
        complete = [(t.steps[max(t.steps)], t) for t in self.trials if t.outcome is Outcome.COMPLETE]
        if len(goals) > 1:
            complete = [complete[place] for place in pareto_front([values for values, _ in complete], goals)]
        sign = 1.0 if goals[0] == "minimize" else -1.0
        complete.sort(key=lambda pair: sign * pair[0][0])
        found: list[tuple[str, Values]] = []
        for _, trial in complete:
            values = self._spec.space.that_matter(trial.values)
            if all(values != other for _, other in found):
                found.append((f"{self.path.name}-{trial.trial}", values))
        return found[:TRIED_FIRST]

    def notes(self) -> Iterator[str]:
        """What became of the folder's trials, and why."""
        count = len(self.trials) + sum(map(len, self._left_out.values()))
        head = f"warm start from {self.path}"
        if self._mapping.differing:
            yield f"{head}: trained otherwise ({few(self._mapping.differing, '; ')}), so its values do not compare"
        elif not self.is_prior:
            sampler = self._spec.search.sampler
            who = f"search.sampler {sampler}" if sampler else "method grid"
            yield f"{head}: {who} cannot use trials of earlier sweeps; auto, tpe and gp can"
        else:
            yield f"{head}: {len(self.trials)} of {count} trials are known to the sampler"
        if not self.is_prior:
            labels = ", ".join(label for label, _ in self.best())
            yield f"{head}: tried first: {labels}" if labels else f"{head}: it has no complete trial to try first"
        for name in () if self._mapping.differing else self._mapping.fixed_now:
            yield f"{head}: it searched {name}, which is fixed now; only trials with the present value count"
        for why, trials in self._left_out.items():
            yield f"{head}: left out, since {why}: {len(trials)} ({few(trials)})"
