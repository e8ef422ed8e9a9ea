"""Which findings a trial has told, kept in its folder: a trial that goes on in another process tells none twice."""

from __future__ import annotations

from pathlib import Path

from model.errors import UserError
from model.sinks import read_json, write_json
from sweep.limits import Rule, Severity

TOLD = "findings.json"  # rule -> the severity that was told


def read_told(folder: Path) -> dict[Rule, Severity]:
    """What was told; of a file that is damaged, or of another version, what can be read."""
    try:
        content = read_json(folder / TOLD)
    except (OSError, UserError):
        return {}
    rules, severities = list(Rule), list(Severity)  # lists: what stands there may not be hashable
    return {Rule(rule): Severity(told) for rule, told in content.items() if rule in rules and told in severities}


def write_told(folder: Path, told: dict[Rule, Severity]) -> None:
    """Keep it."""
    write_json(folder / TOLD, {rule.value: severity.value for rule, severity in told.items()})
