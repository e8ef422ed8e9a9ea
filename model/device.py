"""Where and in which precision a config computes, and how numbers come off the device without waiting for it."""

from __future__ import annotations

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


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether a config trains in bf16 on a device: where it is asked for, or where the GPU has it."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start the copy of a small tensor to the host; on CUDA the event tells when it has arrived."""
    if values.device.type != "cuda":
        return values.to("cpu"), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived
