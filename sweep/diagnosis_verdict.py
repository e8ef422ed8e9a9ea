"""The verdict of a quick test of 5 epochs (section 7 of the metric text), and what follows it (section 8). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.config import TrainConfig
from model.sinks import Row
from sweep.diagnosis import SHARE, balancing_weights, diagnose, last_losses, ratio_fluctuation
from sweep.diagnosis_rows import readings_of
from sweep.limits import Rule, Severity

FLUCTUATION_PASS = 0.30  # section 7, test passed: the ratio's fluctuation is below it
SHARE_PASS = 0.20  # section 7, test passed: the share's error, relative to its target, is below it
BALANCED_PRESET = (0.75, 0.25)  # alpha, beta of the text's train_joint_balanced_weights


class NextStep(StrEnum):
    """What follows a quick test. Section 8 names the first three; it has none for a training that fails as such."""

    FULL_RUN = "run the full training with these weights"
    CHANGE_WEIGHTS = "change alpha and beta, then repeat the quick test"
    BALANCED_WEIGHTS = "train with the balanced weights, alpha 0.75 and beta 0.25"
    MEND = "mend the training as the findings say, then repeat the quick test"


@dataclass(frozen=True)
class Verdict:
    """Of a quick test; `reasons` say why it did not pass."""

    passed: bool
    reasons: list[str]
    next_step: NextStep


def verdict(
    epochs: Sequence[Row], batches: Sequence[Row] = (), config: TrainConfig | None = None, target: float = 0.5
) -> Verdict:
    """Whether a quick test (5 epochs) passed (section 7), and what to do next (section 8).

    It passes where all losses fall, the ratio fluctuates by less than 30 %, the static share of the last epoch is
    within 20 % of `target` and nothing is NaN or infinite. What the rows lack is not judged, but two epochs are needed.
    The balanced weights are the next step where the share is too low and they bring it nearer to the target.
    """
    found = {finding.rule: finding for finding in diagnose(epochs, batches, config)}
    training = [f"{rule}: {found[rule].remedy}" for rule in (Rule.NOT_FINITE, Rule.NOT_FALLING) if rule in found]
    if len(epochs) < 2:
        training.append(f"whether the losses fall is seen from 2 epochs on; {len(epochs)} have ended")
    fluctuation = ratio_fluctuation(epochs)
    if fluctuation is not None and fluctuation >= FLUCTUATION_PASS:
        training.append(f"loss_ratio fluctuates by {fluctuation:.0%} of its mean; must be below {FLUCTUATION_PASS:.0%}")
    share = next((value for _, value in reversed(readings_of(epochs, SHARE))), None)
    if share is None or abs(share - target) < SHARE_PASS * target:
        return Verdict(not training, training, NextStep.MEND if training else NextStep.FULL_RUN)
    low, high = target * (1 - SHARE_PASS), target * (1 + SHARE_PASS)
    balance = f"the static share is {share:.3g}; must be between {low:.3g} and {high:.3g}"
    losses = last_losses(epochs)
    if losses is not None:
        alpha, beta = balancing_weights(*losses, target)
        balance += f" (alpha = {alpha:.4g}, beta = {beta:.4g} would give {target:g})"
    severe = any(found[r].severity is Severity.CRITICAL for r in (Rule.RATIO_HIGH, Rule.RATIO_LOW) if r in found)
    preset_helps = losses is not None and not severe and _preset_helps(*losses, share, target)
    weights = NextStep.BALANCED_WEIGHTS if preset_helps else NextStep.CHANGE_WEIGHTS
    # no weights mend a training that fails as such
    return Verdict(False, [*training, balance], NextStep.MEND if training else weights)


def _preset_helps(static: float, dynamic: float, share: float, target: float) -> bool:
    """Whether the balanced preset, made for a dynamic loss that outweighs the static one, brings the share nearer."""
    alpha, beta = BALANCED_PRESET
    preset_share = alpha * static / (alpha * static + beta * dynamic)
    return share < target and abs(preset_share - target) < target - share
