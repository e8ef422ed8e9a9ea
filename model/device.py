"""Where and in which precision a config computes, and how numbers come off the device without waiting for it."""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor

from model.config import TrainConfig
from model.errors import ConfigError


def pick_device(config: TrainConfig) -> torch.device:
    """The device of a config. Raises ConfigError where it is asked for and not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[config.device]:
        raise ConfigError(f"device = {config.device!r} is not available here; use auto or cpu")
    return torch.device(config.device)


def pick_precision(config: TrainConfig, device: torch.device) -> str:
    """fp32, bf16 or fp16: what a config trains in on a device; auto is bf16 where the GPU has it."""
    if config.precision != "auto":
        return config.precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The autocast of a config's precision; switched off for fp32."""
    precision = pick_precision(config, device)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def check_compiler(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError where torch.compile would fail for want of a C++ compiler, minutes into the run."""
    if not config.compile or device.type != "cpu":
        return
    named = os.environ.get("CXX")
    if not any(map(shutil.which, [named] if named else ["g++", "clang++", "c++"])):
        raise ConfigError(
            "compile = true needs a C++ compiler on a CPU; install g++, name one by CXX, or set it to false"
        )


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy of a small tensor to the host; on CUDA the event tells when it has arrived."""
    if values.device.type != "cuda":
        return values.to("cpu"), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived
