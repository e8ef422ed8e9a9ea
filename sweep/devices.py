"""What each of several agents on one machine gets of it: which GPUs, and how many agents have room.

Without torch, since the choice is made before torch is imported.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from model.errors import ConfigError
from sweep.processes import with_own_python
from sweep.resources import Resources

ROUNDING = 1e-9  # three shares of 1/3 are one GPU
_CUDA_NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")  # in CUDA_VISIBLE_DEVICES; CUDA stops at the first other
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")  # `quota period` or `max period`, of a container under cgroup v2
_NVIDIA_SMI_LIMIT_S = 30.0


def devices_of(slot: int, gpu: float, devices: Sequence[str]) -> list[str]:
    """The GPUs that the trial of an agent uses.

    Shares of a GPU are dealt round the devices, so that none is used by more than 1.0 in all before every device is
    full. A trial of whole GPUs has neighbouring ones for itself, as long as there are enough.

    Args:
        slot: which of the agents on this machine, from 0.
        gpu: what each trial asks for (`resources.gpu`): none, a share of one, or whole ones.
        devices: the visible GPUs, see `visible_devices`.

    Raises:
        ConfigError: an amount that no trial can have, or more GPUs than there are.
    """
    if not gpu >= 0 or math.isinf(gpu) or (gpu > 1 and gpu % 1):
        raise ConfigError(f"resources.gpu = {gpu:g}; must be 0, a share of one GPU (below 1), or a whole number")
    each = math.ceil(gpu)
    if each > len(devices):
        there = f"only {', '.join(devices)}" if devices else "none"
        raise ConfigError(
            f"resources.gpu = {gpu:g}, but of the GPUs {there} can be seen here (CUDA_VISIBLE_DEVICES, nvidia-smi -L); "
            f"set resources.gpu to {len(devices)} or less"
        )
    if each == 0:
        return []
    first = slot % (len(devices) // each) * each
    return list(devices[first : first + each])


def agents_that_fit(resources: Resources, cores: int, gpus: int) -> int:
    """How many agents, each with one trial at a time, have room on a machine; 0 where not even one has."""
    fit = math.floor(cores / resources.cpu + ROUNDING)
    if resources.gpu >= 1:
        fit = min(fit, gpus // math.ceil(resources.gpu))
    elif resources.gpu > 0:  # a trial's share is of one GPU: two thirds of each of two GPUs are no room
        fit = min(fit, gpus * math.floor(1 / resources.gpu + ROUNDING))
    return fit if resources.max_concurrent == "auto" else min(fit, resources.max_concurrent)


def number_of_agents(asked: int | None, resources: Resources, devices: Sequence[str]) -> int:
    """How many agents to start; says so where that is more than fit.

    Args:
        asked: None: as many as fit.

    Raises:
        ConfigError: not even one trial has room; too few GPUs for any.
    """
    devices_of(0, resources.gpu, devices)  # a trial would fail
    cores = usable_cores()
    fit = agents_that_fit(resources, cores, len(devices))
    wanted = f"a trial asks for {resources.cpu:g} CPU and {resources.gpu:g} GPU of {cores} and {len(devices)}"
    if resources.max_concurrent != "auto":
        wanted += f", max_concurrent is {resources.max_concurrent}"
    if (asked or fit) == 0:
        raise ConfigError(f"resources: {wanted}, so none fits; set resources to less, or give -n")
    if asked is not None and asked > fit:
        print(f"note: {asked} agents, but {fit} fit: {wanted}; they will share", flush=True)
    return asked or fit


def environments(num: int | None, resources: Resources | None) -> list[dict[str, str]]:
    """What each of several agents has in its environment: its GPUs, where it is known what a trial needs.

    Args:
        num: how many; None: as many as fit, or one where nothing is known.
    """
    environ = with_own_python(dict(os.environ))
    environ.pop("WANDB_SERVICE", None)  # of whomever
    if resources is None:
        if num is None:
            print("note: one agent, since the resources of a trial are not known; give -n, or --spec", flush=True)
        return [environ] * (num or 1)
    devices = visible_devices() if resources.gpu else []
    num = number_of_agents(num, resources, devices)
    shares = (devices_of(slot, resources.gpu, devices) for slot in range(num))
    return [{**environ, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that CUDA would show to this process, as CUDA_VISIBLE_DEVICES names them; empty where there is none."""
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(index) for index in range(_num_gpus())]
    names: list[str] = []
    for name in (part.strip() for part in given.split(",")):
        if not _CUDA_NAME.fullmatch(name):  # as CUDA does: `0,-1,1` shows 0 alone
            break
        names.append(name)
    return names


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than the machine's in a container or a Slurm job. At least 1."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = _CGROUP_CPU.read_text(encoding="ascii").split()
        cores = min(cores, float(quota) / float(period))
    return max(1, int(cores + ROUNDING))


def _num_gpus() -> int:
    if command := shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_LIMIT_S)
            if listed.returncode == 0:
                return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return sum(path.name[len("nvidia") :].isdigit() for path in Path("/dev").glob("nvidia*"))
