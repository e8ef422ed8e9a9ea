"""Learning rate: linear warm-up, then half a cosine (Loshchilov & Hutter 2017; as in He et al. 2021)."""

from __future__ import annotations

import math

from model.config import TrainConfig


def lr_at(update: int, config: TrainConfig, updates_per_epoch: int) -> float:
    """Learning rate of gradient update `update` (from 0).

    Warm-up rises to the peak over `warmup_epochs`; its first update already has a rate above 0 (it would be wasted
    otherwise). The cosine then falls to `min_lr` at the last update's end.
    """
    warmup = config.warmup_epochs * updates_per_epoch
    if update < warmup:
        return config.peak_lr * min(1.0, (update + 1) / warmup)
    total = config.epochs * updates_per_epoch
    progress = (update - warmup) / max(1.0, total - warmup)
    return config.min_lr + (config.peak_lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
