"""`python -m sweep.diagnose RUN`: what is wrong with a training run or with the trials of a sweep, and what to change.

    python -m sweep.diagnose results/alpha_beta/trials/0003
    python -m sweep.diagnose runs/first --apply next.yaml && python -m model.train next.yaml
    python -m sweep.diagnose results/alpha_beta
    python -m sweep.diagnose wandb/offline-run-20260101_120000-abc123

RUN is a trial's folder, the output folder of `python -m model.train`, the results folder of a sweep, or W&B's folder of
a run (or the `.wandb` file in it). It is only read, also while the run goes on. The rules are those of
sweep/diagnosis.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from model.errors import ConfigError, DataError, UserError
from sweep.diagnosis_apply import apply_changes
from sweep.diagnosis_input import NoRowsError, Run, load_run, read_run
from sweep.diagnosis_text import Judged, print_run, print_runs
from sweep.diagnosis_verdict import verdict
from sweep.limits import Rule, Severity
from sweep.lines import open_console
from sweep.sweep_diagnosis import DiagnosedTrial, fired_rules


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.diagnose`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.diagnose",
        description="Say what is wrong with a training run, or with the trials of a sweep, and what to change. "
        "Exit code: 0 nothing above info, 1 a warning or critical finding, 2 bad input.",
        epilog="example: python -m sweep.diagnose results/alpha_beta/trials/0003 --apply next.yaml",
    )
    result.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="folder of a trial, a training run or a sweep's results; W&B's folder of a run",
    )
    result.add_argument("--apply", type=Path, metavar="OUT.yaml", help="write the run's config with all remedies")
    result.add_argument(
        "--verdict",
        action="store_true",
        help="judge the run as a quick test; exit code: 0 passed, 1 not passed, 2 bad input or diverged",
    )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0 nothing above info, 1 a warning or critical finding, 2 bad input; with --verdict 0 passed, 1 not passed, 2 bad
    input or diverged.
    """
    options = parser().parse_args(arguments)
    console = open_console()
    path: Path = options.run.expanduser()
    try:
        if (path / "trials").is_dir():
            example = path / "trials" / "0000"
            _check_single(options, f"{path} is a sweep; give one trial, such as {example}")
            return _diagnose_sweep(path, console)
        return _diagnose_run(read_run(path), options, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check_single(options: argparse.Namespace, problem: str) -> None:
    for option in ("apply", "verdict"):
        if getattr(options, option):
            raise ConfigError(f"--{option}: {problem}")


def _diagnose_run(run: Run, options: argparse.Namespace, console: Console) -> int:
    findings = run.findings()
    result = verdict(run.epochs, run.batches, run.config)
    print_run(run, findings, result, console)
    if options.apply is not None:
        for line in apply_changes(run, findings, options.apply):
            console.print(line, markup=False, soft_wrap=True)
    if options.verdict:
        diverged = any(found.rule is Rule.NOT_FINITE for found in findings)
        return 2 if diverged else int(not result.passed)
    return int(any(found.severity is not Severity.INFO for found in findings))


def _diagnose_sweep(folder: Path, console: Console) -> int:
    """A line per trial of a results folder, then which rules fire where. Returns the exit code of `main`."""
    from sweep.imported import values_of
    from sweep.spec import load_spec

    try:
        spec, note = load_spec(folder / "spec.yaml"), None
    except UserError as error:
        spec, note = None, f"where in the space the rules fire is not known: {error}"
    judged, placed = [], []
    for each, run in _trials(folder):
        judged.append(each)
        if spec is None or run is None or run.config is None or each.findings is None or not each.name.isdecimal():
            continue  # the runs of a confirmation have names of their own: they are no part of the search
        try:
            placed.append(DiagnosedTrial(each.name, values_of(run.config, spec), each.findings))
        except (KeyError, TypeError, ValueError):  # of another version's config
            note = f"where the rules fire leaves out trial {each.name}: its config.yaml is of another sweep"
    if not judged:
        raise DataError(f"{folder}: trials/ holds no trial yet")
    print_runs(str(folder), judged, fired_rules(placed), console)
    if note is not None:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    return 2 if any(each.damaged for each in judged) else _code(judged)


def _trials(folder: Path) -> Iterator[tuple[Judged, Run | None]]:
    for path in sorted(path for path in (folder / "trials").iterdir() if path.is_dir()):
        try:
            run = load_run(path)
        except NoRowsError:
            yield Judged(path.name, 0, None, "nothing was trained yet"), None
        except UserError as error:
            yield Judged(path.name, 0, None, str(error), damaged=True), None
        else:
            yield Judged(path.name, len(run.epochs), run.findings()), run


def _code(judged: Sequence[Judged]) -> int:
    levels = {found.severity for each in judged for found in each.findings or ()}
    return int(bool(levels - {Severity.INFO}))


if __name__ == "__main__":
    sys.exit(main())
