"""Which config takes most memory, and whether as many trials fit as the spec asks for.

Fractions of a GPU do not isolate its memory: trials that do not fit together end each other minutes or hours later. So
one short run of the config that needs most tells the peak of a trial before the first one starts (sweep/probe.py).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.errors import ConfigError
from sweep.resources import Resources
from sweep.spec import SweepSpec

MAX_CONFIGS = 256  # combinations that are compared
RESERVE = 1.05  # for what a longer run finds: fragments, a picture at the end
COUNTS = ("encoder.", "decoder.", "data.image_size")  # parameters, or their beginnings, that memory depends on ...
ALSO = ("batch_size", "mask_ratio", "mode", "ema_decay", "precision", "accum_iter")  # ... and single ones


@dataclass(frozen=True)
class Peak:
    """What one trial takes at most.

    Attributes:
        host_bytes: of the machine's memory, all processes of the trial, without the pages that trials share.
        gpu_bytes: of each of its GPUs, the process's own share (CUDA context) included; 0 without one.
        host_room, gpu_room: what was free for trials.
        too_large: the GPU or the machine ran out of memory, in the words of who noticed; the others are then 0.
    """

    host_bytes: int = 0
    gpu_bytes: int = 0
    host_room: int = 0
    gpu_room: int = 0
    too_large: str | None = None


def is_wanted(resources: Resources) -> bool:
    """Whether a spec asks for the measurement; auto: where trials share a GPU."""
    return resources.memory_probe == "always" or (resources.memory_probe == "auto" and 0 < resources.gpu < 1)


def most_demanding(spec: SweepSpec) -> TrainConfig:
    """The config of the space that takes most memory, by `estimate`: largest batch and model, fewest masked patches.

    Every such parameter acts in one direction, so that the ends of the ranges are enough.
    """
    axes = {
        name: parameter.probes()
        for name, parameter in spec.space.parameters.items()
        if name.startswith(COUNTS) or name in ALSO
    }
    return max(_configs(spec, axes), key=estimate)


def _configs(spec: SweepSpec, axes: dict[str, list[Any]]) -> Iterator[TrainConfig]:
    yield spec.space.to_config(spec.trainer, {})
    for corner in itertools.islice(itertools.product(*axes.values()), MAX_CONFIGS):
        try:
            yield spec.space.to_config(spec.trainer, spec.space.that_matter(dict(zip(axes, corner, strict=True))))
        except ConfigError:
            continue  # these values go only with others


def estimate(config: TrainConfig) -> float:
    """Bytes of a training step, roughly: only for comparing configs.

    Activations after Korthikanti et al. 2022 (34 bytes a token and channel of a block), weights with their gradients
    and AdamW's two moments; with recomputation one block's activations at a time.
    """
    width, depth = _size_of_encoder(config)
    visible = config.num_patches - config.num_masked
    blocks = 1 if config.encoder.grad_checkpointing else depth
    branches = 2 if config.mode == "joint" else 1
    decoded = config.decoder.depth * config.num_patches * config.decoder.width
    clip = 34.0 * branches * (blocks * visible * width + decoded)
    weights = 12.0 * depth * width**2 + 12.0 * config.decoder.depth * config.decoder.width**2
    copies = 16 if config.ema_decay is None else 20
    return config.batch_size * clip + copies * weights


def _size_of_encoder(config: TrainConfig) -> tuple[int, int]:
    if config.encoder.name is None:
        return config.encoder.width, config.encoder.depth
    import torch

    from model.encoder import build_vit

    with torch.device("meta"):
        vit = build_vit(config)
    return int(vit.embed_dim), len(vit.blocks)


def check_fit(spec: SweepSpec, peak: Peak, concurrent: int) -> str:
    """One line on what a trial takes and that it fits.

    Args:
        concurrent: trials that run at a time on the machine where it was measured.

    Raises:
        ConfigError: what the spec asks for cannot fit; says what does.
    """
    of = most_demanding(spec)
    which = f"batch_size {of.batch_size}, mask_ratio {of.mask_ratio:g}"
    smaller = "lower batch_size, or set trainer.encoder.grad_checkpointing"
    if peak.too_large is not None:
        raise ConfigError(f"resources: not even one trial fits ({which}): {peak.too_large}; {smaller}")
    notes = []
    if peak.gpu_bytes:
        together = min(max(1, math.floor(1 / spec.resources.gpu + 1e-9)), concurrent) if spec.resources.gpu < 1 else 1
        fit = _fit(peak.gpu_bytes, peak.gpu_room)
        taken = f"a trial takes {_gib(peak.gpu_bytes)} of a GPU at its peak ({which})"
        if fit < together:
            other = f"use gpu: {_fraction(fit)}, or {smaller}" if fit else smaller
            raise ConfigError(
                f"resources.gpu = {spec.resources.gpu:g}: {together} trials would share a GPU, but {taken}, and of its "
                f"{_gib(peak.gpu_room)} {_times(fit)}; {other}"
            )
        notes.append(f"{taken}, and {together} at a time share {_gib(peak.gpu_room)}")
    fit = _fit(peak.host_bytes, peak.host_room)
    taken = f"a trial takes {_gib(peak.host_bytes)} of the machine's memory at its peak ({which})"
    if fit < concurrent:
        other = f"set max_concurrent: {fit}, or {smaller}" if fit else smaller
        raise ConfigError(
            f"resources: {concurrent} trials at a time, but {taken}, and of the {_gib(peak.host_room)} that are free "
            f"{_times(fit)}; {other}"
        )
    notes.append(f"{taken}, and {concurrent} at a time have {_gib(peak.host_room)}")
    return f"memory: {'; '.join(notes)}"


def _fit(each: int, room: int) -> int:
    return math.floor(room / (RESERVE * each))


def _fraction(fit: int) -> str:
    """The share of a GPU with which so many trials share it: 3 -> 0.33."""
    for digits in (100, 1_000, 10_000):
        share = math.floor(digits / fit) / digits
        if share and math.floor(1 / share + 1e-9) == fit:
            return f"{share:g}"
    return "0.01"


def _times(fit: int) -> str:
    return "not even one has room" if fit == 0 else f"only {fit} {'have' if fit > 1 else 'has'} room"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def own_memory(children: int) -> int:
    """Bytes that this process and its children have taken at most, without pages of files, which trials share."""
    import resource

    import psutil

    unit = 1 if sys.platform == "darwin" else 1024
    try:  # what the kernel gives as ru_maxrss starts at the size of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):  # not Linux, or a sandbox that does not tell
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit if children else 0
    shared = getattr(psutil.Process().memory_info(), "shared", 0)
    return int(own - shared + children * max(largest_child - shared, 0))


def available_memory() -> int:
    """Bytes that processes of this machine, or of this container, can still take."""
    import psutil

    free = psutil.virtual_memory().available
    try:  # control groups, version 2: what a container is limited to
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        reclaimable = dict(
            line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
        ).get("inactive_file", "0")
        return free if limit == "max" else min(free, int(limit) - used + int(reclaimable))
    except (OSError, ValueError):
        return int(free)
