"""What a confirmation shows: a row for each config, the one to use, and the answer in a sentence. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweep.blocks import Block, MetricSettings
from sweep.candidates import Candidate, Candidates
from sweep.outcome import Outcome
from sweep.statistics import Estimate, Verdict, mean_interval, paired_gain, verdict
from sweep.study import Goal, Record
from sweep.words import number

SEED = "seed"  # the trainer's field that confirmation runs differ in


class Run(Block):
    """A training of a config with a seed. `value` is the metric after the last epoch, None of a run not finished."""

    seed: int
    trial: str
    outcome: Outcome
    value: float | None


Runs = tuple[Run, ...]  # of one config, by the order of the seeds


class Row(Block):
    """A config and what its runs gave."""

    name: str
    source: str | None
    """Its trial in the search."""
    params: dict[str, Any]
    runs: Runs
    mean: Estimate | None
    """Of the metric over seeds; None where no run has a value."""
    gain: Estimate | None
    """How much better than the baseline on the same seeds; positive is better, whatever the metric's goal."""
    verdict: Verdict

    @property
    def said(self) -> str:
        """The verdict for readers: while runs are to come, the lack of a difference says nothing."""
        open_yet = any(run.outcome is Outcome.RUNNING for run in self.runs)
        return "not yet known" if open_yet and self.verdict is Verdict.NO_DIFFERENCE else self.verdict

    @property
    def diverged(self) -> int:
        """Runs that diverged."""
        return _diverged(self.runs)

    @property
    def failed(self) -> int:
        """Runs that failed."""
        return sum(run.outcome is Outcome.FAILED for run in self.runs)


class Conclusion(Block):
    """confirm.json."""

    metric: str
    goal: Goal
    seeds: tuple[int, ...]
    runs_left: int
    """Runs that have not ended; 0 when the confirmation is done."""
    rows: tuple[Row, ...]
    chosen: str | None
    """Name of the config with the best mean among those whose runs all ended well; None where there is none."""
    answer: str
    method: str
    """How intervals and verdicts were made."""
    notes: tuple[str, ...]

    @property
    def chosen_row(self) -> Row | None:
        """The config to use."""
        return next((row for row in self.rows if row.name == self.chosen), None)

    @property
    def confirmed(self) -> bool:
        """All runs have ended, and there is a config to use."""
        return self.runs_left == 0 and self.chosen is not None


def conclude(
    metric: MetricSettings, seeds: Sequence[int], candidates: Candidates, records: Iterable[Record]
) -> Conclusion:
    """What the runs show until now.

    Args:
        metric: what the search optimised.
        seeds: of the confirmation.
        candidates: of the search.
        records: of the confirmation's study, also of other configs and seeds; their values are those of the config and
            `seed`. Of two runs of a pair the first one that ended counts.
    """
    found = _runs(records)
    runs = [_of(candidate, seeds, found) for candidate in candidates.configs]
    base = next((each for each, candidate in zip(runs, candidates.configs, strict=True) if candidate.baseline), None)
    rows = [
        _row(candidate, each, base, len(runs), metric.goal)
        for candidate, each in zip(candidates.configs, runs, strict=True)
    ]
    runs_left = sum(run.outcome is Outcome.RUNNING for each in runs for run in each)
    chosen = _chosen(rows, metric)
    return Conclusion(
        metric=metric.name,
        goal=metric.goal,
        seeds=tuple(seeds),
        runs_left=runs_left,
        rows=tuple(rows),
        chosen=chosen.name if chosen else None,
        answer=_answer(chosen, metric.name, runs_left),
        method=_method(len(rows), base is not None),
        notes=(*candidates.notes, *_notes(rows), *_other_seeds(candidates, seeds, found)),
    )


def config_key(values: Mapping[str, Any]) -> str:
    """The same for equal configs, whatever the order of their values."""
    return repr(sorted(values.items()))


def _runs(records: Iterable[Record]) -> dict[tuple[str, int], Run]:
    """(config, seed) -> its run."""
    found: dict[tuple[str, int], Run] = {}
    for record in records:
        values = dict(record.values)
        seed = values.pop(SEED)
        pair = config_key(values), seed
        if pair not in found or found[pair].outcome is Outcome.RUNNING:
            value = record.value if record.outcome is Outcome.COMPLETE else None
            found[pair] = Run(seed=seed, trial=record.trial, outcome=record.outcome, value=value)
    return found


def _of(candidate: Candidate, seeds: Sequence[int], found: Mapping[tuple[str, int], Run]) -> Runs:
    key = config_key(candidate.values)
    waiting = [Run(seed=seed, trial="", outcome=Outcome.RUNNING, value=None) for seed in seeds]
    return tuple(found.get((key, run.seed), run) for run in waiting)


def _row(candidate: Candidate, runs: Runs, base: Runs | None, num_configs: int, goal: Goal) -> Row:
    """A config's row; `base` are the baseline's runs."""
    values = _values(runs)
    gain = None
    if base is None:
        said = Verdict.NO_BASELINE
    elif candidate.baseline:
        said = Verdict.BASELINE
    else:
        gain = paired_gain(values, _values(base), goal, num_configs - 1)
        said = verdict(gain, diverged=_diverged(runs) > 0, baseline_diverged=_diverged(base) > 0)
    return Row(
        name=candidate.name,
        source=candidate.source,
        params=candidate.values,
        runs=runs,
        mean=mean_interval(list(values.values()), num_configs) if values else None,
        gain=gain,
        verdict=said,
    )


def _values(runs: Runs) -> dict[int, float]:
    """seed -> value, of the runs that have one."""
    return {run.seed: run.value for run in runs if run.value is not None}


def _diverged(runs: Runs) -> int:
    return sum(run.outcome is Outcome.DIVERGED for run in runs)


def _chosen(rows: Sequence[Row], metric: MetricSettings) -> Row | None:
    """The best mean over the seeds that all have; of equal ones the first.

    A config with a run that diverged or failed is none to choose: its mean is over the seeds that went well.
    """
    sound = [(_values(row.runs), row) for row in rows if row.mean is not None and not row.diverged and not row.failed]
    shared = set.intersection(*(set(values) for values, _ in sound)) if sound else set()
    if not shared:
        return None
    sign = metric.sign
    return min(sound, key=lambda pair: sign * math.fsum(pair[0][seed] for seed in sorted(shared)))[1]


def _answer(row: Row | None, metric: str, runs_left: int) -> str:
    if row is None or row.mean is None:
        if runs_left:
            return "No run of the confirmation has a value yet."
        return "No config can be recommended: each has a run that diverged or failed."
    params = ", ".join(f"{name} {number(value)}" for name, value in row.params.items())
    seeds = f"{row.mean.n} seed{'s' if row.mean.n > 1 else ''}"
    interval = f"95 % {row.mean.range_text}, " if row.mean.range_text else ""
    text = f"{params}: {metric} {row.mean.text} ({interval}{seeds})"
    so_far = f"So far, with {runs_left} run{'s' if runs_left > 1 else ''} to go: " if runs_left else ""
    return f"{so_far}{text}{_compared(row)}."


def _compared(row: Row) -> str:
    if row.verdict is Verdict.BASELINE:
        return "; these are the equal weights themselves, and no config whose runs all ended has a better mean"
    if row.verdict is Verdict.NO_BASELINE:
        return "; no baseline, so no gain can be stated"
    if row.gain is None:
        return f"; no run of equal weights to compare with: {row.verdict}"
    gain, word = (row.gain.opposite, "worse") if row.gain.mean < 0 else (row.gain, "better")
    interval = f" ({gain.range_text})" if gain.range_text else ""
    return f", {gain.text} {word} than equal weights{interval}: {row.verdict}"


def _method(num_configs: int, has_baseline: bool) -> str:
    compared = num_configs - 1
    differences = (
        f" Differences to equal weights are taken seed by seed, their intervals hold for all {compared} at once."
        if has_baseline and compared > 1
        else " The difference to equal weights is taken seed by seed."
        if has_baseline and compared == 1
        else ""
    )
    return (
        f"Means over seeds after the last epoch, with Student's t-intervals that hold with 95 % for all {num_configs} "
        f"configs at once (Bonferroni).{differences} This is about other training seeds, not other data: the held-out "
        "clips are those of the search. Seeds that are added after a look at the result make the intervals too narrow."
    )


def _other_seeds(candidates: Candidates, seeds: Sequence[int], found: Mapping[tuple[str, int], Run]) -> Iterable[str]:
    """Seeds that were trained and do not count: nobody may draw seeds until they say the right thing unseen."""
    keys = {config_key(candidate.values) for candidate in candidates.configs}
    others = sorted({seed for key, seed in found if key in keys and seed not in seeds})
    if others:
        shown = ", ".join(map(str, others))
        yield (
            f"Runs of these configs with other seeds ({shown}) are in confirm.csv and are not counted, since "
            "confirm.seeds does not name them. Seeds that are exchanged after a look at the result prove nothing: name "
            "all of them."
        )


def _notes(rows: Iterable[Row]) -> Iterable[str]:
    for row in rows:
        if row.diverged:
            what = (
                "nothing is called worse than it" if row.verdict is Verdict.BASELINE else "it cannot be called better"
            )
            yield (
                f"{row.name}: {row.diverged} of {len(row.runs)} runs diverged and have no value; {what}, and it is not "
                "chosen."
            )
        if row.failed:
            failed = f"{row.failed} of {len(row.runs)} runs failed"
            yield f"{row.name}: {failed}, so it is not chosen; confirm.csv has the reasons."
