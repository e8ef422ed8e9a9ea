"""What a sweep says in the terminal before and after its trials; progress.py speaks in between."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from model.config import TrainConfig
from model.sinks import read_csv
from sweep.candidates import how_to_confirm
from sweep.conclusion import Conclusion
from sweep.early_stopping import max_epochs
from sweep.lines import print_pairs, say
from sweep.plan import SweepPlan
from sweep.results import ResultsFolder, equal_weights
from sweep.spec import SweepSpec
from sweep.statistics import Estimate, smallest_shown
from sweep.study import Outcome, Record
from sweep.wandb_mode import resolve_mode
from sweep.words import number

SAMPLER_NAMES = {
    "auto": "Optuna (a Gaussian process, later TPE)",
    "tpe": "Optuna TPE",
    "gp": "Optuna's Gaussian process",
    "cmaes": "CMA-ES",
    "random": "random search",
    "qmc": "a scrambled Sobol sequence",
    "nsgaii": "NSGA-II",
    "nsgaiii": "NSGA-III",
}
# min and max are not of the values, but of their logarithms or inverses
GIVEN_OTHERWISE = ("log_uniform", "q_log_uniform", "inv_log_uniform", "inv_log_uniform_values")


def print_plan(plan: SweepPlan, folder: ResultsFolder, console: Console) -> None:
    """What the sweep will do, and what of its data could not be read."""
    spec, base = plan.spec, plan.base
    height, width = base.data.height_width
    where = base.data.root or "made here"
    mode, reason = resolve_mode(spec.wandb.mode)
    searched = ", ".join(f"{name} {_range(spec, name)}" for name in spec.parameters)
    presets = [name for name, _ in plan.first if name]
    lines = {
        "sweep": f"{spec.name}: {spec.num_trials} trials by {_method(spec)}, seed {spec.search.seed}",
        "searched": searched,
        "first": ", ".join(presets) if presets else "no presets",
        "goal": ", ".join(f"{metric.goal} {metric.name}" for metric in spec.objectives),
        "data": f"{base.data.source}, {where}: {plan.sequences} sequences, {plan.train_clips} training and "
        f"{plan.held_out_clips} held-out clips of {height} x {width}",
        "trial": f"{base.epochs} epochs of {plan.epoch.updates} updates ({base.batch_size} x {base.accum_iter} clips), "
        f"{plan.rows_per_trial} W&B rows" + _early_stop(spec),
        **({"confirm": _confirmation(plan)} if spec.confirm else {}),
        "resources": f"{spec.resources.cpu:g} CPU, {spec.resources.gpu:g} GPU a trial; "
        f"{'as many as fit' if spec.resources.max_concurrent == 'auto' else spec.resources.max_concurrent} at a time",
        "wandb": f"{mode}: {reason}",
        "results": str(folder.path),
    }
    print_pairs(lines, console)
    if plan.skipped:
        named = "; ".join(plan.skipped[:3]) + ("; ..." if len(plan.skipped) > 3 else "")
        files = "1 unreadable file was" if len(plan.skipped) == 1 else f"{len(plan.skipped)} unreadable files were"
        text = f"note: {files} left out: {named}"
        say(text, console, "yellow")
    for preset, values in plan.first:
        drawn = sorted(n for n in spec.space.parameters if n not in values and spec.space.matters(n, values))
        if preset and drawn:
            text = f"note: the preset {preset} leaves {', '.join(drawn)} to the sampler; give a value in search.presets"
            say(text, console, "yellow")


def _confirmation(plan: SweepPlan) -> str:
    assert plan.spec.confirm is not None
    configs, seeds = plan.confirmation_configs, len(plan.spec.confirm.seeds)
    shown = smallest_shown(seeds, max(configs - 1, 1))
    return (
        f"at most {configs} configs x {seeds} seeds = {configs * seeds} more trainings of all epochs; a difference to "
        f"equal weights shows from {shown:.2g} times its standard deviation between seeds on"
    )


def _method(spec: SweepSpec) -> str:
    return "grid" if spec.search.sampler is None else SAMPLER_NAMES[spec.search.sampler]


def _range(spec: SweepSpec, name: str) -> str:
    entry = spec.parameters[name]
    if "value" in entry:
        return f"= {entry['value']}"
    if "values" in entry:
        return f"in {entry['values']}"
    if str(entry.get("distribution")) in GIVEN_OTHERWISE:
        values = spec.space.parameters[name].probes()
        return f"{min(values):.4g} to {max(values):.4g}"
    if "min" in entry:
        return f"{entry['min']} to {entry['max']}"
    return f"{entry.get('distribution')}"


def _early_stop(spec: SweepSpec) -> str:
    stop, pbt = spec.early_terminate, spec.search.pbt
    if pbt is not None:
        return f"; every {pbt.every_epochs} epochs the worst {pbt.quantile:.0%} go on from the best"
    if stop is None or stop.first_rung >= max_epochs(spec):
        return ""
    rule = f"1/{stop.eta:g} go on" if stop.type == "hyperband" else "what is worse than the median"
    return f"; first stop after {stop.first_rung} epoch{'s' if stop.first_rung > 1 else ''}, {rule}"


def print_summary(
    spec: SweepSpec, folder: ResultsFolder, records: list[Record], winner: Record | None, console: Console
) -> None:
    """How the trials of the search ended, and the best one beside the equal-weights preset."""
    print_counts(records, console)
    if winner is not None:
        _print_winner(spec, winner, equal_weights(records), folder, console)


def print_counts(records: Sequence[Record], console: Console) -> None:
    """How many trials ended in which way; where none trained to its end, also why."""
    counts = {outcome: sum(record.outcome is outcome for record in records) for outcome in Outcome}
    names = {outcome: outcome.value for outcome in Outcome} | {Outcome.RUNNING: "unfinished"}
    shown = ", ".join(f"{count} {names[outcome]}" for outcome, count in counts.items() if count)
    if not records:
        console.print("\nno trial was started")
        return
    console.print(f"\n{len(records)} trial{'s' if len(records) > 1 else ''}: {shown}", soft_wrap=True)
    if not counts[Outcome.COMPLETE]:
        reasons = sorted({record.reason for record in records if record.reason})
        why = f": {'; '.join(reasons[:3])}" if reasons else ""
        text = f"no trial trained to its end, so there is no best one{why}"
        say(text, console, "red")


def print_front(spec: SweepSpec, folder: ResultsFolder, front: Sequence[Record], console: Console) -> None:
    """The trials of the Pareto front, and where their configs are."""
    table = Table(title=f"Pareto front: {len(front)} trials", title_justify="left", box=None, pad_edge=False)
    for name in ("trial", *spec.space.parameters, *(metric.name for metric in spec.metrics), "preset"):
        table.add_column(name, justify="left" if name in ("trial", "preset") else "right")
    for record in front:
        values = [number(record.values.get(name)) for name in spec.space.parameters]
        table.add_row(record.trial, *values, *map(number, record.objectives), record.preset or "")
    console.print()
    console.print(table)
    console.print("One seed each: trials that lie close together may change places with another seed.")
    configs = f"their rows: {folder.front_file}; a config of each: {folder.front_folder}/TRIAL.yaml"
    console.print(configs, soft_wrap=True, markup=False)


def print_conclusion(conclusion: Conclusion, console: Console) -> None:
    """What the confirmation shows: a line for each config, and the answer."""
    seeds = ", ".join(map(str, conclusion.seeds))
    table = Table(title=f"confirmation, seeds {seeds}", title_justify="left", box=None, pad_edge=False)
    table.add_column("config")
    table.add_column("seeds", justify="right")
    table.add_column(f"{conclusion.metric}\nand 95 % interval", justify="right")
    table.add_column("better than equal\nweights by", justify="right")
    table.add_column("verdict")
    for row in conclusion.rows:
        table.add_row(
            row.name,
            str(row.mean.n if row.mean else 0),
            _estimate(row.mean),
            _estimate(row.gain),
            row.said,
            style="bold" if row.name == conclusion.chosen else None,
        )
    console.print()
    console.print(table, markup=False)
    for note in conclusion.notes:
        say(f"note: {note}", console, "yellow")
    say(conclusion.method, console, "dim")
    say(conclusion.answer, console, "bold")


def _estimate(estimate: Estimate | None) -> str:
    """A mean, and its interval below it."""
    return "-" if estimate is None else "\n".join(filter(None, (estimate.text, estimate.range_text)))


def print_next_steps(
    spec: SweepSpec, folder: ResultsFolder, best: TrainConfig | None, confirmed: bool, console: Console
) -> None:
    """Whether best.yaml is the answer, how to train it longer, and where the report is."""
    if best is not None:
        if not confirmed:
            console.print(f"best.yaml: {how_to_confirm(spec)}", style="yellow", markup=False, soft_wrap=True)
        command = f"python -m model.train {shlex.quote(str(folder.best_file))} --set epochs={10 * best.epochs}"
        console.print(f"train it longer: {command}", soft_wrap=True, markup=False)
    elif spec.confirm is not None:
        console.print("nothing to confirm: no trial trained to its end", style="red")
    if spec.confirm is None and folder.conclusion_file.exists():
        text = "note: confirm.json is of an earlier session; best.yaml follows it where confirm is given again"
        say(text, console, "yellow")
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
        table.add_row(name, *(number(record.values.get(name)) for record in columns))
    rows = [_last_row(folder, record) for record in columns]
    names = dict.fromkeys([metric, *(n for n in rows[0] if n.startswith("objective/")), "eval/reference_loss"])
    names |= dict.fromkeys(["eval/static_skill", "eval/pred_skill", "epoch/actual_static_contribution"])
    for name in names:
        table.add_row(name, *(number(row.get(name)) for row in rows))
    console.print(table)
    if compare and equal is not None and equal.value and winner.value is not None:
        gain = (equal.value - winner.value) * spec.metric.sign
        say(
            f"{metric}: better than the equal-weights preset by {gain:.4g} ({gain / abs(equal.value):.1%}). "
            "One seed each is no proof, and the best of many is picked for luck too.",
            console,
        )
    for name in spec.space.at_ends(winner.values):
        text = f"note: the best {name} is an end of its range; the best may lie beyond: widen parameters.{name}"
        say(text, console, "yellow")
    if equal is not None and equal.number == winner.number:
        say("the equal-weights preset is itself the best: the search found nothing better", console)


def _last_row(folder: ResultsFolder, record: Record) -> dict[str, float]:
    rows = read_csv(folder.trial_folder(record.trial) / "epoch.csv")
    return rows[-1] if rows else {}
