"""What a sweep will do, worked out and checked before Ray starts: data, models, trials, updates, rows."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.config import TrainConfig
from model.configfile import field_paths
from model.data.clips import Clips, load_clips
from model.errors import ConfigError, UserError
from model.plan import EpochPlan, check_sensors
from model.probe_task import ProbeTask
from sweep.candidates import most_candidates
from sweep.memory import is_wanted
from sweep.spec import SweepSpec
from sweep.study import Values
from sweep.wandb_run import RunIdentity
from sweep.warm_start import WarmStart

MAX_PROBES = 256  # combinations that are checked against the data

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SweepPlan:
    """The checked plan of a sweep."""

    spec: SweepSpec
    base: TrainConfig
    """What a trial trains where nothing is searched."""
    epoch: EpochPlan
    """Of `base`."""
    train_clips: int
    held_out_clips: int
    sequences: int
    skipped: tuple[str, ...]
    """Frames or videos that could not be read."""
    first: tuple[tuple[str | None, Values], ...]
    """Trials to run before the sampler is asked: presets, an earlier sweep's best ones, or the points of a grid."""
    warm: WarmStart
    """What earlier sweeps give."""

    @property
    def rows_per_trial(self) -> int:
        """W&B rows of metrics of a trial that is not stopped early: one per update and one per epoch."""
        return self.base.epochs * (self.epoch.updates + 1)

    @property
    def confirmation_configs(self) -> int:
        """Configs that are confirmed, at most: a best one may be a preset, too. 0 without `confirm`."""
        return 0 if self.spec.confirm is None else most_candidates(self.spec)


def make_plan(spec: SweepSpec, progress: Progress | None = None, warm: WarmStart | None = None) -> SweepPlan:
    """Check everything that a trial would stumble over; decodes the data where that was not done before.

    Raises ConfigError or DataError, with the key, for a config that does not fit its data or a model that timm does
    not have.
    """
    base = spec.space.to_config(spec.trainer, {})
    _check_machine(spec, base)
    RunIdentity(id=spec.name, name=spec.name, group=spec.name, project=spec.project, entity=None, folder=Path())
    clips: dict[str, Clips] = {}
    encoders: set[str] = set()
    for config in (base, *_probes(spec)):
        encoder = f"{config.encoder} {config.data.height_width}"
        if (config.encoder.name is not None or config.encoder.pretrained) and encoder not in encoders:
            from model.encoder import check_encoder  # imports timm: only where a name is to be checked

            check_encoder(config)
            encoders.add(encoder)
        key = config.data.model_dump_json()
        try:
            if key not in clips:
                clips[key] = load_clips(config.data, progress)
            EpochPlan.of(config, len(clips[key].train))
            check_sensors(config.encoder.sensors, clips[key].sensors)
            ProbeTask.of(config.probe, clips[key])
        except UserError as error:
            raise type(error)(_from_spec(str(error), spec)) from None
    data = clips[base.data.model_dump_json()]
    return SweepPlan(
        spec=spec,
        base=base,
        epoch=EpochPlan.of(base, len(data.train)),
        train_clips=len(data.train),
        held_out_clips=len(data.held_out),
        sequences=data.num_sequences,
        skipped=tuple(f"{fault.file} ({fault.reason})" for fault in data.skipped),
        first=tuple(first_trials(spec, warm)),
        warm=warm or WarmStart(),
    )


def unchecked(spec: SweepSpec) -> list[str]:
    """What a plan cannot tell before Ray runs, in words."""
    resources, encoder = spec.resources, spec.trainer.encoder
    found = []
    if resources.gpu:
        found.append(f"that a node has {resources.cpu:g} CPU and {resources.gpu:g} GPU for a trial")
    if is_wanted(resources):
        found.append("that trials fit into memory together (resources.memory_probe)")
    if encoder.pretrained is True:
        found.append(f"that timm can fetch the weights of {encoder.name} on each node")
    return found


def _check_machine(spec: SweepSpec, base: TrainConfig) -> None:
    """What of the resources can be told without Ray; on a cluster, or with GPUs, only its nodes know."""
    if base.device == "cuda" and spec.resources.gpu == 0:
        raise ConfigError("trainer.device = 'cuda', but resources.gpu = 0: a trial sees no GPU. Set resources.gpu to 1")
    there = os.cpu_count() or 1
    if not os.environ.get("RAY_ADDRESS") and not spec.resources.gpu and spec.resources.cpu > there:
        raise ConfigError(f"resources.cpu = {spec.resources.cpu:g}, but this machine has {there}; ask for at most that")


def _from_spec(text: str, spec: SweepSpec) -> str:
    """An error of the trainer, which knows fields only, with the field's place in the spec."""
    key = re.match(r"[a-z_.]+", text)
    if key is None or key.group() not in field_paths(TrainConfig):
        return text
    return f"{'parameters' if key.group() in spec.space.parameters else 'trainer'}.{text}"


def _probes(spec: SweepSpec) -> Iterator[TrainConfig]:
    """The presets, and what is searched of data, counts and model, at its ends and in all combinations."""
    values = [preset for _, preset in first_trials(spec)[: len(spec.presets)]]
    axes = {
        name: parameter.probes()
        for name, parameter in spec.space.parameters.items()
        if name.startswith(("data.", "encoder.")) or name in ("batch_size", "accum_iter")
    }
    corners = itertools.product(*axes.values())
    values += [dict(zip(axes, corner, strict=True)) for corner in itertools.islice(corners, MAX_PROBES)]
    for point in values:
        try:
            yield spec.space.to_config(spec.trainer, spec.space.that_matter(point))
        except ConfigError:
            continue  # the spec was checked: these values go only with others


def first_trials(spec: SweepSpec, warm: WarmStart | None = None) -> list[tuple[str | None, Values]]:
    """Presets with their names, then what earlier sweeps found best, then the grid's other points."""
    first: list[tuple[str | None, Values]] = []
    for number, preset in enumerate(spec.presets):
        name = preset_name(preset, number)
        if any(name == other for other, _ in first):
            name += f"-{number}"
        first.append((name, spec.space.that_matter(spec.space.fill_preset(preset, spec.trainer))))
    others = [values for _, values in warm.first] if warm is not None else []  # no presets: they may be stopped early
    others += spec.space.grid() if spec.method == "grid" else []
    for values in others:
        if all(values != known for _, known in first):
            first.append((None, values))
    return first


def preset_name(preset: Values, number: int) -> str:
    """A short name for a preset: the two that everyone knows, else its place in the spec."""
    if "alpha" in preset:
        weights = (preset["alpha"], preset.get("beta", 1 - preset["alpha"]))
        known = {(0.5, 0.5): "equal-weights", (0.75, 0.25): "balanced-weights"}
        return known.get(weights, f"preset-{number}")
    return f"preset-{number}"
