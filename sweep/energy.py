"""The energy that a trial uses, from counters of the machine: of NVIDIA GPUs (NVML) and of processors (Linux RAPL).

A counter counts all that runs on its device, so what is kept is the device's energy while the trial was open there; the
report (sweep/report/cost.py) takes the trial's share of it. It is what was really spent: work that a kill undid, and
that was done again, counts twice. Where no counter can be read, as in most containers, nothing is kept.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from model.sinks import write_json

COST_FILE = "cost.json"  # in a trial's folder
GPU_JOULES = "cost/gpu_joules"  # of all GPUs that the trial sees
CPU_JOULES = "cost/cpu_joules"  # of all processors of its machine
CORES = "cost/cpu_cores"  # of that machine, of which the trial has some
POWERCAP = Path("/sys/class/powercap")

Joules = Mapping[str, float]  # by counter; each only grows, but may begin anew at its range


class EnergyMeter:
    """Adds what a trial uses to its folder's cost.json, also over its interruptions. It never fails a trial.

    Args:
        folder: of the trial.
        gpus: the trial trains on those that this process sees.
        read: the counters; those of this machine if absent.
        ranges: of counters that begin anew: the value at which they do.
    """

    def __init__(
        self,
        folder: Path,
        gpus: bool = False,
        read: Callable[[], Joules] | None = None,
        ranges: Mapping[str, float] | None = None,
    ) -> None:
        self._file = folder / COST_FILE
        if read is None:
            counters = Counters(POWERCAP, gpus)
            read, ranges = counters.read, counters.ranges
        self._read, self._ranges = read, ranges or {}
        self._used = _kept(self._file)
        self._last = dict(read())

    def write(self) -> None:
        """Add what was used since the last time, and write it down. Call it every few minutes: counters begin anew."""
        if not self._last:
            return
        now = self._read()
        for name in self._last.keys() & now.keys():
            used = now[name] - self._last[name]
            if used < 0:
                used += self._ranges.get(name, math.inf)
            if 0 <= used < math.inf:
                key = GPU_JOULES if name.startswith("gpu") else CPU_JOULES
                self._used[key] = self._used.get(key, 0.0) + used
        self._last = dict(now)
        if not self._used:
            return
        with suppress(OSError):
            write_json(self._file, {**self._used, CORES: os.cpu_count() or 1})


def _kept(file: Path) -> dict[str, float]:
    """What earlier parts of the trial used."""
    try:
        content = json.loads(file.read_bytes())
        found = {key: float(content[key]) for key in (GPU_JOULES, CPU_JOULES) if key in content}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return {key: joules for key, joules in found.items() if 0 <= joules < math.inf}


class Counters:
    """Those of this machine that can be read."""

    def __init__(self, powercap: Path, gpus: bool = False) -> None:
        self._packages = _packages(powercap)
        self.ranges = {f"cpu{place}": span for place, (_, span) in enumerate(self._packages)}
        self._gpus = _gpu_counters() if gpus else []

    def read(self) -> dict[str, float]:
        """Joules by counter."""
        found = {}
        for place, (file, _) in enumerate(self._packages):
            with suppress(OSError, ValueError):
                found[f"cpu{place}"] = _microjoules(file)
        for place, counter in enumerate(self._gpus):
            with suppress(Exception):  # NVML's own errors: a driver that goes away costs the figure only
                found[f"gpu{place}"] = counter() / 1e3
        return found


def _packages(powercap: Path) -> list[tuple[Path, float]]:
    """(counter, its range in joules) of each processor; the folder has also its parts, and the whole board."""
    found = []
    with suppress(OSError):
        for domain in sorted(powercap.iterdir()):
            if not re.fullmatch(r"intel-rapl:\d+", domain.name):  # AMD's have this name too
                continue
            with suppress(OSError, ValueError):
                if (domain / "name").read_text(encoding="ascii").startswith("package"):
                    _microjoules(domain / "energy_uj")  # for root alone, on most machines
                    found.append((domain / "energy_uj", _microjoules(domain / "max_energy_range_uj")))
    return found


def _microjoules(file: Path) -> float:
    return int(file.read_text(encoding="ascii")) / 1e6


def _gpu_counters() -> list[Callable[[], float]]:
    """Millijoules of each GPU that this process sees; empty without NVML, for an old GPU or a part of one (MIG)."""
    try:
        import pynvml
        import torch

        if not torch.cuda.is_available():
            return []
        pynvml.nvmlInit()
        counters: list[Callable[[], float]] = []
        for place in range(torch.cuda.device_count()):
            # NVML counts the machine's GPUs, torch those of CUDA_VISIBLE_DEVICES: only the UUID is the same
            uuid = f"GPU-{str(torch.cuda.get_device_properties(place).uuid).removeprefix('GPU-')}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            counter = partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            counter()
            counters.append(counter)
        return counters
    except Exception:  # without the package or the driver, or with one that knows no such counter
        return []
