"""`python -m sweep.run SPEC`: search alpha : beta, learning rate and mask ratio of the joint tactile MAE.

    python -m sweep.run sweeps/alpha_beta.yaml --set run_cap=32 --results results/first

Checks the spec and the data first, then runs the trials with Ray Tune. Ctrl-C ends cleanly; `--resume` goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from model.errors import UserError
from sweep.plan import SweepPlan, make_plan
from sweep.results import ResultsFolder, TrialTable, equal_weights
from sweep.spec import SweepSpec, load_spec
from sweep.study import Outcome, Record, SweepStudy, best

DEFAULT_SPEC = Path("sweeps/alpha_beta.yaml")


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
    except KeyboardInterrupt:
        return 130


def run(
    spec: SweepSpec, folder: ResultsFolder, console: Console, *, resume: bool = False, dry_run: bool = False
) -> int:
    """Check, plan, run, sum up; returns the exit code. Raises UserError for bad input, before anything is started."""
    for warning in spec.warnings():
        console.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)
    folder.check(spec, resume)
    plan = _plan_with_bar(spec, console)
    _print_plan(plan, folder, console)
    if dry_run:
        console.print("dry run: everything was checked, nothing was started")
        return 0
    folder.open(spec, resume)
    try:
        return _run_open(plan, folder, console)
    finally:
        folder.close()


def _run_open(plan: SweepPlan, folder: ResultsFolder, console: Console) -> int:
    spec = plan.spec
    uid = folder.write_provenance(spec)
    study = SweepStudy(
        folder.path,
        spec.name,
        spec.space,
        sampler=spec.search.sampler or "random",
        seed=spec.search.seed,
        startup_trials=spec.search.startup_trials,
        direction=spec.metric.goal,
        first=plan.first,
    )
    from sweep.progress import Progress
    from sweep.searcher import trial_name  # imports Ray: not before everything was checked
    from sweep.tuner import run_trials

    records = study.records()
    ended = [record for record in records if record.outcome is not Outcome.RUNNING]
    table = TrialTable(folder, spec)
    for record in records:
        table.update(record, trial_name(record.number))
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
            find=lambda trial: study.record(int(trial)),
            sign=1.0 if spec.metric.goal == "minimize" else -1.0,
            metric=spec.metric.name,
            on_ended=table.update,
        )
        for record in ended:
            if record.outcome is Outcome.COMPLETE and record.value is not None:
                progress.note_best(trial_name(record.number), record.value)
        with progress:
            try:
                stopped = run_trials(spec, folder, study, uid, to_run, progress)
            finally:
                for record in study.records():
                    table.update(record, trial_name(record.number))
                table.write()
    else:
        table.write()
        console.print(f"all {spec.num_trials} trials are done already; --set run_cap={spec.num_trials * 2} adds more")
    records = study.records()
    return _sum_up(plan, folder, records, stopped, console)


def _sum_up(plan: SweepPlan, folder: ResultsFolder, records: list[Record], stopped: bool, console: Console) -> int:
    from sweep.report import write_report
    from sweep.searcher import trial_name
    from sweep.trial import config_text

    spec = plan.spec
    winner = best(records, spec.metric.goal)
    if winner is not None:
        config = spec.space.to_config(spec.trainer, winner.values)
        about = f"best of sweep {spec.name} (trial {trial_name(winner.number)}, {spec.metric.name} {winner.value:.6g})"
        folder.write_best(config_text(config, about))
    try:
        report = str(write_report(folder.path))
    except Exception as error:  # a page that fails must not hide what the sweep found
        report = f"not written: {type(error).__name__}: {error}"
    counts = {outcome: sum(record.outcome is outcome for record in records) for outcome in Outcome}
    shown = ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count)
    console.print(f"\n{len(records)} trials: {shown}", soft_wrap=True)
    if winner is not None:
        _print_winner(spec, winner, equal_weights(records), folder, console)
        console.print(f"train it longer: python -m model.train {folder.best_file}", soft_wrap=True, markup=False)
    console.print(f"report: {report}", soft_wrap=True, markup=False)
    if stopped:
        console.print("stopped; go on with the same command and --resume", style="bold")
        return 130
    if winner is None:
        reasons = {record.reason for record in records if record.reason}
        console.print(
            "no trial trained to its end, so there is no best one"
            + (": " + "; ".join(sorted(reasons)[:3]) if reasons else ""),
            style="red",
            markup=False,
            soft_wrap=True,
        )
        return 1
    return 0


def _print_winner(
    spec: SweepSpec, winner: Record, equal: Record | None, folder: ResultsFolder, console: Console
) -> None:
    from sweep.searcher import trial_name

    metric = spec.metric.name
    table = Table(title=f"best trial: {trial_name(winner.number)}", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("best", justify="right")
    compare = equal is not None and equal.number != winner.number and equal.outcome is Outcome.COMPLETE
    columns = [winner]
    if compare and equal is not None:
        table.add_column(f"equal weights (trial {trial_name(equal.number)})", justify="right")
        columns.append(equal)
    for name in winner.values:
        table.add_row(name, *(_shown(record.values.get(name)) for record in columns))
    rows = [_last_row(folder, record) for record in columns]
    names = dict.fromkeys([metric, *(n for n in rows[0] if n.startswith("objective/")), "eval/reference_loss"])
    names |= dict.fromkeys(["eval/static_skill", "eval/pred_skill", "epoch/actual_static_contribution"])
    for name in names:
        table.add_row(name, *(_shown(row.get(name)) for row in rows))
    console.print(table)
    if compare and equal is not None and equal.value and winner.value is not None:
        gain = (equal.value - winner.value) * (1 if spec.metric.goal == "minimize" else -1)
        console.print(
            f"{metric}: better than the equal-weights preset by {gain:.4g} ({gain / abs(equal.value):.1%}). "
            "One seed each, and the best of many is picked for luck too: train both again with other seeds "
            "before you publish.",
            soft_wrap=True,
        )
    elif equal is not None and equal.number == winner.number:
        console.print("the equal-weights preset is itself the best: the search found nothing better", soft_wrap=True)


def _last_row(folder: ResultsFolder, record: Record) -> dict[str, float]:
    from model.sinks import read_csv
    from sweep.searcher import trial_name

    rows = read_csv(folder.trial_folder(trial_name(record.number)) / "epoch.csv")
    return rows[-1] if rows else {}


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _plan_with_bar(spec: SweepSpec, console: Console) -> SweepPlan:
    columns = (TextColumn("decoding frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, visible=True)

        return make_plan(spec, show)


def _print_plan(plan: SweepPlan, folder: ResultsFolder, console: Console) -> None:
    from sweep.wandb_sink import resolve_mode

    spec, base = plan.spec, plan.base
    height, width = base.data.height_width
    where = base.data.root or "made here"
    mode, reason = resolve_mode(spec.wandb.mode)
    stop = spec.early_terminate
    searched = ", ".join(f"{name} {_range(entry)}" for name, entry in spec.parameters.items())
    presets = [name for name, _ in plan.first if name]
    lines = {
        "sweep": f"{spec.name}: {spec.num_trials} trials by {_method(spec)}, seed {spec.search.seed}",
        "searched": searched,
        "first": ", ".join(presets) if presets else "no presets",
        "goal": f"{spec.metric.goal} {spec.metric.name}",
        "data": f"{base.data.source}, {where}: {plan.sequences} sequences, {plan.train_clips} training and "
        f"{plan.held_out_clips} held-out clips of {height} x {width}",
        "trial": f"{base.epochs} epochs of {plan.epoch.updates} updates ({base.batch_size} x {base.accum_iter} clips), "
        f"{plan.rows_per_trial} W&B rows"
        + (f"; first stop after {stop.first_rung} epochs, 1/{stop.eta:g} go on" if stop else ""),
        "resources": f"{spec.resources.cpu:g} CPU, {spec.resources.gpu:g} GPU a trial; "
        f"{'as many as fit' if spec.resources.max_concurrent == 'auto' else spec.resources.max_concurrent} at a time",
        "wandb": f"{mode}: {reason}",
        "results": str(folder.path),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in lines.items():
        table.add_row(name, text)
    console.print(table, markup=False)
    if plan.skipped:
        named = "; ".join(plan.skipped[:3]) + (", ..." if len(plan.skipped) > 3 else "")
        console.print(
            f"note: {len(plan.skipped)} unreadable files were left out: {named}", style="yellow", markup=False
        )


def _method(spec: SweepSpec) -> str:
    return {"bayes": "Optuna TPE", "random": "random search", "grid": "grid"}[spec.method]


def _range(entry: dict[str, object]) -> str:
    if "value" in entry:
        return f"= {entry['value']}"
    if "values" in entry:
        return f"in {entry['values']}"
    if "min" in entry:
        return f"{entry['min']} to {entry['max']}"
    return f"{entry.get('distribution')}"


if __name__ == "__main__":
    sys.exit(main())
