"""The diagnosis in the terminal: of one run, or of several with where in the search space the rules fire."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweep.diagnosis import Finding
from sweep.diagnosis_input import Run
from sweep.diagnosis_verdict import NextStep, Verdict
from sweep.limits import Rule, Severity
from sweep.sweep_diagnosis import FiredRule
from sweep.words import number

STYLE = {Severity.INFO: "cyan", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}
APPLY = "python -m sweep.diagnose RUN --apply next.yaml, then train next.yaml"
COMMANDS = {
    NextStep.FULL_RUN: "scripts/train_joint_equal_weights.sh for equal weights, else python -m model.train CONFIG",
    NextStep.CHANGE_WEIGHTS: APPLY,
    NextStep.BALANCED_WEIGHTS: "scripts/train_joint_balanced_weights.sh",
    NextStep.MEND: APPLY,
}


@dataclass(frozen=True)
class Judged:
    """A run of several: what the rules see in it, or why it cannot be judged.

    Attributes:
        findings: None where nothing was trained yet, or its files are damaged.
        problem: why; `damaged` tells the two apart.
    """

    name: str
    epochs: int
    findings: Sequence[Finding] | None
    problem: str = ""
    damaged: bool = False


def print_run(run: Run, findings: Sequence[Finding], result: Verdict, console: Console) -> None:
    """The findings of one run as a table, and how it fares as a quick test."""
    where = f"{run.name}: {len(run.epochs)} epochs, {len(run.batches)} updates"
    if findings:
        table = Table("severity", "rule", title=Text(where), title_justify="left")
        table.add_column("value", justify="right")
        table.add_column("limit", justify="right")
        table.add_column("epoch", justify="right")
        table.add_column("remedy", overflow="fold")
        for found in findings:
            severity = Text(found.severity, style=STYLE[found.severity])
            cells = (
                found.rule,
                number(found.value, "null"),
                number(found.limit, "null"),
                str(found.epoch),
                found.remedy,
            )
            table.add_row(severity, *map(Text, cells))
        console.print(table)
    else:
        _line(console, f"{where}; no finding")
    for note in run.notes:
        _line(console, f"note: {note}", "yellow")
    _line(console, f"quick test: {'passed' if result.passed else 'not passed'}; next: {result.next_step}")
    for reason in result.reasons:
        _line(console, f"- {reason}")
    own = str(run.record.parent) if run.record is not None else "RUN"
    _line(console, f"by: {COMMANDS[result.next_step].replace('RUN', shlex.quote(own))}")


def print_runs(title: str, runs: Sequence[Judged], fired: Sequence[FiredRule], console: Console) -> None:
    """A line per run, how often each rule fires, and where in the search space; `fired` is empty without a space."""
    table = Table("trial", "severity", title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("epochs", justify="right")
    table.add_column("findings", overflow="fold")
    counts: Counter[tuple[Rule, Severity]] = Counter()
    for run in runs:
        if run.findings is None:
            state = Text("damaged", style="red") if run.damaged else Text("-")
            table.add_row(Text(run.name), state, "-" if run.damaged else "0", Text(run.problem))
            continue
        counts.update((found.rule, found.severity) for found in run.findings)
        worst = run.findings[0].severity if run.findings else None
        severity = Text(worst, style=STYLE[worst]) if worst else Text("ok", style="green")
        names = ", ".join(f"{found.rule} ({found.severity})" for found in run.findings)
        table.add_row(Text(run.name), severity, str(run.epochs), Text(names))
    console.print(table)
    console.print(_rule_table(counts, len(runs)))
    if fired:
        _line(console, "\nwhere in the search space, and what to change before the next sweep")
    for found in fired:
        line = Text.assemble(found.rule, " (", (found.severity, STYLE[found.severity]), f"): {found.where}")
        console.print(line, soft_wrap=True)
        _line(console, f"  {found.remedy}")


def _rule_table(counts: Counter[tuple[Rule, Severity]], num_runs: int) -> Table:
    title = f"\nrules that fire, of {num_runs} trials"
    table = Table("rule", title=title, title_justify="left", box=None, pad_edge=False)
    levels = list(reversed(Severity))
    for severity in levels:
        table.add_column(severity, justify="right")
    for rule in Rule:
        cells = [counts[rule, severity] for severity in levels]
        if any(cells):
            table.add_row(rule, *(str(count or "-") for count in cells))
    return table


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)
