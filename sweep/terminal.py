"""What a sweep says in the terminal before and after its trials; progress.py speaks in between."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table

from model.sinks import read_csv
from sweep.plan import SweepPlan
from sweep.results import ResultsFolder, equal_weights
from sweep.spec import SweepSpec
from sweep.study import Outcome, Record
from sweep.wandb_sink import resolve_mode


def print_plan(plan: SweepPlan, folder: ResultsFolder, console: Console) -> None:
    """What the sweep will do, and what of its data could not be read."""
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
        named = "; ".join(plan.skipped[:3]) + ("; ..." if len(plan.skipped) > 3 else "")
        files = "1 unreadable file was" if len(plan.skipped) == 1 else f"{len(plan.skipped)} unreadable files were"
        text = f"note: {files} left out: {named}"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    for preset, values in plan.first:
        drawn = sorted(spec.space.parameters.keys() - values.keys())
        if preset and drawn:
            text = f"note: the preset {preset} leaves {', '.join(drawn)} to the sampler; give a value in search.presets"
            console.print(text, style="yellow", markup=False, soft_wrap=True)


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


def print_summary(
    spec: SweepSpec, folder: ResultsFolder, records: list[Record], winner: Record | None, console: Console
) -> None:
    """How the trials ended, the best one beside the equal-weights preset, and where to go on."""
    counts = {outcome: sum(record.outcome is outcome for record in records) for outcome in Outcome}
    names = {outcome: outcome.value for outcome in Outcome} | {Outcome.RUNNING: "unfinished"}
    shown = ", ".join(f"{count} {names[outcome]}" for outcome, count in counts.items() if count)
    console.print(f"\n{len(records)} trials: {shown}", soft_wrap=True)
    if winner is not None:
        _print_winner(spec, winner, equal_weights(records), folder, console)
        longer = 10 * spec.space.to_config(spec.trainer, winner.values).epochs
        command = f"python -m model.train {shlex.quote(str(folder.best_file))} --set epochs={longer}"
        console.print(f"train it longer: {command}", soft_wrap=True, markup=False)
    else:
        reasons = sorted({record.reason for record in records if record.reason})
        why = f": {'; '.join(reasons[:3])}" if reasons else ""
        text = f"no trial trained to its end, so there is no best one{why}"
        console.print(text, style="red", markup=False, soft_wrap=True)
    console.print(f"report: {folder.report_file}", soft_wrap=True, markup=False)


def _print_winner(
    spec: SweepSpec, winner: Record, equal: Record | None, folder: ResultsFolder, console: Console
) -> None:
    metric = spec.metric.name
    table = Table(title=f"best trial: {winner.trial}", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("best", justify="right")
    compare = equal is not None and equal.number != winner.number and equal.outcome is Outcome.COMPLETE
    columns = [winner]
    if compare and equal is not None:
        table.add_column(f"equal weights (trial {equal.trial})", justify="right")
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
    rows = read_csv(folder.trial_folder(record.trial) / "epoch.csv")
    return rows[-1] if rows else {}


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
