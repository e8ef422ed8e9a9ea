"""A search ranked anew under another objective or metric, from what its trials wrote down. Nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from model.configfile import field_value
from model.errors import DataError
from model.metrics import OBJECTIVE_NAMES
from sweep.blocks import MetricSettings
from sweep.outcome import Outcome
from sweep.pareto import pareto_front
from sweep.scored import Ledger, PastTrial, past_trials, read_ledgers, read_trial
from sweep.spec import SweepSpec
from sweep.table_rows import read_table
from sweep.words import few

FEWEST_TO_CORRELATE = 3  # two trials agree or they do not: that is no correlation
PARTS = tuple(name for name in OBJECTIVE_NAMES if name != "objective/value")

Metrics = tuple[float, ...]


@dataclass(frozen=True)
class Rescored:
    """A trial before and after.

    Attributes:
        values: its searched parameters.
        old, new: what is optimised, after the trial's last epoch; None where the trial has no such value.
        parts: of the objective, after.
        old_rank, new_rank: place among the complete trials, 1 is the best; of several metrics 1 for each trial of the
            Pareto front and None for the others.
        reproduced: under its own objective the trial scores what it reported, to the last bit.
    """

    trial: str
    preset: str | None
    values: dict[str, Any]
    outcome: Outcome
    old: Metrics | None
    new: Metrics | None
    parts: dict[str, float]
    old_rank: int | None = None
    new_rank: int | None = None
    reproduced: bool = True
    surprise: str | None = None


@dataclass(frozen=True)
class Confirmed:
    """A confirmed config: means over the seeds that all configs have complete runs of, before and after."""

    candidate: str
    runs: int
    old: float
    new: float


@dataclass(frozen=True)
class Rescoring:
    """A study under two specs. `trials` are sorted by new rank, those without one last, by their number."""

    then: SweepSpec
    now: SweepSpec
    trials: list[Rescored]
    confirmed: list[Confirmed]
    notes: list[str]

    @property
    def best(self) -> list[Rescored]:
        """The new best trial, or the new Pareto front; empty where no trial trained to its end."""
        return [trial for trial in self.trials if trial.new_rank == 1]

    @property
    def old_best(self) -> list[Rescored]:
        """The best trial as the sweep had it, or its front."""
        return [trial for trial in self.trials if trial.old_rank == 1]

    @property
    def correlation(self) -> float | None:
        """Spearman's rank correlation of old and new values, both counted so that better is lower.

        None of several metrics, of fewer than FEWEST_TO_CORRELATE trials, and where all values are equal.
        """
        if len(self.then.objectives) > 1:
            return None
        pairs = [(t.old[0], t.new[0]) for t in self.trials if t.outcome is Outcome.COMPLETE and t.old and t.new]
        old, new = [[pair[side] for pair in pairs] for side in (0, 1)]
        if len(pairs) < FEWEST_TO_CORRELATE or min(len(set(old)), len(set(new))) == 1:
            return None
        same = self.then.metric.goal == self.now.metric.goal
        return float(spearmanr(old, new).statistic) * (1 if same else -1)


def rescore(results: Path, then: SweepSpec, now: SweepSpec) -> Rescoring:
    """Rank the trials of a results folder by `now`; `then` is the spec that they ran under.

    Raises DataError where a file is damaged or lacks what `now` needs, and where the folder holds no trial.
    """
    trials = [_rescored(trial, then, now) for trial in past_trials(results)]
    if not trials:
        raise DataError(f"{results}: holds no trial yet; there is nothing to rank")
    if any(t.outcome is Outcome.COMPLETE for t in trials) and not any(t.new for t in trials):
        names = " or ".join(metric.name for metric in now.objectives)
        raise DataError(f"{results}: no trial's epoch.csv has a value of {names}; give another metric.name")
    old_ranks = _ranks(trials, lambda trial: trial.old, then.objectives)
    new_ranks = _ranks(trials, lambda trial: trial.new, now.objectives)
    ranked = [replace(t, old_rank=old_ranks.get(t.trial), new_rank=new_ranks.get(t.trial)) for t in trials]
    ranked.sort(key=lambda trial: (trial.new_rank or math.inf, int(trial.trial)))
    notes = list(_notes(ranked, read_ledgers(results / "trials.csv")))
    return Rescoring(then, now, ranked, _confirmed(results, then, now), notes)


def _rescored(trial: PastTrial, then: SweepSpec, now: SweepSpec) -> Rescored:
    old_names, new_names = ([metric.name for metric in spec.objectives] for spec in (then, now))
    scored = trial.scored(now.objective)
    old = None if scored.outcome is Outcome.DIVERGED else trial.stored(old_names)
    reproduced = True
    with suppress(DataError):  # columns that only the old objective needs are not missed
        again = scored if now.objective == then.objective else trial.scored(then.objective)
        reproduced = again.value(old_names) == old
    content = trial.config.model_dump(mode="json")
    values = {name: field_value(content, name) for name in now.space.parameters}
    parts = scored.reports[-1] if scored.reports and scored.outcome is not Outcome.DIVERGED else {}
    return Rescored(
        trial=trial.name,
        preset=trial.ledger.preset,
        values=now.space.that_matter(values),
        outcome=scored.outcome,
        old=old,
        new=scored.value(new_names),
        parts={name: parts[name] for name in PARTS if name in parts},
        reproduced=reproduced,
        surprise=scored.surprise,
    )


def _ranks(
    trials: Sequence[Rescored], values_of: Callable[[Rescored], Metrics | None], metrics: Sequence[MetricSettings]
) -> dict[str, int]:
    """Rank by trial; of equal values the earlier trial is better, as in the sweep."""
    complete = [(values, t.trial) for t in trials if t.outcome is Outcome.COMPLETE and (values := values_of(t))]
    goals = [metric.goal for metric in metrics]
    if len(goals) > 1:
        return {complete[place][1]: 1 for place in pareto_front([values for values, _ in complete], goals)}
    complete.sort(key=lambda pair: (metrics[0].sign * pair[0][0], int(pair[1])))
    return {trial: rank for rank, (_, trial) in enumerate(complete, start=1)}


def _notes(trials: Sequence[Rescored], ledgers: dict[str, Ledger]) -> Iterator[str]:
    for outcome, what, why in (
        (
            Outcome.PRUNED,
            "stopped early",
            ". Another objective would have stopped others; values are of the last epoch",
        ),
        (Outcome.RUNNING, "not ended", ""),
        (Outcome.FAILED, "failed", ""),
    ):
        if some := [trial.trial for trial in trials if trial.outcome is outcome]:
            yield f"{what}, so without a rank: {few(some)}{why}."
    if lost := sorted(ledgers.keys() - {trial.trial for trial in trials}):
        yield f"in trials.csv, but without files, so left out: {few(lost)}."
    for trial in trials:
        if trial.surprise:
            yield f"{trial.surprise}: trial {trial.trial} diverged, though trials.csv does not say so; it has no rank."
    if strange := [trial.trial for trial in trials if not trial.reproduced]:
        yield (
            f"reported other values than their rows give under the sweep's objective: {few(strange)}. Their rows "
            "were changed, or another version of this program wrote them."
        )


def _confirmed(results: Path, then: SweepSpec, now: SweepSpec) -> list[Confirmed]:
    """The runs of confirm.csv by config, the best new mean first; empty where there was no confirmation.

    Means are over the seeds that all configs have: others would not compare.
    """
    values: dict[str, dict[int, tuple[float, float]]] = {}
    path = results / "confirm.csv"
    for name, row in read_table(path).items():
        try:
            candidate, seed, state = row["candidate"], int(row["seed"]), Outcome(row["state"])
        except (LookupError, ValueError):
            raise DataError(f"{path}: damaged ({name} names no candidate or seed); --resume writes it anew") from None
        folder = results / "trials" / name
        if state is not Outcome.COMPLETE or not (folder / "config.yaml").exists():
            continue
        trial = read_trial(folder, Ledger(state))
        old, new = trial.stored([then.metric.name]), trial.scored(now.objective).value([now.metric.name])
        if old and new:
            values.setdefault(candidate, {})[seed] = old[0], new[0]
    shared = sorted(set.intersection(*map(set, values.values()))) if values else []
    if not shared:
        return []
    means = [
        Confirmed(candidate, len(shared), *(math.fsum(runs[s][side] for s in shared) / len(shared) for side in (0, 1)))
        for candidate, runs in values.items()
    ]
    return sorted(means, key=lambda mean: now.metric.sign * mean.new)
