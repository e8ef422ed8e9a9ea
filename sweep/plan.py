"""What a sweep will do, worked out and checked before Ray starts: data, models, trials, updates, rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from model.config import TrainConfig
from model.data.clips import Clips, load_clips
from model.data.store import open_store
from model.errors import ConfigError
from model.plan import EpochPlan
from sweep.spec import SweepSpec
from sweep.study import Values

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
    """Trials to run before the sampler is asked: presets, or the points of a grid."""

    @property
    def rows_per_trial(self) -> int:
        """W&B rows of a trial that is not stopped early: one per update and one per epoch."""
        return self.base.epochs * (self.epoch.updates + 1)


def make_plan(spec: SweepSpec, progress: Progress | None = None) -> SweepPlan:
    """Check everything that a trial would stumble over; decodes the data where that was not done before.

    Raises ConfigError or DataError, with the key, for a config that does not fit its data or a model that timm does
    not have.
    """
    base = spec.space.to_config(spec.trainer, {})
    clips: dict[str, Clips] = {}
    encoders: set[str] = set()
    for config in (base, *_probes(spec)):
        key = config.data.model_dump_json()
        if key not in clips:
            clips[key] = load_clips(config.data, progress)
        try:
            EpochPlan.of(config, len(clips[key].train))
        except ConfigError as error:
            raise ConfigError(f"trainer.{error}") from None
        encoder = f"{config.encoder} {config.data.height_width}"
        if config.encoder.name is not None and encoder not in encoders:
            from model.mae import check_encoder  # imports timm: only where a name is to be checked

            check_encoder(config)
            encoders.add(encoder)
    data, store = clips[base.data.model_dump_json()], open_store(base.data)
    return SweepPlan(
        spec=spec,
        base=base,
        epoch=EpochPlan.of(base, len(data.train)),
        train_clips=len(data.train),
        held_out_clips=len(data.held_out),
        sequences=len(store.sequences),
        skipped=tuple(str(fault) for fault in store.skipped),
        first=tuple(_first(spec)),
    )


def _probes(spec: SweepSpec) -> Iterator[TrainConfig]:
    """The presets, and what is searched of data, counts and model, at its ends and in all combinations."""
    values = [preset for _, preset in _first(spec)[: len(spec.presets)]]
    axes = {
        name: parameter.probes()
        for name, parameter in spec.space.parameters.items()
        if name.startswith(("data.", "encoder.")) or name in ("batch_size", "accum_iter")
    }
    corners = itertools.product(*axes.values())
    values += [dict(zip(axes, corner, strict=True)) for corner in itertools.islice(corners, MAX_PROBES)]
    for point in values:
        try:
            yield spec.space.to_config(spec.trainer, point)
        except ConfigError:
            continue  # the spec was checked: these values go only with others


def _first(spec: SweepSpec) -> list[tuple[str | None, Values]]:
    """Presets with their names, then the grid's other points."""
    first: list[tuple[str | None, Values]] = []
    for number, preset in enumerate(spec.presets):
        name = preset_name(preset, number)
        if any(name == other for other, _ in first):
            name += f"-{number}"
        first.append((name, spec.space.fill_preset(preset, spec.trainer)))
    if spec.method == "grid":
        presets = [values for _, values in first]
        first += [(None, point) for point in spec.space.grid() if point not in presets]
    return first


def preset_name(preset: Values, number: int) -> str:
    """A short name for a preset: the two that everyone knows, else its place in the spec."""
    if "alpha" in preset:
        weights = (preset["alpha"], preset.get("beta", 1 - preset["alpha"]))
        known = {(0.5, 0.5): "equal-weights", (0.75, 0.25): "balanced-weights"}
        return known.get(weights, f"preset-{number}")
    return f"preset-{number}"
