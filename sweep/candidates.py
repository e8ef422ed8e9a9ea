"""Which configs a search sends to its confirmation: the best trials, the presets, and the baseline among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.outcome import Outcome
from sweep.results import equal_weights
from sweep.study import Goal, Record, Values, best

if TYPE_CHECKING:
    from sweep.spec import SweepSpec

BASELINE = "equal-weights"
SUGGESTED_SEEDS = 5  # with fewer, only large differences show (sweep/statistics.py)


@dataclass(frozen=True)
class Candidate:
    """A config to train again. `source` is its trial in the search, None for one that the search did not run."""

    name: str
    values: Values
    source: str | None
    baseline: bool = False


@dataclass(frozen=True)
class Candidates:
    """The configs, best of the search first, then presets; `notes` say what is otherwise than asked for."""

    configs: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()


def pick(spec: SweepSpec, records: Sequence[Record]) -> Candidates:
    """The `confirm.top_k` best trials and all presets that trained to their end, each config once.

    The equal-weights preset is the baseline: it is taken however it ended, and added with the trainer's own values
    where the search has none but could have given it.
    """
    assert spec.confirm is not None
    complete = [record for record in records if record.outcome is Outcome.COMPLETE]
    top = _best_few(complete, spec.confirm.top_k, spec.metric.goal)
    base = equal_weights(records)
    presets = [record for record in records if record is base or (record in complete and record.preset is not None)]
    base_values = base.values if base is not None else _equal_values(spec)
    configs: list[Candidate] = []
    for record in (*top, *presets):
        if all(record.values != other.values for other in configs):
            preset = next((p.preset for p in presets if p.values == record.values), None)
            baseline = record.values == base_values
            configs.append(Candidate(preset or f"trial {record.trial}", record.values, record.trial, baseline))
    if base_values is not None and not any(candidate.baseline for candidate in configs):
        configs.append(Candidate(BASELINE, base_values, None, baseline=True))
    notes = []
    if len(top) < spec.confirm.top_k:
        notes.append(
            f"confirm.top_k = {spec.confirm.top_k}, but the configs that trained to their end are {len(top)}; "
            "all of them are confirmed."
        )
    if base_values is None:
        notes.append(_why_no_baseline(spec))
    return Candidates(tuple(configs), tuple(notes))


def _best_few(complete: Sequence[Record], count: int, goal: Goal) -> list[Record]:
    """The best `count` trials of different configs, best first."""
    few: list[Record] = []
    left = list(complete)
    while len(few) < count and (winner := best(left, goal)) is not None:
        few.append(winner)
        left = [record for record in left if record.values != winner.values]
    return few


def _equal_values(spec: SweepSpec) -> dict[str, Any] | None:
    """Equal weights with the trainer's own values; None where the space has no such config."""
    preset = next((p for p in spec.space.default_presets() if p["alpha"] == 0.5), None)
    if preset is None:
        return None
    values = spec.space.fill_preset(preset, spec.trainer)
    if values.keys() != spec.space.parameters.keys():  # what is left to the sampler would differ from seed to seed
        return None
    return spec.space.to_values(spec.space.from_values(values))


def _why_no_baseline(spec: SweepSpec) -> str:
    if "alpha" not in spec.space.parameters:
        return "No baseline: alpha is not searched, so there are no equal weights to compare with."
    if not spec.space.parameters["alpha"].contains(0.5):
        return "No baseline: the space has no equal weights (alpha 0.5); widen alpha in another sweep."
    return (
        "No baseline: the equal-weights preset was not run, and the trainer's own values lie outside the space; name "
        "the whole config in search.presets, for example {alpha: 0.5, base_lr: 0.01}, in another sweep."
    )


def most_candidates(spec: SweepSpec) -> int:
    """The most configs that `pick` can give, before anything has run."""
    assert spec.confirm is not None
    named = [spec.space.fill_preset(preset, spec.trainer) for preset in spec.presets]
    equal = _equal_values(spec)
    has_equal = any("alpha" in v and v["alpha"] == v.get("beta", 1 - v["alpha"]) for v in named)
    return min(spec.confirm.top_k, spec.num_trials) + len(named) + (equal is not None and not has_equal)


def how_to_confirm(spec: SweepSpec, single: Path | None = None) -> str:
    """That the search's pick is not the answer yet, and what to do about it.

    Args:
        single: the folder, where its trials were run one by one (sweep/trials_folder.py) and no command goes on.
    """
    if spec.confirm is not None and single is None:
        return "picked by the search from one seed, not confirmed yet: the same command with --resume goes on"
    text = "picked by the search from one seed, not confirmed"
    if spec.metrics or spec.search.pbt is not None or "seed" in spec.parameters:
        return text  # these cannot be confirmed, see sweep/search_checks.py
    seeds = [seed for seed in range(1, SUGGESTED_SEEDS + 2) if seed != spec.trainer.seed][:SUGGESTED_SEEDS]
    setting = f"--set confirm='{{top_k: 2, seeds: [{', '.join(map(str, seeds))}]}}'"
    if single is not None:
        return f"{text}; to go on from there and confirm: python -m sweep.run SPEC {warm_started(single)} {setting}"
    return f"{text}; to confirm: the same command with {setting} --resume"


def warm_started(folder: Path) -> str:
    """The option with which a sweep begins with what a results folder shows."""
    return f"--set search.warm_start='[{folder}]'"
