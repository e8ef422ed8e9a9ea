"""`python -m model.metric_table`: the table of all metrics as Markdown, for people; it is part of model/README.md.

model/metrics.py is the one place of each fact. Between the two marker comments of a document stands what this module
makes of it, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model import metrics
from model.errors import ConfigError, UserError
from model.metrics import Metric

BEGIN = "<!-- metrics: made by python -m model.metric_table --write FILE; edit model/metrics.py instead -->"
END = "<!-- end of metrics -->"
GROUPS: tuple[tuple[str, str, tuple[Metric, ...]], ...] = (
    ("Batch", "each gradient update, `batch.csv`", metrics.BATCH),
    ("Epoch", "each epoch's end, `epoch.csv`", metrics.EPOCH),
    ("Summary", "the end of the run, also an early one, `summary.json`", metrics.SUMMARY),
    ("Evaluation", "each epoch's end, `epoch.csv`; held-out clips under one protocol for all runs", metrics.EVAL),
    ("Objective", "each epoch's end, `epoch.csv`; of trials of a sweep", metrics.OBJECTIVE),
    (
        "Features",
        "each epoch's end; the probes after the last, and every `probe.every_epochs`; `epoch.csv`",
        metrics.FEATURES,
    ),
)
COLUMNS = ("metric", "what it tells", "formula", "in a sound run")


def table() -> str:
    """All metrics as Markdown: for each group a line that says when it is logged, and a table."""
    return "\n".join(_group(*group) for group in GROUPS) + (
        "\n`*` absent from a row where what it needs was not computed: a loss that the mode leaves out, a probe that "
        "was not asked for.\n"
    )


def inserted(text: str, where: str) -> str:
    """A document with the table between its markers made anew. Raises ConfigError where it has not one pair of them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest:
        raise ConfigError(f"{where}: must hold these two lines once, in this order: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def _group(name: str, when: str, group: Sequence[Metric]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [
        (f"`{metric.name}`{' `*`' if metric.optional else ''}", metric.meaning, _code(metric.formula), metric.sound)
        for metric in group
    ]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"**{name}** ({len(group)}): {when}\n\n{lines}"


def _code(formula: str) -> str:
    return "`" + formula.replace("|", "\\|") + "`"  # GitHub splits cells at a bare bar, in code too


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m model.metric_table`."""
    result = argparse.ArgumentParser(
        prog="python -m model.metric_table",
        description="Print the table of all metrics as Markdown, or put it between the markers of a document.",
        epilog="example: python -m model.metric_table --write model/README.md. Exit code: 0 done, 1 the document is "
        "stale (--check), 2 bad input",
    )
    what = result.add_mutually_exclusive_group()
    what.add_argument("--write", type=Path, metavar="FILE", help="make the table in this document anew")
    what.add_argument("--check", type=Path, metavar="FILE", help="only tell whether the table in it is as it should be")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(arguments)
    path: Path | None = options.write or options.check
    if path is None:
        print(table(), end="")
        return 0
    try:
        text = path.read_text(encoding="utf-8")
        wanted = inserted(text, str(path))
        if text == wanted:
            print(f"{path}: the table of metrics is up to date")
        elif options.check:
            print(f"{path}: the table of metrics is stale; mend it: python -m model.metric_table --write {path}")
            return 1
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"{path}: the table of metrics is made anew")
    except (UserError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
