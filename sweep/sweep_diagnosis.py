"""Findings of many trials -> which rules fire where in the search space, and what to change there. Pure.

For every rule the one split of the space that separates best the trials in which it fires from the others is looked
for: a limit of one number, or one category. It counts where chance would hardly give one as good (a permutation test of
the maximally selected statistic, after Miller and Siegmund 1982), and where the rule fires clearly more often there.

    fired = fired_rules([DiagnosedTrial("0000", {"alpha": 0.9}, diagnose(epochs, batches, config)), ...])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.diagnosis import MADE_UP, Finding
from sweep.limits import Rule, Severity

CHANCE = 0.05  # a place counts where shuffled trials give one as good less often
SHUFFLES = 199
MAX_LIMITS = 64  # of a parameter that are tried
CLEARLY = 2.0  # and where the rule fires so many times as often as elsewhere
FEW_TRIALS = 4  # fewer say nothing of the space, also where a rule fires in all of them
NEARLY_ALL, NEARLY_ALL_OF = 0.8, 10  # this share, of at least so many trials, is "all over the space"

REMEDIES = {
    Rule.NOT_FINITE: "lower base_lr, or clip gradients (clip_grad)",
    Rule.JUMPS: "lower base_lr or warm up longer (warmup_epochs), and check the data",
    Rule.OSCILLATES: "lower base_lr",
    Rule.RATIO_UNSTABLE: "lower base_lr, or take a larger batch (batch_size, accum_iter)",
    Rule.RATIO_HIGH: "raise beta (lower alpha), or make the dynamic task harder (data.frame_stride)",
    Rule.RATIO_LOW: "raise alpha (lower beta)",
    Rule.STATIC_SHARE: "raise alpha, towards Ld / (Ls + Ld): the static share is too low",
    Rule.NOT_FALLING: "raise base_lr or train longer; where only loss_recon stalls see mask_ratio and the model's size",
    Rule.COLLAPSE: "lower base_lr, and look at the pictures and at the data",
}
"""What to change in the space as a whole; a finding's own remedy is about its trial alone."""
NONE_NEEDED = "none: the weights of these trials make up for it already"
SHARE_TOO_HIGH = "lower alpha, towards Ld / (Ls + Ld): the static share is too high"


@dataclass(frozen=True)
class DiagnosedTrial:
    """A trial, the searched parameters that it was trained with by dotted name, and what the rules see in it."""

    name: str
    values: Mapping[str, Any]
    findings: Sequence[Finding]


@dataclass(frozen=True)
class FiredRule:
    """A rule that fires in some trials.

    Attributes:
        severity: the highest one in any trial.
        trials: names of those in which it fires, in the given order; where it fires above info anywhere, only those
            in which it does.
        where: in the space, such as "alpha above 0.81 (7 of 8 trials there; 1 of 12 elsewhere)".
        remedy: what to change before the next sweep.
    """

    rule: Rule
    severity: Severity
    trials: list[str]
    where: str
    remedy: str


def fired_rules(trials: Sequence[DiagnosedTrial]) -> list[FiredRule]:
    """The rules that fire in any of the trials; the most severe first, then the most frequent.

    The rule of the static share, which has limits on both sides, may be there twice: its sides have other places.
    """
    fired = []
    for rule, high in ((rule, high) for rule in Rule for high in (True, False)):
        levels = [_severity(trial, rule, high) for trial in trials]
        highest = max((level for level in levels if level), key=lambda level: level.rank, default=None)
        if highest is None:
            continue
        least = min(highest.rank, Severity.WARNING.rank)
        hits = np.array([level is not None and level.rank >= least for level in levels])
        place, where = _where(trials, hits)
        remedy = _remedy(rule, high, place, [trial for trial, hit in zip(trials, hits, strict=True) if hit])
        names = [trial.name for trial, hit in zip(trials, hits, strict=True) if hit]
        fired.append(FiredRule(rule, highest, names, where, remedy))
    return sorted(fired, key=lambda found: (-found.severity.rank, -len(found.trials)))


def _severity(trial: DiagnosedTrial, rule: Rule, high: bool) -> Severity | None:
    """Of the rule's finding, where it broke a limit on that side."""
    own = (found.severity for found in trial.findings if found.rule is rule and (found.value > found.limit) is high)
    return next(own, None)


@dataclass(frozen=True)
class _Place:
    """A part of the space: in words, how to keep out of it, and which trials are there."""

    words: str
    avoided: str
    inside: NDArray[np.bool_]


def _remedy(rule: Rule, high: bool, place: _Place | None, hit: Sequence[DiagnosedTrial]) -> str:
    """What to change. The ratio calls for other weights only where they do not make up for it (see diagnosis.py)."""
    own = [found.remedy for trial in hit for found in trial.findings if found.rule is rule]
    if rule in (Rule.RATIO_LOW, Rule.RATIO_HIGH) and own and all(MADE_UP in remedy for remedy in own):
        return NONE_NEEDED
    remedy = SHARE_TOO_HIGH if high and rule is Rule.STATIC_SHARE else REMEDIES[rule]
    return f"{place.avoided}; or {remedy}" if place else remedy


@dataclass(frozen=True)
class _Splits:
    """All places of one parameter: each is a stretch of the trials in the order of its values.

    Attributes:
        order: indices of trials, by the parameter's value; those that lack it are not in it.
        starts, ends: [c] the stretches of `order`.
        place: number of a stretch -> that place.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]
    place: Callable[[int], _Place]

    def scores(self, hits: NDArray[np.bool_]) -> NDArray[np.float64]:
        """hits [..., n] -> by how many standard deviations each place has more hits than chance gives it [..., c]."""
        num_trials = hits.shape[-1]
        none = np.zeros((*hits.shape[:-1], 1), dtype=np.int32)
        running = np.concatenate([none, np.cumsum(hits[..., self.order], -1, dtype=np.int32)], -1)
        share, size = hits.mean(-1, keepdims=True), self.ends - self.starts
        variance = size * (num_trials - size) / (num_trials - 1) * share * (1 - share)
        more = running[..., self.ends] - running[..., self.starts] - size * share
        scores: NDArray[np.float64] = more / np.sqrt(np.maximum(variance, 1e-12))
        return scores


def _where(trials: Sequence[DiagnosedTrial], hits: NDArray[np.bool_]) -> tuple[_Place | None, str]:
    """The place where the rule fires, if there is one, and the sentence about it."""
    count, total = int(hits.sum()), len(hits)
    of_all = f"{count} of {total} trials" if count < total else f"all {total} trials"
    if total < FEW_TRIALS:
        return None, f"too few trials to tell ({of_all})"
    if count == total:
        return None, f"all over the space ({of_all})"
    splits = [made for name in _names(trials) if (made := _splits(trials, name)) is not None]
    place = _significant(splits, hits)
    if place is not None:
        there, elsewhere = hits[place.inside], hits[~place.inside]
        if there.mean() >= CLEARLY * elsewhere.mean():
            counts = f"{there.sum()} of {len(there)} trials there; {elsewhere.sum()} of {len(elsewhere)} elsewhere"
            return place, f"{place.words} ({counts})"
    if count >= NEARLY_ALL * total and total >= NEARLY_ALL_OF:
        return None, f"all over the space ({of_all})"
    if place is None and 2 * len(splits) / math.comb(total, count) > CHANCE:  # no place could be told from chance
        return None, f"too few trials to tell ({of_all})"
    return None, f"all over the space ({of_all}; no parameter tells them from the others)"


def _names(trials: Sequence[DiagnosedTrial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.values))


def _significant(splits: Sequence[_Splits], hits: NDArray[np.bool_]) -> _Place | None:
    """The best place of all splits, where shuffled hits hardly ever give one as good."""
    if not splits:
        return None
    generator = np.random.default_rng(0)  # the same trials give the same words
    shuffled = generator.permuted(np.tile(hits, (SHUFFLES, 1)), axis=1)
    best_of_shuffled = np.max([made.scores(shuffled).max(-1) for made in splits], axis=0)
    seen = [made.scores(hits) for made in splits]
    best = int(np.argmax([scores.max() for scores in seen]))
    highest = float(seen[best].max())
    if (1 + np.count_nonzero(best_of_shuffled >= highest - 1e-9)) / (1 + SHUFFLES) > CHANCE:
        return None
    return splits[best].place(int(np.argmax(seen[best])))


def _splits(trials: Sequence[DiagnosedTrial], name: str) -> _Splits | None:
    """The places of one parameter; trials that lack it (it does not matter to them) are in none."""
    found = {index: trial.values[name] for index, trial in enumerate(trials) if trial.values.get(name) is not None}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found.values())
    key: Callable[[Any], Any] = float if numbers else repr
    order = np.array(sorted(found, key=lambda index: key(found[index])), dtype=np.intp)
    levels = [found[index] for index in order]
    edges = [i for i in range(1, len(levels)) if key(levels[i]) != key(levels[i - 1])]  # where a new value begins
    if not edges:
        return None
    if numbers:
        edges = edges[:: math.ceil(len(edges) / MAX_LIMITS)]
        starts, ends = [0] * len(edges) + edges, edges + [len(levels)] * len(edges)
    else:
        starts, ends = [0, *edges], [*edges, len(levels)]

    def place(number: int) -> _Place:
        start, end = starts[number], ends[number]
        inside = np.zeros(len(trials), dtype=np.bool_)
        inside[order[start:end]] = True
        if not numbers:
            words = f"{name} = {levels[start]}"
            return _Place(words, f"leave {words} out of the search", inside)
        edge = start or end
        limit = _between(levels[edge - 1], levels[edge])
        if start:
            return _Place(f"{name} above {limit}", f"search {name} only up to {limit}", inside)
        return _Place(f"{name} up to {limit}", f"search {name} only above {limit}", inside)

    return _Splits(order, np.array(starts), np.array(ends), place)


def _between(low: float, high: float) -> str:
    """The shortest number that is at least `low` and below `high`, as near to their (geometric) mean as its digits
    allow."""
    if isinstance(low, int) and isinstance(high, int):
        return str(low)
    middle = math.sqrt(low) * math.sqrt(high) if low > 0 else low + (high - low) / 2
    for digits in range(1, 17):
        text = f"{middle:.{digits}g}"
        if low <= float(text) < high:
            return text
    return repr(low)
