"""`python -m sweep.diagnose RUN`: what is wrong with a training run or with the trials of a sweep, and what to change.

    python -m sweep.diagnose results/alpha_beta/trials/0003
    python -m sweep.diagnose runs/first --apply next.yaml && python -m model.train next.yaml
    python -m sweep.diagnose results/alpha_beta

RUN is a trial's folder, the output folder of `python -m model.train`, or the results folder of a sweep. It is only
read, also while the run goes on. The rules are those of sweep/diagnosis.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.config import TrainConfig
from model.configfile import load_yaml, validated
from model.errors import ConfigError, DataError, UserError
from model.sinks import Row, read_csv, write_text
from sweep.diagnosis import Finding, diagnose, verdict
from sweep.limits import Rule, Severity

STYLE = {Severity.INFO: "cyan", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}
STEP_COLUMN = {"epoch.csv": "epoch", "batch.csv": "batch/epoch"}  # which epoch a row belongs to


class NoRowsError(DataError):
    """Nothing was trained yet."""


@dataclass(frozen=True)
class Run:
    """The files of a run. `config` is None where the folder has no config.yaml."""

    folder: Path
    epochs: Sequence[Row]
    batches: Sequence[Row]
    config: TrainConfig | None

    def findings(self) -> list[Finding]:
        """What the rules see in it."""
        return diagnose(self.epochs, self.batches, self.config)


def load_run(folder: Path) -> Run:
    """Read a run's folder. Raises NoRowsError where it holds no rows, UserError where a file of it is damaged."""
    epochs, batches = (_rows(folder / name) for name in ("epoch.csv", "batch.csv"))
    if not epochs and not batches:
        raise NoRowsError(
            f"{folder}: epoch.csv and batch.csv are missing or hold no row; nothing was trained yet. "
            "Give the folder of a trial, such as results/alpha_beta/trials/0003, or the --out folder of model.train"
        )
    path = folder / "config.yaml"
    config = validated(TrainConfig, load_yaml(path), str(path)) if path.exists() else None
    return Run(folder, epochs, batches, config)


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        rows = read_csv(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    column = STEP_COLUMN[path.name]
    for number, row in enumerate(rows, start=2):
        steps = {column: row.get(column, math.nan)} | {name: row[name] for name in STEP_COLUMN.values() if name in row}
        for name, step in steps.items():
            if not float(step).is_integer():
                raise DataError(f"{path}: line {number} does not tell its epoch; the column {name!r} must hold it")
    return rows


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


def apply_changes(run: Run, findings: Sequence[Finding], out: Path, console: Console) -> None:
    """Write the run's config with the changes of all findings. Raises UserError where there is none to write."""
    if run.config is None:
        raise ConfigError(f"--apply: {run.folder} has no config.yaml, so there is nothing to change")
    if out.resolve() == (run.folder / "config.yaml").resolve():
        raise ConfigError(f"--apply {out}: is the record of this run; give another file")
    changes, conflicts = merged_changes(findings)
    old = run.config.model_dump(mode="json")
    config = validated(TrainConfig, old | changes, f"--apply {out}")
    shown = ", ".join(f"{key}: {_value(old[key])} -> {_value(new)}" for key, new in changes.items())
    what = shown or "the config as it was; no finding carries a change"
    name = run.folder.resolve().name
    head = f"# {name} after its diagnosis; train it with: python -m model.train THIS_FILE\n# {what}\n"
    try:
        write_text(out, head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    except OSError as error:
        raise ConfigError(f"--apply {out}: {error.strerror}; give a file that you may write to") from None
    for conflict in conflicts:
        console.print(f"conflict: {conflict}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{out}: {what}", markup=False, soft_wrap=True)


def print_run(run: Run, findings: Sequence[Finding], console: Console) -> None:
    """The findings of one run as a table, and how it would fare as a quick test."""
    where = f"{run.folder}: {len(run.epochs)} epochs, {len(run.batches)} updates"
    if findings:
        table = Table("severity", "rule", title=Text(where), title_justify="left")
        table.add_column("value", justify="right")
        table.add_column("limit", justify="right")
        table.add_column("epoch", justify="right")
        table.add_column("remedy", overflow="fold")
        for found in findings:
            severity = Text(found.severity, style=STYLE[found.severity])
            cells = (found.rule, _value(found.value), _value(found.limit), str(found.epoch), found.remedy)
            table.add_row(severity, *map(Text, cells))
        console.print(table)
    else:
        console.print(f"{where}; no finding", markup=False, soft_wrap=True)
    if run.config is None:
        console.print("note: without config.yaml, no new learning rate can be given", style="yellow")
    result = verdict(run.epochs, run.batches, run.config)
    outcome = "passed" if result.passed else "not passed"
    console.print(f"quick test: {outcome}; next: {result.next_step}", soft_wrap=True)
    for reason in result.reasons:
        console.print(f"- {reason}", markup=False, soft_wrap=True)


def diagnose_sweep(folder: Path, console: Console) -> int:
    """A line per trial of a results folder, then how often each rule fires. Returns the exit code of `main`."""
    trials = Table("trial", "severity", title=Text(str(folder)), title_justify="left", box=None, pad_edge=False)
    trials.add_column("epochs", justify="right")
    trials.add_column("findings", overflow="fold")
    fired: Counter[tuple[Rule, Severity]] = Counter()
    damaged = 0
    for path in sorted(path for path in (folder / "trials").iterdir() if path.is_dir()):
        try:
            run = load_run(path)
        except NoRowsError:
            trials.add_row(Text(path.name), "-", "0", "nothing was trained yet")
            continue
        except UserError as error:
            damaged += 1
            trials.add_row(Text(path.name), Text("damaged", style="red"), "-", Text(str(error)))
            continue
        findings = run.findings()
        fired.update((found.rule, found.severity) for found in findings)
        worst = findings[0].severity if findings else None
        severity = Text(worst, style=STYLE[worst]) if worst else Text("ok", style="green")
        names = ", ".join(f"{found.rule} ({found.severity})" for found in findings)
        trials.add_row(Text(path.name), severity, str(len(run.epochs)), Text(names))
    if not trials.row_count:
        raise DataError(f"{folder}: trials/ holds no trial yet")
    console.print(trials)
    console.print(_rule_table(fired, trials.row_count))
    if damaged:
        return 2
    return int(any(severity is not Severity.INFO for _, severity in fired))


def _rule_table(fired: Counter[tuple[Rule, Severity]], num_trials: int) -> Table:
    title = f"\nrules that fire, of {num_trials} trials"
    table = Table("rule", title=title, title_justify="left", box=None, pad_edge=False)
    levels = list(reversed(Severity))
    for severity in levels:
        table.add_column(severity, justify="right")
    for rule in Rule:
        counts = [fired[rule, severity] for severity in levels]
        if any(counts):
            table.add_row(rule, *(str(count or "-") for count in counts))
    return table


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.diagnose`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.diagnose",
        description="Say what is wrong with a training run, or with the trials of a sweep, and what to change. "
        "Exit code: 0 nothing above info, 1 a warning or critical finding, 2 bad input.",
        epilog="example: python -m sweep.diagnose results/alpha_beta/trials/0003 --apply next.yaml",
    )
    result.add_argument("run", type=Path, metavar="RUN", help="folder of a trial, a training run or a sweep's results")
    result.add_argument("--apply", type=Path, metavar="OUT.yaml", help="write the run's config with all remedies")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 nothing above info, 1 a warning or critical finding, 2 bad input."""
    options = parser().parse_args(arguments)
    console = Console(highlight=False)
    folder: Path = options.run.expanduser()
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; give that of a trial, such as results/alpha_beta/trials/0003")
        if (folder / "trials").is_dir():
            if options.apply is not None:
                raise ConfigError(f"--apply: {folder} is a sweep; give one trial, such as {folder / 'trials' / '0000'}")
            return diagnose_sweep(folder, console)
        run = load_run(folder)
        findings = run.findings()
        print_run(run, findings, console)
        if options.apply is not None:
            apply_changes(run, findings, options.apply, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(found.severity is not Severity.INFO for found in findings))


if __name__ == "__main__":
    sys.exit(main())
