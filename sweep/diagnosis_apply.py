"""The remedies of a run's findings, applied: a config to train next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from model.config import TrainConfig
from model.configfile import validated
from model.errors import ConfigError
from model.sinks import write_text
from sweep.diagnosis import Finding
from sweep.diagnosis_input import Run
from sweep.words import number


def merged_changes(findings: Iterable[Finding]) -> tuple[dict[str, Any], list[str]]:
    """The changes of all findings, and a sentence for each finding whose changes gave way.

    Where two findings want one key at different values the more severe one wins (of equals, the first); all changes of
    the other are left out, since they belong together.
    """
    merged: dict[str, Any] = {}
    owner: dict[str, Finding] = {}
    conflicts = []
    for finding in sorted(findings, key=lambda finding: -finding.severity.rank):
        clash = next((key for key, new in finding.changes.items() if key in merged and merged[key] != new), None)
        if clash is None:
            merged |= finding.changes
            owner |= {key: owner.get(key, finding) for key in finding.changes}
            continue
        winner = owner[clash]
        conflicts.append(
            f"{clash} = {finding.changes[clash]:.6g} of {finding.rule} ({finding.severity}) gives way to "
            f"{merged[clash]:.6g} of {winner.rule} ({winner.severity})"
        )
    return merged, conflicts


def apply_changes(run: Run, findings: Sequence[Finding], out: Path) -> list[str]:
    """Write the run's config with the changes of all findings; returns lines for the user.

    Raises ConfigError where the run's config is not known, where `out` is its record or cannot be written to, or where
    the trainer refuses the changes.
    """
    if run.config is None:
        raise ConfigError(f"--apply: {run.name} has no config of ours, so there is nothing to change")
    if run.record is not None and out.resolve() == run.record.resolve():
        raise ConfigError(f"--apply {out}: is the record of this run; give another file")
    changes, conflicts = merged_changes(findings)
    old = run.config.model_dump(mode="json")
    config = validated(TrainConfig, old | changes, f"--apply {out}")
    listed = ", ".join(f"{key}: {number(old[key], 'null')} -> {number(new, 'null')}" for key, new in changes.items())
    what = listed or "the config as it was; no finding carries a change"
    name = run.record.resolve().parent.name if run.record is not None else " ".join(run.name.split())
    head = f"# {name} after its diagnosis; train it with: python -m model.train THIS_FILE\n# {what}\n"
    try:
        write_text(out, head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise ConfigError(f"--apply {out}: {error.strerror}; give a file that you may write to") from None
    return [*(f"conflict: {conflict}" for conflict in conflicts), f"{out}: {what}"]
