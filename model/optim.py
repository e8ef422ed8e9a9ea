"""The optimiser of a config: fused AdamW, which parameters it decays, and how fast each layer learns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.config import TrainConfig

NO_DECAY = ("mask_token", "prefix", "positions", "sensor_tokens")  # tokens and positions, as in timm and MAE


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused: one kernel for all parameters.

    Matrices are decayed; vectors (biases, norms), tokens and positions are not. With `layer_decay`, each encoder block
    learns at a share of the next one's rate (Clark et al. 2020, ELECTRA; as in MAE's and BEiT's fine-tuning).
    """
    depth = 1 + max((_block(name) for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer = depth + 1 if config.layer_decay is None else _layer(name, depth)
        decayed = parameter.ndim >= 2 and not name.endswith(NO_DECAY)
        groups.setdefault((layer, decayed), []).append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr_scale": (config.layer_decay or 1.0) ** (depth + 1 - layer),
        }
        # decayed ones first
        for (layer, decayed), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]
    return torch.optim.AdamW(described, lr=config.peak_lr, betas=config.betas, fused=True)


def set_lr(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Set the learning rate of an update; each layer gets its share."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]


def _block(name: str) -> int:
    """Number of the encoder block that a parameter belongs to; -1 for none."""
    found = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def _layer(name: str, depth: int) -> int:
    """0 for what comes before the first block, 1 to depth for the blocks, depth + 1 for what comes after."""
    block = _block(name)
    if block >= 0:
        return block + 1
    before = name.startswith(("embed.", "encoder.norm_pre.")) or name.endswith(NO_DECAY[1:])
    return 0 if before else depth + 1
