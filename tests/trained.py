"""A run that has ended, without training it: a model of odd weights and its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.checkpoint import save_checkpoint
from model.config import TrainConfig
from model.export import Run
from model.mae import JointTactileMAE
from tests.tiny import tiny_config, tiny_content

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
SENSORS = {"sensors": ["gelsight", "digit"], "sensor_tokens": 3}


def config_of(**encoder: Any) -> TrainConfig:
    """Width and depth of our own, or 32-pixel images with patches of 16 for a timm name."""
    if "name" not in encoder:
        return tiny_config(data={"image_size": [8, 20]}, encoder=encoder, mask_ratio=0.6)
    content = tiny_content(data={"image_size": 32}, mask_ratio=0.5)
    return TrainConfig.model_validate(content | {"encoder": {"patch_size": 16} | encoder})


def trained(config: TrainConfig) -> Run:
    """A model whose every weight is away from its start."""
    model = JointTactileMAE(config, seed=2).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return Run(model, config, MEAN, STD)


def checkpoint(run: Run, path: Path, **changes: Any) -> Path:
    """A checkpoint as a trainer writes it, as far as an export reads it."""
    content = {
        "version": 1,
        "config": run.config.model_dump(mode="json"),
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "model": run.model.state_dict(),
        "ema": None,
    }
    save_checkpoint(path, content | changes)
    return path
