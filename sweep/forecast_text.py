"""The end of a plan: what the sweep is going to take, what of it was measured, and the limits that it meets."""

from __future__ import annotations

import math

from rich.console import Console

from sweep.forecast import Forecast
from sweep.lines import print_pairs
from sweep.memory import available_memory, most_demanding
from sweep.plan import SweepPlan
from sweep.probe import Measurement, Took
from sweep.wandb_mode import resolve_mode
from sweep.words import duration

SUGGESTED_POINTS = 100_000  # of a metric in a run: W&B's pages stay fast (docs, "Experiments limits and performance")


def print_forecast(plan: SweepPlan, measured: Measurement | None, expected: Forecast, console: Console) -> None:
    """What the sweep is going to take, and what of that was measured; `measured` is None where nothing was to be."""
    lines = {"steps": _steps(plan, expected), "rows": _rows(plan)}
    if measured is None:
        lines["measured"] = "nothing (--no-measure): no word on time and memory"
    elif not measured.base.updates:
        lines["measured"] = f"nothing: {measured.failed}; time and memory cannot be predicted here"
    else:
        lines |= _measured(plan, measured)
        lines["time"] = _times(plan, expected)
        lines["memory"] = _memory(measured, expected)
    lines["disk"] = _disk(expected)
    print_pairs(lines, console, width=len("resources"))  # the plan's longest, above


def _steps(plan: SweepPlan, expected: Forecast) -> str:
    stops = "at most " if plan.spec.early_terminate is not None else ""
    confirm = f"; at most {expected.confirm_updates:,} more to confirm" if expected.confirm_updates else ""
    each = plan.base.epochs * plan.epoch.updates
    return f"{each:,} updates a trial, {stops}{expected.updates:,} in {plan.spec.num_trials} trials{confirm}"


def _rows(plan: SweepPlan) -> str:
    """Against the number of points that W&B suggests."""
    mode, _ = resolve_mode(plan.spec.wandb.mode)
    if mode == "disabled":
        return f"{plan.rows_per_trial:,} a trial, in our files only: W&B is disabled"
    rows = plan.base.epochs * (math.ceil(plan.epoch.updates / plan.spec.wandb.log_every) + 1)
    text = f"{rows:,} a trial (W&B suggests at most {SUGGESTED_POINTS:,})"
    return f"{text}: its charts will be slow; wandb.log_every makes fewer" if rows > SUGGESTED_POINTS else text


def _measured(plan: SweepPlan, measured: Measurement) -> dict[str, str]:
    threads = plan.spec.resources.threads
    where = f"{measured.device}, {threads} thread{'s' if threads > 1 else ''}"
    lines = {"measured": f"on this machine ({where}): {_took(measured.base)}"}
    if measured.demanding is not None:
        config = most_demanding(plan.spec)
        which = f"batch_size {config.batch_size}, mask_ratio {config.mask_ratio:g}"
        lines[""] = f"with the values that need most memory ({which}): {_took(measured.demanding)}"
    return lines


def _took(took: Took) -> str:
    if took.failed is not None:
        return took.failed
    if not took.updates:
        return "cut off before its first update"
    judged = "" if took.judge_s is None else f", an evaluation {_seconds(took.judge_s)}"
    cut = " (cut off: there was no time for more)" if took.cut else ""
    return f"{took.updates} update{'s' if took.updates > 1 else ''}, {_seconds(took.update_s)} each{judged}{cut}"


def _times(plan: SweepPlan, expected: Forecast) -> str:
    assert expected.trial_s is not None
    trial = f"a trial about {duration(expected.trial_s)}"
    if expected.demanding_s is not None:
        trial += f" ({duration(expected.demanding_s)} with the values that need most)"
    if expected.search_s is None:
        return f"{trial}; how many run at a time, only the cluster knows"
    least, most = expected.search_s
    search = f"about {duration(most)}"
    if plan.spec.early_terminate is not None and most > least:
        search = f"{duration(least)} to {duration(most)}, as early stopping decides"
    confirm = f"; the confirmation about {duration(expected.confirm_s)}" if expected.confirm_s else ""
    alone = "" if expected.concurrent == 1 else "; measured alone: side by side they may be slower"
    return f"{trial}; {expected.concurrent} at a time: the search {search}{confirm}{alone}"


def _memory(measured: Measurement, expected: Forecast) -> str:
    found = [took for took in (measured.base, measured.demanding) if took is not None and took.updates]
    host, gpu = max(took.host_bytes for took in found), max(took.gpu_bytes for took in found)
    text = f"about {_size(host)} a trial at its peak"
    free = available_memory()
    together = (expected.concurrent or 1) * host
    if expected.concurrent is not None and expected.concurrent > 1:
        text += f", {_size(together)} for {expected.concurrent} at a time"
    text += f"; {_size(free)} free" + (": not enough, lower resources.max_concurrent" if together > free else "")
    return text + (f"; {_size(gpu)} of a GPU" if gpu else "")


def _disk(expected: Forecast) -> str:
    each = f"about {_size(expected.trial_bytes)} a trial (its checkpoint {_size(expected.checkpoint_bytes)})"
    short = "" if expected.disk_bytes < expected.free_bytes else ": not enough"
    return f"{each}, at most {_size(expected.disk_bytes)} in all; {_size(expected.free_bytes)} free{short}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def _size(count: float) -> str:
    """Bytes, with a unit."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
