"""Finished W&B runs in our terms: a run's config and rows -> TrainConfig and the rows of a trial. Pure.

A run of ours comes back exactly. Of another run, what has the name of a trainer's field or of a metric of ours is
taken; what its config does not name is the spec's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.config import TrainConfig
from model.configfile import field_paths, field_value, set_field, validated
from model.errors import ConfigError, UserError, one_line
from model.metrics import BATCH_NAMES, BATCH_STEP, EPOCH_COLUMNS, EPOCH_STEP, SUMMARY_NAMES
from model.sinks import History
from sweep.mapping import FREE
from sweep.objective import Objective, ObjectiveSettings
from sweep.outcome import Outcome
from sweep.scored import NEEDED
from sweep.spec import SweepSpec
from sweep.wandb_files import UNREADABLE, PastRun

Values = dict[str, Any]

WHOLE = ("batch/epoch", "batch/iteration", "batch/mode", "epoch", "summary/best_epoch")  # metrics that are int
NOT_ENDED = ("running", "pending", "preempting")  # states of W&B
STOPPED = ("finished", "killed")
ENDED = "summary/total_time_seconds"
# what the config of a run of ours holds beside the trainer's fields
BESIDE = ("resolved_device", "resolved_precision", "effective_mask_ratio", "objective", "sweep", "trial", "preset")
OF_CLIENT = ("_", "pictures/", "system/", "gradients/", "parameters/")  # beginnings of names that are no metrics
LOSSES = {"reference": "eval/reference_loss", "train": "epoch/train_loss"}  # by objective.loss
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_KNOWN = frozenset(field_paths(TrainConfig))
_LEAVES = frozenset(name for name in _KNOWN if not any(other.startswith(f"{name}.") for other in _KNOWN))


class LeftOutError(ValueError):
    """A run that cannot be a trial; the message says why, after "left out, since "."""


@dataclass
class Trial:
    """A run as a trial of ours.

    Attributes:
        number: that it had in its sweep; None where it had none.
        unknown: keys of its config, and metrics, that mean nothing to us.
        rows_of: (rows, updates) where not all updates have a row.
        lost: what of the run's record could not be had.
    """

    run: PastRun
    config: TrainConfig
    history: History
    outcome: Outcome
    reason: str | None
    preset: str | None
    number: int | None
    unknown: tuple[str, ...] = ()
    rows_of: tuple[int, int] | None = None
    lost: str | None = None


@dataclass
class _Rows:
    """History rows, sorted: by update and by epoch."""

    batch: dict[int, dict[str, float]] = field(default_factory=dict)
    epoch: dict[int, dict[str, float]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def history(self) -> History:
        """The rows in order."""
        return History(
            batch=[self.batch[number] for number in sorted(self.batch)],
            epoch=[self.epoch[number] for number in sorted(self.epoch)],
        )


def history_of(items: Iterable[Mapping[str, Any]]) -> History:
    """W&B's history rows as ours: metrics of ours only, and of an update or epoch that is there twice the later."""
    return _sorted_rows(items).history()


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a run's config is that of a run of ours: it has the trainer's main fields, and which trial it was."""
    return {"trial", "sweep", "alpha", "mask_ratio", "data", "encoder", "epochs"} <= config.keys()


def is_of_confirmation(config: Mapping[str, Any]) -> bool:
    """Whether a run of ours trained a config again with another seed; its trial is then called c0000, ..."""
    return is_ours(config) and re.fullmatch(r"c\d+", str(config["trial"])) is not None


def as_trial(run: PastRun, spec: SweepSpec) -> Trial:
    """Read a run's rows and config. Raises LeftOutError."""
    if run.state in NOT_ENDED:
        raise LeftOutError(f"it is {run.state}")
    if run.state == UNREADABLE:
        raise LeftOutError("its file holds nothing that can be read")
    if is_of_confirmation(run.config):
        raise LeftOutError("it belongs to a confirmation, not to the search")
    config, strange = config_of(run, spec)
    read, lost = run.read_rows()
    rows = _sorted_rows(read)
    history = rows.history()
    history.summary = {name: x for name in SUMMARY_NAMES if (x := _number(name, run.summary.get(name))) is not None}
    if not history.epoch and not history.batch:
        raise LeftOutError("it has no row with metrics of ours (such as epoch, eval/reference_loss)")
    _complete(history, config, spec.objective)
    outcome, reason = _outcome(run, history, config, lost)
    lacking = [metric.name for metric in spec.objectives if not _has(history, metric.name)]
    if outcome is Outcome.COMPLETE and lacking:
        raise LeftOutError(f"it has no {lacking[0]} after its last epoch")
    trial, preset = str(run.config.get("trial")), run.config.get("preset")
    updates = max(rows.batch, default=-1) + 1
    return Trial(
        run=run,
        config=config,
        history=history,
        outcome=outcome,
        reason=reason,
        preset=preset if isinstance(preset, str) and preset else None,
        number=int(trial) if is_ours(run.config) and re.fullmatch(r"\d{1,9}", trial) else None,
        unknown=tuple(sorted({*strange, *rows.unknown})),
        rows_of=(len(rows.batch), updates) if is_ours(run.config) and len(rows.batch) < updates else None,
        lost=lost,
    )


def config_of(run: PastRun, spec: SweepSpec) -> tuple[TrainConfig, tuple[str, ...]]:
    """The config that a run was trained with, and keys of its config that are no fields of the trainer.

    Raises LeftOutError where a searched parameter has no value in it, or the trainer refuses it.
    """
    given, unknown = known_fields(run.config)
    for name in spec.space.parameters:
        if (
            name not in given
            and not any(other.startswith(f"{name}.") for other in given)
            and name not in spec.search.conditions
        ):
            raise LeftOutError(f"its config has no {name}, which is searched")
    content = spec.trainer.model_dump(mode="json")
    for name, value in {**spec.space.constants, **given}.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place[parent]
            if not isinstance(place, dict):
                raise LeftOutError(f"its config gives {name}, and {parent} otherwise")
        place[last] = value
    if "beta" not in spec.space.parameters and spec.trainer.beta is None and follows(content):
        content["beta"] = None  # a run of ours says which beta it had, also where it followed alpha
    try:
        return validated(TrainConfig, content, "its config"), unknown
    except ConfigError as error:
        raise LeftOutError(f"the trainer refuses it: {one_line(error)}") from None


def known_fields(config: Mapping[str, Any]) -> tuple[Values, tuple[str, ...]]:
    """What a W&B config says of the trainer's fields, by dotted name; and its other keys, but for those of ours."""
    given: Values = {}
    unknown: list[str] = []
    for name, value in _flat(config):
        if name in _KNOWN:
            given[name] = value
        elif name.partition(".")[0] not in BESIDE and not name.startswith("_"):
            unknown.append(name)
    return given, tuple(unknown)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name in _KNOWN and name not in _LEAVES:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def follows(content: Mapping[str, Any]) -> bool:
    """Whether beta is what alpha leaves: a run of ours says which beta it had, also where it followed alpha."""
    alpha, beta = content.get("alpha"), content.get("beta")
    return isinstance(alpha, int | float) and isinstance(beta, int | float) and 0 <= alpha <= 1 and beta == 1.0 - alpha


def _sorted_rows(items: Iterable[Mapping[str, Any]]) -> _Rows:
    """Each update and each epoch once: a run that was resumed may have some twice, and the later one holds."""
    rows = _Rows()
    for item in items:
        numbers = {name: x for name, value in item.items() if (x := _number(name, value)) is not None}
        batch = {name: numbers[name] for name in BATCH_NAMES if name in numbers}
        epoch = {name: numbers[name] for name in EPOCH_COLUMNS if name in numbers}
        if BATCH_STEP in batch and "batch/epoch" in batch:
            rows.batch[int(batch[BATCH_STEP])] = batch
        # a trial of ours that diverged also tells W&B so: objective/value is NaN, alone
        if EPOCH_STEP in epoch and any(name != EPOCH_STEP and not name.startswith("objective/") for name in epoch):
            rows.epoch[int(epoch[EPOCH_STEP])] = epoch
        rows.unknown |= {
            name
            for name in numbers.keys() - batch.keys() - epoch.keys() - set(SUMMARY_NAMES)
            if not name.startswith(OF_CLIENT)
        }
    return rows


def _number(name: str, value: Any) -> float | None:
    """A metric's number as the trainer had it, from JSON's; None for what is none."""
    if isinstance(value, str):
        value = _NOT_FINITE.get(value)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number that no metric has
        return None
    if name in WHOLE:
        return int(number) if math.isfinite(number) and number == int(number) else None
    return number


def _complete(history: History, config: TrainConfig, settings: ObjectiveSettings) -> None:
    """Compute the objective where a run did not log it. Raises LeftOutError where it lacks what the objective needs."""
    loss = LOSSES[settings.loss]
    if any(loss not in row for row in history.epoch):
        raise LeftOutError(f"it has no {loss} in each epoch, which objective.loss = {settings.loss!r} needs")
    if all("objective/value" in row for row in history.epoch):
        return
    columns = {"epoch.csv": set().union(*history.epoch), "batch.csv": set().union(*history.batch)}
    for key, (file, column) in NEEDED.items():
        if getattr(settings, key) and config.mode == "joint" and column not in columns[file]:
            raise LeftOutError(f"it has no {column}, which objective.{key} = {getattr(settings, key):g} needs")
    objective = Objective(settings)
    batches: dict[int, list[Any]] = {}
    for batch in history.batch:
        batches.setdefault(int(batch["batch/epoch"]), []).append(batch)
    history.epoch = [_with_objective(row, batches.get(int(row["epoch"]), []), objective) for row in history.epoch]


def _with_objective(row: Mapping[str, float], batches: Sequence[Any], objective: Objective) -> dict[str, float]:
    for batch in batches:
        objective.add_batch(batch)
    computed = objective.end_epoch(row)
    return dict(row) | (computed if "objective/value" not in row else {})


def _outcome(run: PastRun, history: History, config: TrainConfig, lost: str | None) -> tuple[Outcome, str | None]:
    """How the trial ended, and why."""
    diverged = _divergence(history)
    if diverged is not None:
        told = run.summary.get("diverged")  # by a trial of ours
        return Outcome.DIVERGED, told if isinstance(told, str) else diverged
    epochs = [int(row["epoch"]) for row in history.epoch]
    gap = next(
        (number for number, epoch in enumerate(epochs, start=epochs[0] if epochs else 0) if number != epoch), None
    )
    if gap is not None:
        return Outcome.FAILED, f"its W&B record lacks epoch {gap}"
    if len(epochs) >= config.epochs:
        return Outcome.COMPLETE, None
    reason = f"W&B: {run.state} after {len(epochs)} of {config.epochs} epochs"
    if lost is not None:
        return Outcome.FAILED, f"{reason}, but rows are lost"
    ended = ENDED in history.summary  # a trial of ours tells it however it ends, unless it is killed
    if run.state == "finished" and is_ours(run.config) and not ended:
        return Outcome.FAILED, f"{reason}, but without {ENDED}: it was killed"
    if run.state not in STOPPED or not (epochs or ended):
        return Outcome.FAILED, reason
    return Outcome.PRUNED, f"stopped early after {len(epochs)} epochs" if run.state == "finished" else reason


def _divergence(history: History) -> str | None:
    for event in history.events():
        for name, number in event.values.items():
            if not math.isfinite(number) and not name.startswith("objective/"):
                epoch = event.values.get("epoch", event.values.get("batch/epoch", 0))
                return f"{name} = {number} in epoch {int(epoch)}"
    return None


def _has(history: History, metric: str) -> bool:
    if not history.epoch:
        return False
    name = "epoch/best_loss_so_far" if metric == "summary/best_loss" else metric
    return math.isfinite(history.epoch[-1].get(name, math.nan))


# --- the spec, where none is given


def spec_of_sweep(config: Mapping[str, Any], name: str, runs: Sequence[PastRun]) -> tuple[Values, list[str]]:
    """The content of a spec for a sweep of W&B's, and notes: its own search space, and what its runs share.

    Args:
        config: the W&B sweep config.
        name: of the sweep, where the config has none.
    """
    keys = ("name", "description", "project", "entity", "method", "metric", "metrics", "early_terminate", "run_cap")
    content = {key: config[key] for key in keys if config.get(key) is not None}
    content["name"] = _folder_name(str(content.get("name") or name))
    if content.get("method") == "custom":
        content["method"] = "bayes"
    notes = []
    entries = config.get("parameters")
    flat = _parameters(entries) if isinstance(entries, Mapping) else {}
    foreign = sorted(flat.keys() - _KNOWN)
    content["parameters"] = {key: entry for key, entry in flat.items() if key in _KNOWN}
    if foreign:
        notes.append(f"parameters of the sweep that are no fields of the trainer, left out: {', '.join(foreign)}")
    if not content["parameters"]:
        raise UserError(f"{name}: no parameter of the sweep is a field of the trainer; give --spec SPEC")
    return content | _shared(runs, content["parameters"], notes), notes


def spec_of_runs(name: str, runs: Sequence[PastRun]) -> tuple[Values, list[str]]:
    """The content of a spec for runs of ours alone, and notes: what differs between them is what was searched.

    Raises UserError where that does not tell.
    """
    runs = [run for run in runs if not is_of_confirmation(run.config)]
    ours = [run for run in runs if is_ours(run.config)]
    if not ours:
        raise UserError(
            f"{name}: no run has the fields of our trainer in its config, so it is not known what was searched; give "
            "--spec SPEC"
        )
    parameters: Values = {}
    fields = [known_fields(run.config)[0] for run in ours]
    for key in sorted(set().union(*fields)):
        if key == "beta" and all(follows(values) for values in fields):
            continue
        values = [values.get(key) for values in fields]
        different = list({repr(value): value for value in values}.values())
        if len(different) > 1 and not any(key == free or key.startswith(f"{free}.") for free in FREE):
            parameters[key] = _entry(different)
    if not parameters:
        raise UserError(f"{name}: its runs do not differ in any field of the trainer; give --spec SPEC")
    notes = [f"no spec was given: what differs between the runs counts as searched: {', '.join(parameters)}"]
    content = {"name": _folder_name(str(ours[0].config["sweep"])), "parameters": parameters}
    return content | _shared(runs, parameters, notes), notes


def _entry(values: Sequence[Any]) -> Values:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {"min": min(values), "max": max(values)}
    return {"values": list(values)}


def _shared(runs: Sequence[PastRun], searched: Mapping[str, Any], notes: list[str]) -> Values:
    """The blocks `trainer` and `objective` of runs of ours: what they share, and of the rest what the first one has."""
    ours = [run for run in runs if is_ours(run.config) and not is_of_confirmation(run.config)]
    if not ours:
        return {}
    fields = [known_fields(run.config)[0] for run in ours]
    trainer: Values = {}
    differing = []
    for key, value in fields[0].items():
        if any(key == name or key.startswith(f"{name}.") for name in searched):
            continue
        if key == "beta" and all(follows(values) for values in fields):
            continue
        set_field(trainer, key, value)
        if any(values.get(key) != value for values in fields):
            differing.append(key)
    if differing:
        notes.append(f"the runs differ in what was not searched: {', '.join(differing)}; spec.yaml has the first run's")
    objectives = [run.config.get("objective") for run in ours]
    if any(objective != objectives[0] for objective in objectives):
        notes.append("the runs have different objectives; spec.yaml has the first run's")
    return {"trainer": trainer} | ({"objective": objectives[0]} if objectives[0] else {})


def _parameters(entries: Mapping[str, Any], prefix: str = "") -> Values:
    flat: Values = {}
    for key, entry in entries.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("parameters"), Mapping):
            flat |= _parameters(entry["parameters"], f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = entry
    return flat


def _folder_name(text: str) -> str:
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in text)
    return name.lstrip(".")[:100] or "imported"


def values_of(config: TrainConfig, spec: SweepSpec) -> Values:
    """The searched parameters that matter, read from the config."""
    content = config.model_dump(mode="json")
    values = {name: field_value(content, name) for name in spec.space.parameters}
    return spec.space.that_matter({name: value for name, value in values.items() if value is not None})
