"""How much memory a trial takes, measured before the first one, and whether as many fit as the spec asks for.

Fractions of a GPU do not isolate its memory: trials that do not fit together end each other minutes or hours later. So
one short run of the config that needs most tells the peak of a trial: a few updates and an evaluation, in a process of
its own with a trial's share of the machine. Nothing of it is kept.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.errors import ConfigError, UserError
from sweep.resources import Resources
from sweep.spec import SweepSpec

UPDATES = 3  # the optimiser's state is there from the first on; the allocator has settled after the second
EVAL_CLIPS = 64  # one batch of the evaluation (model/evaluate.py)
MAX_CONFIGS = 256  # combinations that are compared
RESERVE = 1.05  # for what a longer run finds: fragments, a picture at the end
LIMIT_S = 900.0  # of a run; the first one may have to start a GPU and compile
WORKER_BYTES = 300 * 2**20  # of a CPU trial beside its training: Ray's worker, W&B's client and its service
CUDA_CONTEXT_BYTES = 600 * 2**20  # of a process on a GPU, where nvidia-smi does not tell it
PACKAGES = Path(__file__).resolve().parents[1]  # where the process finds this package
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


def task_of(spec: SweepSpec) -> dict[str, Any]:
    """What `measure` needs, as plain data."""
    config = most_demanding(spec)
    resources = spec.resources
    return {
        "config": config.model_dump(mode="json"),
        "processes": resources.num_processes,
        "threads": resources.threads,
    }


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


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run `task_of` a spec in a process of its own, with the CPUs and GPUs that this one sees; a `Peak` as plain data.

    Raises:
        UserError: the config cannot be trained at all, or the run failed otherwise.
    """
    found = os.environ.get("PYTHONPATH")
    threads = str(task["threads"])
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PACKAGES), *([found] if found else [])]),
        "OMP_NUM_THREADS": threads,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sweep.memory"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(_failed(f"it took longer than {LIMIT_S:.0f} s")) from None
    if done.returncode == -9:  # the kernel's own killer: nobody else ends this process
        return asdict(Peak(too_large="the system ended it for want of memory"))
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if "peak" in answer:
        return dict(answer["peak"])
    said = answer.get("error") or (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise UserError(_failed(str(said)))


def _failed(reason: str) -> str:
    return f"resources.memory_probe: the short run that measures a trial's memory failed: {reason}"


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


# --- in the process of its own ----------------------------------------------------------------------------------------


def _measured(task: dict[str, Any]) -> Peak:
    import torch

    from model.data.clips import load_clips
    from model.device import pick_device
    from model.plan import EpochPlan
    from model.team import Team

    torch.set_num_threads(task["threads"])
    config = _shortened(TrainConfig.model_validate(task["config"]))
    clips = load_clips(config.data)
    EpochPlan.of(config, len(clips.train))
    device = pick_device(config)
    on_gpu = device.type == "cuda"
    host_room = available_memory() - own_memory(0)  # of this process only what it is going to take counts
    used_before = _gpu_used() if on_gpu else None
    try:
        with Team(task["processes"], device.type) as team:
            for _ in team.trainer(config, clips).run_epoch():
                pass
            gpu_bytes = gpu_room = 0
            if on_gpu:
                reserved = torch.cuda.max_memory_reserved()
                free, total = torch.cuda.mem_get_info()
                now = torch.cuda.memory_reserved()
                context = CUDA_CONTEXT_BYTES if used_before is None else total - free - now - used_before
                gpu_bytes = reserved + max(context, 0)
                gpu_room = total - (used_before or 0)
    except MemoryError:
        return Peak(too_large="the machine has not that much memory")
    except RuntimeError as error:  # torch's own, of a GPU or of the machine
        text = " ".join(str(error).split())
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in text:
            raise
        return Peak(too_large=text[:200])
    return Peak(own_memory(task["processes"] - 1) + WORKER_BYTES, gpu_bytes, host_room, gpu_room)


def _shortened(config: TrainConfig) -> TrainConfig:
    """A few updates, and an evaluation of one batch. Weights to start from are left out: they take no more."""
    accum = min(config.accum_iter, 2)
    clips = UPDATES * accum * config.batch_size
    data = config.data.model_copy(
        update={
            "clips_per_epoch": min(config.data.clips_per_epoch or clips, clips),
            "eval_clips": min(config.data.eval_clips, EVAL_CLIPS),
        }
    )
    encoder = config.encoder.model_copy(update={"pretrained": False})
    changes = {"data": data, "encoder": encoder, "epochs": 1, "warmup_epochs": 0.0, "accum_iter": accum, "pictures": 0}
    return config.model_copy(update=changes)


def own_memory(children: int) -> int:
    """Bytes that this process and its children have taken at most, without pages of files, which trials share."""
    import resource

    import psutil

    unit = 1 if sys.platform == "darwin" else 1024
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


def _gpu_used() -> int | None:
    """Bytes that others use of this process's GPU, before it uses it; None where nvidia-smi does not tell."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return int(done.stdout.strip()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def main() -> int:
    """`python -m sweep.memory`: a task on stdin -> its peak on stdout, as JSON."""
    try:
        answer: dict[str, Any] = {"peak": asdict(_measured(json.load(sys.stdin)))}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
