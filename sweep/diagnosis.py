"""History -> findings: what is wrong with a training run, and what to change. Pure: rows in, findings out.

The rules are those of the metric text (sections 1.2, 2.3, 6 and 7), and one of ours for features that collapse. A rule
reports once, at its highest severity and for the last epoch that reached it. Rules about the balance of the two losses
look at the recent settled epochs only: what was out of balance in the first epoch, or long ago, needs no change now.
Values that a row lacks (a loss that was not computed) and values that are not finite are passed over; the rule
NOT_FINITE alone speaks of the latter.

    findings = diagnose(read_csv(run / "epoch.csv"), read_csv(run / "batch.csv"), config)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

from model.config import TrainConfig
from model.sinks import Row
from sweep.diagnosis_rows import (
    AVERAGED,
    BatchDigest,
    Reading,
    epoch_of,
    first_not_finite,
    mean,
    over_running_median,
    readings_of,
)
from sweep.limits import LIMITS, Rule, Severity

SETTLE_EPOCHS = 1  # as objective.settle_epochs: warm-up belongs to the first epoch
RECENT_EPOCHS = 5  # balance is judged over as many epochs as the quick test has (section 7)
MOVEMENT = 0.02  # an epoch's loss that changes by less stands still: the noise of masks and flips (see NOT_FALLING)
LR_FACTOR = 3.0  # a step of the learning rate, up or down: half a decade; twice the rate was seen to mend nothing
LR_FACTOR_NOT_FINITE = 10.0
CLIP_GRAD = 1.0  # the default of TrainConfig, for runs that switched clipping off
TEXT_ALPHA_TOLERANCE = 0.05  # the text's move 0.5 -> 0.3 is made for weights so near to equal ones

SHARE = "epoch/actual_static_contribution"
RANK = "eval/effective_rank"
RANK_LEAST_CLIPS = 32  # fewer clips come from so few presses that their features may well differ in few directions


@dataclass(frozen=True)
class Finding:
    """What a rule saw.

    Attributes:
        value, limit: what was seen, and the limit of this severity that it broke.
        epoch: the last epoch, from 0, that reached this severity.
        remedy: in words.
        changes: TrainConfig keys with new values that belong together; empty where no change is sure to be right.
    """

    rule: Rule
    severity: Severity
    value: float
    limit: float
    epoch: int
    remedy: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The finding in a sentence, without its severity."""
        near = abs(self.value - self.limit) < 0.005 * abs(self.limit)  # else both could look the same
        value = f"{self.value:.6g}" if near else f"{self.value:.3g}"
        seen = "" if self.rule is Rule.NOT_FINITE else f" {value} (limit {self.limit:g})"
        return f"{self.rule}{seen} in epoch {self.epoch}: {self.remedy}"


def diagnose(epochs: Sequence[Row], batches: Sequence[Row] = (), config: TrainConfig | None = None) -> list[Finding]:
    """All findings, the most severe first, then by epoch.

    Args:
        epochs: epoch rows in order; each holds `epoch`.
        batches: batch rows in order; each holds `batch/epoch`. Without them nothing is said of loss_recon and
            loss_pred, nor of jumps within an epoch.
        config: what the run was trained with; changes of the learning rate and of clipping are computed from it.
    """
    return findings_of(epochs, BatchDigest(batches), config)


def findings_of(epochs: Sequence[Row], batches: BatchDigest, config: TrainConfig | None) -> list[Finding]:
    """As `diagnose`, of a run whose batch rows were digested as they came."""
    run = _Run(epochs, batches, config)
    findings = [finding for rule in _RULES if (finding := rule(run)) is not None]
    lr_too_high = any(finding.rule in _SIGNS_OF_HIGH_LR for finding in findings)
    stalled = _not_falling(run, lr_too_high)
    findings += [stalled] if stalled else []
    return sorted(findings, key=lambda finding: (-finding.severity.rank, finding.epoch))


def balancing_weights(static: float, dynamic: float, target: float = 0.5) -> tuple[float, float]:
    """(alpha, beta), of sum 1, for which alpha * static is `target` of the total; losses must be > 0.

    For equal shares alpha = Ld / (Ls + Ld).
    """
    alpha = 1 / (1 + (1 - target) / target * (static / dynamic))
    return alpha, 1 - alpha


def ratio_fluctuation(epochs: Sequence[Row]) -> float | None:
    """(max - min) / mean of `epoch/loss_ratio` over the recent settled epochs; None for fewer than two of them."""
    ratios = [value for _, value in _recent(readings_of(epochs, "epoch/loss_ratio"))]
    if len(ratios) < 2 or not any(ratios):
        return None
    return (max(ratios) - min(ratios)) / mean(ratios)


@dataclass(frozen=True)
class _Run:
    """What the rules look at."""

    epochs: Sequence[Row]
    batches: BatchDigest
    config: TrainConfig | None

    @property
    def alpha_share(self) -> float | None:
        """alpha / (alpha + beta) of the run; None where neither config nor batches tell."""
        alpha, beta = self.config.weights if self.config is not None else self.batches.weights
        return alpha / (alpha + beta) if 0 < alpha + beta < math.inf else None

    def balanced(self, found: Finding, remedy: str) -> Finding:
        """`found` with the balancing weights in its remedy and as its changes, where there are any."""
        losses = last_losses(self.epochs)
        if losses is None:
            return replace(found, remedy=remedy)
        alpha, beta = balancing_weights(*losses)
        words = f"; balanced exactly by alpha = Ld / (Ls + Ld) = {alpha:.4g}, beta = {beta:.4g}"
        return replace(found, remedy=remedy + words, changes={"alpha": alpha, "beta": beta})

    def lr_changes(self, factor: float) -> dict[str, float]:
        """base_lr times `factor`; min_lr as well where it would else be above the new peak."""
        if self.config is None:
            return {}
        changes = {"base_lr": _short(self.config.base_lr * factor)}
        if self.config.min_lr > self.config.peak_lr * factor:
            changes["min_lr"] = _short(self.config.min_lr * factor)
        return changes

    def epoch_losses(self) -> dict[str, list[Reading]]:
        """Readings of every trained loss by its short name; loss_recon and loss_pred are means of the batch rows."""
        last = self.epochs[-1] if self.epochs else {}
        names = {"train_loss": "epoch/train_loss"}
        if last.get("epoch/weighted_static") != 0:  # a loss with weight 0 is not trained, so it need not fall
            names["loss_static"] = "epoch/loss_static"
        dynamic = last.get("epoch/weighted_dynamic") != 0
        if dynamic:
            names["loss_dynamic"] = "epoch/loss_dynamic"
        losses = {short: readings_of(self.epochs, name) for short, name in names.items()}
        if dynamic:
            ended = [epoch_of(row) for row in self.epochs]  # an epoch that has not ended is judged later
            losses |= {name.removeprefix("batch/"): self.batches.means(name, ended) for name in AVERAGED}
        return losses


def _not_finite(run: _Run) -> Finding | None:
    of_batches = [run.batches.first_bad, run.batches.last_bad]
    bad = [place for place in (*of_batches, *map(first_not_finite, run.epochs)) if place is not None]
    if not bad:
        return None
    first_epoch, first_name, _ = min(bad, key=lambda place: place[0])
    last_epoch, _, value = max(bad, key=lambda place: place[0])
    changes: dict[str, Any] = run.lr_changes(1 / LR_FACTOR_NOT_FINITE)
    if run.config is not None and run.config.clip_grad is None:
        changes["clip_grad"] = CLIP_GRAD
    limit = next(limit for limit in LIMITS if limit.rule is Rule.NOT_FINITE)
    remedy = f"lower base_lr or clip gradients (clip_grad); first seen: {first_name} in epoch {first_epoch}"
    return Finding(limit.rule, limit.severity, value, limit.value, last_epoch, remedy, changes)


def _jumps(run: _Run) -> Finding | None:
    of_epochs = over_running_median(readings_of(run.epochs, "epoch/train_loss"))
    where = dict.fromkeys(of_epochs, "epoch/train_loss") | dict(run.batches.jumps())
    found = _worst(Rule.JUMPS, sorted(where))
    if found is None:
        return None
    times = f"{where[found.epoch, found.value]} was {found.value:.3g} times its running median"
    return replace(found, remedy=f"{times}: check the lr schedule and the data of this epoch")


def _oscillates(run: _Run) -> Finding | None:
    found = _worst(Rule.OSCILLATES, _turns(readings_of(run.epochs, "epoch/train_loss")))
    if found is None:
        return None
    remedy = f"epoch/train_loss went up and down, {found.value:.0f} turns in a row: lower base_lr"
    return replace(found, remedy=remedy, changes=run.lr_changes(1 / LR_FACTOR))


def _ratio_unstable(run: _Run) -> Finding | None:
    fluctuation = ratio_fluctuation(run.epochs)
    readings = [] if fluctuation is None else [(readings_of(run.epochs, "epoch/loss_ratio")[-1][0], fluctuation)]
    found = _worst(Rule.RATIO_UNSTABLE, readings)
    if found is None:
        return None
    remedy = f"loss_ratio fluctuates by {found.value:.0%} of its mean: lower base_lr, or a larger batch (accum_iter)"
    return replace(found, remedy=remedy, changes=run.lr_changes(1 / LR_FACTOR))


MADE_UP = "makes up for it already"  # of a remedy: the weights need no change


def _ratio(run: _Run, rule: Rule, task: str, weight: str) -> Finding | None:
    """The ratio hardly depends on the weights: it calls for a change only while they do not make up for it."""
    found = _worst(rule, _recent(readings_of(run.epochs, "epoch/loss_ratio")))
    if found is None:
        return None
    share = next((value for _, value in reversed(readings_of(run.epochs, SHARE))), None)
    if share is not None and (share <= 0.5 if rule is Rule.RATIO_HIGH else share >= 0.5):
        remedy = f"the {task} task is too easy; {weight} {MADE_UP} (static share {share:.0%})"
        return replace(found, remedy=remedy)
    return run.balanced(found, f"the {task} task is too easy: raise {weight}")


def _static_share(run: _Run) -> Finding | None:
    found = _worst(Rule.STATIC_SHARE, _recent(readings_of(run.epochs, SHARE)))
    if found is None:
        return None
    high = found.value > 0.5
    remedy = "lower alpha or raise beta" if high else "raise alpha or lower beta"
    near_equal = run.alpha_share is not None and abs(run.alpha_share - 0.5) <= TEXT_ALPHA_TOLERANCE
    if near_equal and found.severity is not Severity.INFO:  # the text's move is for shares beyond 65 % (section 6.2)
        remedy += f" (by the text: alpha 0.5 -> {0.3 if high else 0.7}, beta 0.5 -> {0.7 if high else 0.3})"
    return run.balanced(found, remedy)


def _collapse(run: _Run) -> Finding | None:
    """Of the last epoch alone: features may start poor and grow."""
    if run.config is not None and run.config.data.eval_clips < RANK_LEAST_CLIPS:
        return None
    found = _worst(Rule.COLLAPSE, readings_of(run.epochs, RANK)[-1:])
    if found is None:
        return None
    remedy = (
        f"the features of held-out clips differ in {found.value:.2g} directions only: lower base_lr, and look at the "
        "pictures and at the data (do the frames differ?)"
    )
    return replace(found, remedy=remedy, changes=run.lr_changes(1 / LR_FACTOR))


def _not_falling(run: _Run, lr_too_high: bool) -> Finding | None:
    """`lr_too_high`: another rule says so; then a higher rate would be the wrong remedy."""
    relative = {
        name: _worst(Rule.NOT_FALLING, [(readings[-1][0], readings[-1][1] / readings[0][1] - 1)])
        for name, readings in run.epoch_losses().items()
        if len(readings) > 1 and readings[0][1] > 0
    }
    stalled = {name: found for name, found in relative.items() if found is not None}
    if not stalled:
        return None
    worst = max(stalled.values(), key=lambda found: found.value)
    changes: dict[str, Any] = {}
    if lr_too_high or worst.value > MOVEMENT:
        remedy, changes = "the training is unstable: lower base_lr", run.lr_changes(1 / LR_FACTOR)
    elif "loss_recon" in stalled and stalled.keys() <= {"loss_recon", "loss_dynamic"}:
        remedy = "see the mask ratio and the model's capacity"
    elif "loss_pred" in stalled and stalled.keys() <= {"loss_pred", "loss_dynamic"}:
        remedy = "prediction is too hard: see the temporal modelling and data.frame_stride"
    else:
        remedy, changes = "raise base_lr", run.lr_changes(LR_FACTOR)
    named = ", ".join(f"{name} {found.value:+.1%}" for name, found in stalled.items())
    return replace(worst, remedy=f"{named} from first to last epoch: {remedy}", changes=changes)


_RULES: tuple[Callable[[_Run], Finding | None], ...] = (
    _not_finite,
    _jumps,
    _oscillates,
    _ratio_unstable,
    partial(_ratio, rule=Rule.RATIO_HIGH, task="dynamic", weight="beta"),
    partial(_ratio, rule=Rule.RATIO_LOW, task="static", weight="alpha"),
    _static_share,
    _collapse,
)
_SIGNS_OF_HIGH_LR = {Rule.NOT_FINITE, Rule.JUMPS, Rule.OSCILLATES, Rule.RATIO_UNSTABLE}


def _worst(rule: Rule, readings: Iterable[Reading]) -> Finding | None:
    """A finding without remedy for the last reading of the highest severity; None where no limit is broken."""
    broken = [
        Finding(rule, limit.severity, value, limit.value, epoch, "")
        for epoch, value in readings
        for limit in LIMITS
        if limit.rule is rule and limit.exceeded_by(value)
    ]
    return max(reversed(broken), key=lambda found: found.severity.rank, default=None)


def _short(rate: float) -> float:
    return float(f"{rate:.6g}")  # a config is read by people


def last_losses(epochs: Sequence[Row]) -> tuple[float, float] | None:
    """(loss_static, loss_dynamic) of the last epoch that has both, each > 0; None where there is none."""
    for row in reversed(epochs):
        static, dynamic = (row.get(f"epoch/loss_{name}", math.nan) for name in ("static", "dynamic"))
        if 0 < static < math.inf and 0 < dynamic < math.inf:
            return static, dynamic
    return None


def _recent(readings: list[Reading]) -> list[Reading]:
    """The last settled epochs; the last epoch alone while none is settled."""
    settled = [reading for reading in readings if reading[0] >= SETTLE_EPOCHS]
    return (settled or readings[-1:])[-RECENT_EPOCHS:]


def _turns(readings: Sequence[Reading]) -> list[Reading]:
    """For every epoch: how many times in a row, up to it, the direction of the loss has turned."""
    turns, direction, result = 0, 0, []
    for (_, before), (epoch, now) in pairwise(readings):
        moved = 0 if abs(now - before) <= MOVEMENT * abs(before) else (1 if now > before else -1)
        turns = turns + 1 if moved * direction < 0 else 0
        direction = moved
        result.append((epoch, float(turns)))
    return result
