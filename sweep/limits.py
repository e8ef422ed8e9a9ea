"""The limits of the diagnosis rules, one table: which value of which rule is how severe, and where that is from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Severity(StrEnum):
    """How urgent a finding is; the members are in rising order."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for the mildest."""
        return list(Severity).index(self)


class Rule(StrEnum):
    """What a finding is about."""

    NOT_FINITE = "NaN / Inf"
    JUMPS = "loss jumps"
    OSCILLATES = "loss oscillates"
    RATIO_UNSTABLE = "ratio unstable"
    RATIO_HIGH = "ratio high"
    RATIO_LOW = "ratio low"
    STATIC_SHARE = "static share"
    NOT_FALLING = "loss does not fall"
    COLLAPSE = "features collapse"


@dataclass(frozen=True)
class Limit:
    """A rule fires with `severity` where its value is strictly above (or below) `value`."""

    rule: Rule
    severity: Severity
    side: Literal["above", "below"]
    value: float
    origin: str

    def exceeded_by(self, value: float) -> bool:
        """Whether the rule fires."""
        return value > self.value if self.side == "above" else value < self.value


LIMITS = (
    Limit(Rule.RATIO_HIGH, Severity.INFO, "above", 1.2, "section 1.2, batch/loss_ratio"),
    Limit(Rule.RATIO_HIGH, Severity.WARNING, "above", 1.5, "section 6.1"),
    Limit(Rule.RATIO_HIGH, Severity.CRITICAL, "above", 2.0, "section 7, needs debugging"),
    Limit(Rule.RATIO_LOW, Severity.INFO, "below", 0.6, "section 1.2, batch/loss_ratio"),
    Limit(Rule.RATIO_LOW, Severity.WARNING, "below", 0.5, "section 6.1"),
    Limit(Rule.RATIO_LOW, Severity.CRITICAL, "below", 0.3, "section 7, needs debugging"),
    # (max - min) / mean of the recent epochs' ratios
    Limit(Rule.RATIO_UNSTABLE, Severity.WARNING, "above", 0.30, "section 7, test passed"),
    Limit(Rule.STATIC_SHARE, Severity.INFO, "above", 0.60, "section 2.3"),
    Limit(Rule.STATIC_SHARE, Severity.INFO, "below", 0.40, "section 2.3"),
    Limit(Rule.STATIC_SHARE, Severity.WARNING, "above", 0.65, "section 6.2"),
    Limit(Rule.STATIC_SHARE, Severity.WARNING, "below", 0.35, "section 6.2: dynamic share > 65 %"),
    Limit(Rule.STATIC_SHARE, Severity.CRITICAL, "above", 0.70, "section 7, needs debugging"),
    Limit(Rule.STATIC_SHARE, Severity.CRITICAL, "below", 0.30, "section 7, needs debugging"),
    # last / first - 1. The text names no limit but a fall of 5-10 % within epochs 1-2 (section 7). Without training,
    # the means of two epochs of 6 updates differ by 1-2 % (masks, flips): a fall of less cannot be told from noise.
    Limit(Rule.NOT_FALLING, Severity.WARNING, "above", -0.02, "sections 6.3 and 7; ours, above the noise"),
    # turns in a row: up-down-up-down. One bump of a healthy curve (down, up, down) has two.
    Limit(Rule.OSCILLATES, Severity.WARNING, "above", 2, "section 6.3; the number is ours"),
    Limit(Rule.JUMPS, Severity.WARNING, "above", 2.0, "section 6.3; the number is ours"),
    # eval/effective_rank of 64 held-out clips, measured: healthy runs 16-32 on procedural clips, 4-6 on real ones, 2.1
    # on clips of only two presses; a run at 1000 times the usual rate 2.1; an encoder that does not see its input 0.
    Limit(Rule.COLLAPSE, Severity.WARNING, "below", 2.0, "ours: below what two presses give"),
    Limit(Rule.COLLAPSE, Severity.CRITICAL, "below", 1.2, "ours: one direction, or none"),
    Limit(Rule.NOT_FINITE, Severity.CRITICAL, "above", math.inf, "section 7, needs debugging"),
)
