"""`python -m sweep.run SPEC`: search alpha : beta, learning rate and mask ratio of the joint tactile MAE.

    python -m sweep.run sweeps/alpha_beta.yaml --set run_cap=32 --results results/first

Checks the spec and the data first, then runs the trials with Ray Tune. Ctrl-C ends cleanly; `--resume` goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from model.bars import decoding
from model.errors import UserError
from sweep.plan import SweepPlan, make_plan
from sweep.progress import Progress
from sweep.results import ResultsFolder, TrialTable
from sweep.spec import SweepSpec, load_spec
from sweep.study import JOURNAL, Outcome, Record, SweepStudy, best
from sweep.terminal import print_plan, print_summary


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.run`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.run",
        description="Run a hyperparameter sweep of the joint tactile MAE: Ray Tune, Optuna, Weights & Biases.",
        epilog="example: python -m sweep.run sweeps/alpha_beta.yaml --set run_cap=32 --results results/first",
    )
    result.add_argument("spec", type=Path, help="sweep file, in W&B's sweep language and ours")
    result.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the spec, repeatable",
    )
    result.add_argument("--results", type=Path, metavar="DIR", help="results folder (default: results/<name>)")
    result.add_argument("--resume", action="store_true", help="go on with the sweep in the results folder")
    result.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 no trial finished, 2 bad input, 130 stopped by the user."""
    options = parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        spec = load_spec(options.spec, options.options)
        folder = ResultsFolder(options.results or Path("results") / spec.name)
        return run(spec, folder, console, resume=options.resume, dry_run=options.dry_run)
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except (KeyboardInterrupt, SystemExit):  # the latter: SIGTERM while Ray starts
        print("stopped at once; go on with the same command and --resume, if the sweep had begun", file=sys.stderr)
        return 130


def run(
    spec: SweepSpec, folder: ResultsFolder, console: Console, *, resume: bool = False, dry_run: bool = False
) -> int:
    """Check, plan, run, sum up; returns the exit code. Raises UserError for bad input, before anything is started."""
    for warning in spec.warnings():
        console.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)
    folder.check(spec, resume)
    plan = _plan_with_bar(spec, console)
    print_plan(plan, folder, console)
    if dry_run:
        console.print("dry run: everything was checked, nothing was started")
        return 0
    folder.open(spec, resume)
    try:
        return _run_open(plan, folder, console)
    except UserError:
        if not resume:
            folder.discard()  # nothing was computed: the mended spec may use the same folder
        raise
    finally:
        folder.close()


def _run_open(plan: SweepPlan, folder: ResultsFolder, console: Console) -> int:
    spec = plan.spec
    uid = folder.write_provenance(spec)
    study = _open_study(plan, folder)
    from sweep.tuner import run_trials  # imports Ray: not before everything was checked

    records = study.records()
    ended = [record for record in records if record.outcome is not Outcome.RUNNING]
    table = TrialTable(folder, spec)
    for record in records:
        table.update(record)
    to_run = spec.num_trials - len(ended)
    stopped = False
    if to_run > 0:
        if records:
            console.print(f"resuming: {len(ended)} trials are done, {study.unfinished} go on, {to_run} to run in all")
        progress = Progress(
            console,
            num_trials=spec.num_trials,
            done=len(ended),
            epochs=plan.base.epochs,
            find=study.record,
            sign=1.0 if spec.metric.goal == "minimize" else -1.0,
            metric=spec.metric.name,
            on_ended=table.update,
        )
        for record in ended:
            progress.note_best(record)
        with progress:
            try:
                stopped = run_trials(spec, folder, study, uid, to_run, progress)
            finally:
                for record in study.records():
                    table.update(record)
                table.write()
    else:
        table.write()
        console.print(f"all {spec.num_trials} trials are done already; --set run_cap={spec.num_trials * 2} adds more")
    records = study.records()
    winner = _write_findings(spec, folder, records, console)
    print_summary(spec, folder, records, winner, console)
    if stopped:
        console.print("stopped; go on with the same command and --resume", style="bold")
        return 130
    return 0 if winner is not None else 1


def _open_study(plan: SweepPlan, folder: ResultsFolder) -> SweepStudy:
    spec = plan.spec
    try:
        return SweepStudy(
            folder.path,
            spec.name,
            spec.space,
            sampler=spec.search.sampler or "random",
            seed=spec.search.seed,
            startup_trials=spec.search.startup_trials,
            direction=spec.metric.goal,
            first=plan.first,
        )
    except (ValueError, LookupError, OSError) as error:
        raise UserError(
            f"results: the study {folder.path / JOURNAL} cannot be used ({type(error).__name__}: {error}); restore it "
            "from a copy, or start anew in another folder with --results DIR. The trials' own files are untouched"
        ) from None


def _write_findings(spec: SweepSpec, folder: ResultsFolder, records: list[Record], console: Console) -> Record | None:
    """Write best.yaml and report.html; returns the best trial, None where no trial trained to its end."""
    from sweep.report import write_report
    from sweep.trial import config_text

    winner = best(records, spec.metric.goal)
    if winner is not None:
        config = spec.space.to_config(spec.trainer, winner.values)
        about = f"best of sweep {spec.name} (trial {winner.trial}, {spec.metric.name} {winner.value:.6g})"
        folder.write_best(config_text(config, about))
    try:
        write_report(folder.path)
    except Exception as error:  # a page that fails must not hide what the sweep found
        console.print(f"note: no report: {type(error).__name__}: {error}", style="yellow", markup=False)
    return winner


def _plan_with_bar(spec: SweepSpec, console: Console) -> SweepPlan:
    with decoding(console) as progress:
        return make_plan(spec, progress)


if __name__ == "__main__":
    sys.exit(main())
