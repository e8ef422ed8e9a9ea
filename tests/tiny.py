"""A training run of a tenth of a second: 16-pixel procedural clips and a one-block model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import TrainConfig

TINY: dict[str, Any] = {
    "data": {"image_size": 16, "eval_clips": 8, "synthetic": {"sequences": 12, "frames": 8}},
    "encoder": {"width": 32, "depth": 1, "heads": 2, "patch_size": 4},
    "decoder": {"width": 32, "depth": 1, "heads": 2},
    "epochs": 2,
    "batch_size": 8,
    "base_lr": 0.03,
    "device": "cpu",
}
TRAIN_CLIPS = 50  # 10 of the 12 sequences, 5 clips of each 8 frames


def tiny_content(**changes: Any) -> dict[str, Any]:
    """The fields of `tiny_config`, for a YAML file; `changes` are merged into the blocks."""
    return _merged(TINY, changes)


def tiny_config(**changes: Any) -> TrainConfig:
    """2 epochs of 6 updates; `tiny_config(data={"hflip": 1.0}, alpha=0.3)` changes fields."""
    return TrainConfig.model_validate(tiny_content(**changes))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
