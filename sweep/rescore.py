"""`python -m sweep.rescore RESULTS`: rank the trials of a sweep by another objective or metric, without training.

    python -m sweep.rescore results/alpha_beta --set objective.ratio_weight=0
    python -m sweep.rescore results/alpha_beta --set metric.name=eval/pred_skill --set metric.goal=maximize
    python -m sweep.rescore results/alpha_beta --set objective.loss=train --out ranks.csv --best best.yaml

The results folder is only read, also while its sweep goes on. Without --set the sweep's own ranking comes back.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.errors import ConfigError, UserError, guess
from model.sinks import write_text
from sweep.blocks import MetricSettings
from sweep.lines import open_console
from sweep.objective import ObjectiveSettings
from sweep.outcome import Outcome
from sweep.rescoring import PARTS, Rescored, Rescoring, rescore
from sweep.scored import Ledger, check_results, read_trial
from sweep.spec import SweepSpec, load_spec
from sweep.words import last_word, number

MOST_ROWS = 50  # of the table in the terminal; --out has all
OF_METRIC = ("metric.name", "metric.goal")
STATE = {Outcome.RUNNING: "unfinished", Outcome.PRUNED: "stopped early"}


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.rescore`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.rescore",
        description="Rank the trials of a sweep by another objective or metric, without training.",
        epilog="example: python -m sweep.rescore results/alpha_beta --set objective.ratio_weight=0",
    )
    result.add_argument("results", type=Path, metavar="RESULTS", help="results folder of a sweep; is only read")
    result.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set objective.KEY, metric.name or metric.goal, repeatable",
    )
    result.add_argument("--out", type=Path, metavar="FILE.csv", help="write a row for each trial")
    result.add_argument("--best", type=Path, metavar="FILE.yaml", help="write the config of the trial that is now best")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input."""
    options = parser().parse_args(arguments)
    console = open_console()
    results: Path = options.results.expanduser()
    try:
        then, now = load_specs(results, options.options)
        for file in (options.out, options.best):
            _check_outside(file, results)
        for warning in now.warnings():
            if warning not in then.warnings():
                console.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)
        outcome = rescore(results, then, now)
        print_rescoring(outcome, console)
        if options.out is not None:
            _write(options.out, csv_text(outcome), console)
        if options.best is not None:
            _write(options.best, best_text(outcome, results, options.options), console)
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0


def load_specs(results: Path, overrides: Sequence[str]) -> tuple[SweepSpec, SweepSpec]:
    """The spec that a sweep ran under, and the same with the overrides.

    Raises UserError where there is no sweep, or for an override of anything but the objective and the metric.
    """
    check_results(results)
    then = load_spec(results / "spec.yaml")
    known = [f"objective.{name}" for name in ObjectiveSettings.model_fields]
    for option in overrides:
        key = option.partition("=")[0].strip()
        if key in OF_METRIC and then.metrics:
            names = ", ".join(metric.name for metric in then.metrics)
            raise ConfigError(
                f"--set {option!r}: this sweep optimises several metrics ({names}), so there is no metric to set; "
                "set keys of objective, or look at one metric of the rows that --out writes"
            )
        if not key.startswith("objective.") and key not in OF_METRIC:
            raise ConfigError(
                f"--set {option!r}: rescoring trains nothing, so only the objective and the metric can be set;"
                f"{guess(key, [*known, *OF_METRIC])} Known: {', '.join([*known, *OF_METRIC])}."
            )
    return then, load_spec(results / "spec.yaml", overrides)


def print_rescoring(outcome: Rescoring, console: Console) -> None:
    """The ranking, the confirmed configs, the notes, and which trial is best now."""
    console.print(_trial_table(outcome))
    if len(outcome.trials) > MOST_ROWS:
        console.print(f"... and {len(outcome.trials) - MOST_ROWS} more; --out FILE.csv writes all")
    if outcome.confirmed:
        console.print(_confirmed_table(outcome))
    for note in outcome.notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    if outcome.correlation is not None:
        console.print(f"rank correlation of old and new (Spearman): {outcome.correlation:.3f}")
    console.print(conclusion(outcome), style="bold", markup=False, soft_wrap=True)


def conclusion(outcome: Rescoring) -> str:
    """Which trial, or front, is best now, and whether it was before."""
    now, then = ([trial.trial for trial in trials] for trials in (outcome.best, outcome.old_best))
    if not now:
        return "no trial trained to its end, so none has a rank"
    if len(outcome.now.objectives) == 1:
        if now == then:
            return f"best: trial {now[0]}, as before"
        return f"best: trial {now[0]}; it was trial {then[0]}" if then else f"best: trial {now[0]}"
    text = f"Pareto front: trials {', '.join(now)}"
    if now == then:
        return f"{text}, as before"
    changes = (("new in it", set(now) - set(then)), ("no longer in it", set(then) - set(now)))
    return "; ".join([text, *(f"{what}: {', '.join(sorted(trials))}" for what, trials in changes if trials)])


def _trial_table(outcome: Rescoring) -> Table:
    several = len(outcome.now.objectives) > 1
    by = ", ".join(metric.name for metric in outcome.now.objectives)
    table = Table(title=f"{outcome.now.name}, by {by}", title_justify="left", box=None, pad_edge=False)
    for name in ("rank", "was"):
        table.add_column(name, justify="right")
    for name in ("trial", "state", "preset"):
        table.add_column(name, overflow="fold")
    searched = list(outcome.now.space.parameters)
    values = [f"{when} {last_word(metric.name)}" for when, metric in _columns(outcome)]
    parts = [part for part in PARTS if any(part in trial.parts for trial in outcome.trials)]
    for name in (*searched, *values, *map(last_word, parts)):
        table.add_column(name, justify="right", overflow="fold")
    for trial in outcome.trials[:MOST_ROWS]:
        ranks = [_rank(rank, several) for rank in (trial.new_rank, trial.old_rank)]
        head = [*ranks, trial.trial, STATE.get(trial.outcome, trial.outcome.value), trial.preset or ""]
        numbers = [*map(trial.values.get, searched), *_values(outcome, trial), *map(trial.parts.get, parts)]
        table.add_row(*map(Text, (*head, *map(number, numbers))), style=None if trial.new_rank else "dim")
    return table


def _confirmed_table(outcome: Rescoring) -> Table:
    title = "\nconfirmed configs: means over their seeds"
    table = Table("config", title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("runs", *(f"{when} {last_word(metric.name)}" for when, metric in _columns(outcome))):
        table.add_column(name, justify="right")
    for row in outcome.confirmed:
        table.add_row(*map(Text, (row.candidate, str(row.runs), number(row.old), number(row.new))))
    return table


def csv_text(outcome: Rescoring) -> str:
    """All trials as CSV: a rank of 1 is the best, or says that a trial is in the Pareto front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parameters = list(outcome.now.space.parameters)
    values = [f"{when}/{metric.name}" for when, metric in _columns(outcome)]
    writer.writerow(["trial", "state", "preset", "rank", "old_rank", *parameters, *values, *PARTS])
    for trial in outcome.trials:
        head = [trial.trial, trial.outcome.value, trial.preset, trial.new_rank, trial.old_rank]
        searched = [trial.values.get(name) for name in parameters]
        parts = [trial.parts.get(part) for part in PARTS]
        writer.writerow([*head, *searched, *_values(outcome, trial), *parts])
    return text.getvalue()


def best_text(outcome: Rescoring, results: Path, overrides: Sequence[str]) -> str:
    """The config of the best trial, for `python -m model.train`. Raises UserError where there is no single one."""
    if len(outcome.now.objectives) > 1:
        raise ConfigError("--best: of several metrics there is a front, no best trial; --out FILE.csv has all of it")
    if not outcome.best:
        raise ConfigError("--best: no trial trained to its end, so there is none to write")
    from sweep.trial import config_text  # imports torch

    winner = outcome.best[0]
    value = winner.new[0] if winner.new else None
    under = f" under {', '.join(overrides)}" if overrides else ""
    about = f"best of sweep {outcome.now.name}{under} (trial {winner.trial}, {outcome.now.metric.name} {number(value)})"
    return config_text(read_trial(results / "trials" / winner.trial, Ledger()).config, about)


def _columns(outcome: Rescoring) -> list[tuple[str, MetricSettings]]:
    """What the values of `_values` are."""
    specs = (("old", outcome.then), ("new", outcome.now))
    return [(when, metric) for when, spec in specs for metric in spec.objectives]


def _values(outcome: Rescoring, trial: Rescored) -> list[float | None]:
    old = trial.old or [None] * len(outcome.then.objectives)
    return [*old, *(trial.new or [None] * len(outcome.now.objectives))]


def _rank(rank: int | None, several: bool) -> str:
    if rank is None:
        return "-"
    return "front" if several else str(rank)


def _check_outside(file: Path | None, results: Path) -> None:
    if file is not None and file.expanduser().resolve().is_relative_to(results.resolve()):
        raise ConfigError(
            f"{file}: lies in the results folder, which is the record of the sweep; give a file elsewhere"
        )


def _write(file: Path, text: str, console: Console) -> None:
    try:
        write_text(file.expanduser(), text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; give a file that you may write to") from None
    console.print(f"written: {file}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
