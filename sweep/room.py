"""Is there room on the disk for a sweep's checkpoints? Rows and pictures are small beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

from model.config import TrainConfig

COPIES = 3  # of a running trial's checkpoint: the last one, the one before, and the one that is being written
FLOAT_BYTES, ADAM_STATES = 4, 2
BLOCK_MLP_RATIO = 4.0  # of the decoder's blocks, and timm's default
GB = 1e9


def checkpoint_bytes(config: TrainConfig) -> int:
    """About the size of a trial's checkpoint: the weights and AdamW's two states."""
    encoder, decoder, pixels = config.encoder, config.decoder, 3 * config.encoder.patch**2
    width = encoder.width
    if encoder.name is None:
        numbers = _blocks(width, encoder.depth, encoder.mlp_ratio)
    else:
        import torch

        from model.encoder import build_vit  # timm is imported already: the name was checked with it

        with torch.device("meta"):
            vit = build_vit(config)
        width, numbers = vit.embed_dim, sum(weights.numel() for weights in vit.blocks.parameters())
    numbers += 3 * pixels * width + width * decoder.width + 4 * pixels * decoder.width
    numbers += _blocks(decoder.width, decoder.depth, BLOCK_MLP_RATIO)
    return int(numbers) * FLOAT_BYTES * (1 + ADAM_STATES)


def faults_of_room(size: int, path: Path, num_trials: int, concurrent: int) -> tuple[str | None, str | None]:
    """What makes a sweep impossible here, and what may end it later; None where nothing does.

    Args:
        size: bytes of a checkpoint.
        path: a folder on the disk in question.
        num_trials: trials to come; each keeps one checkpoint.
        concurrent: of them at a time; each needs room for COPIES.
    """
    try:
        free = shutil.disk_usage(path).free
    except OSError:  # told where the folder is opened
        return None, None
    now, in_all = COPIES * concurrent * size, (num_trials + (COPIES - 1) * concurrent) * size
    has = f"results: {path} has {free / GB:.3g} GB free"
    each = f"(about {size / GB:.3g} GB a checkpoint)"
    if free < now:
        return (
            f"{has}, but {concurrent} trials at a time need {now / GB:.3g} GB {each}; make room, choose another folder "
            "with --results, or lower resources.max_concurrent"
        ), None
    if free < in_all:
        return None, f"{has}, and the checkpoints of {num_trials} trials come to {in_all / GB:.3g} GB {each}"
    return None, None


def _blocks(width: int, depth: int, mlp_ratio: float) -> float:
    return depth * (4 + 2 * mlp_ratio) * width**2
