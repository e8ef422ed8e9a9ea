"""How many updates an epoch has: the arithmetic of clips, micro-batches and accumulation. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import TrainConfig
from model.errors import ConfigError


@dataclass(frozen=True)
class EpochPlan:
    """Counts of one epoch; leftover micro-batches are dropped, so the iteration formula is exact."""

    clips: int
    micro_batches: int
    updates: int

    @classmethod
    def of(cls, config: TrainConfig, num_train_clips: int) -> EpochPlan:
        """Counts for `config` on a training set of `num_train_clips`.

        Raises:
            ConfigError: a micro-batch is larger than the epoch, or an update longer than it.
        """
        wanted = config.data.clips_per_epoch
        drawn_anew = any(part.weight for part in config.data.parts)
        if wanted is not None and wanted > num_train_clips and not drawn_anew:
            raise ConfigError(
                f"data.clips_per_epoch = {wanted}, but the training set has {num_train_clips} clips; "
                "give at most that, or leave it out to use all"
            )
        clips = wanted or num_train_clips
        if config.batch_size > clips:
            raise ConfigError(
                f"batch_size = {config.batch_size} is larger than the {clips} training clips of an epoch; "
                f"use batch_size <= {clips}, a smaller data.clip_step, or more sequences"
            )
        micro_batches = clips // config.batch_size
        if config.accum_iter > micro_batches:
            raise ConfigError(
                f"accum_iter = {config.accum_iter} is longer than an epoch of {micro_batches} micro-batches "
                f"({clips} clips in batches of {config.batch_size}); "
                f"use accum_iter <= {micro_batches} or smaller batches"
            )
        return cls(clips=clips, micro_batches=micro_batches, updates=micro_batches // config.accum_iter)


def check_sensors(known: tuple[str, ...], there: tuple[str, ...]) -> None:
    """Raise ConfigError where encoder.sensors (`known`) is given and does not name a sensor of the data (`there`)."""
    missing = [name for name in there if known and name not in known]
    if missing:
        raise ConfigError(
            f"encoder.sensors = {list(known)} does not name {', '.join(map(repr, missing))}, which the data holds; "
            f"use encoder.sensors: [{', '.join(dict.fromkeys((*known, *there)))}], or take their clips for those of a "
            f"sensor that is known: data.sensor={known[0]}"
        )
