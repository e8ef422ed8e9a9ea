"""Frozen features of clips, and their effective rank: is anything learnt, or has the encoder collapsed?

Features come from frames 1-3 of a clip, without masks or augmentation, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import TrainConfig
from model.data.config import TUBE_FRAMES
from model.data.spread import evenly_spread
from model.evaluate import Load
from model.mae import JointTactileMAE

FEATURE_BATCH = 64  # clips at a time: bounds the memory of an unmasked pass
RANK_CLIPS = 64  # held-out clips of which the rank is taken: 2-3 % of an epoch's time at the default config

TUBE = slice(TUBE_FRAMES)
LAST_OF_TUBE = slice(TUBE_FRAMES - 1, TUBE_FRAMES)


def frames_seen(config: TrainConfig) -> slice:
    """The frames that features come from: 1-3, but frame 3 alone where the model was trained on single frames only."""
    return LAST_OF_TUBE if config.mode == "static" else TUBE


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the mode of before afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def clip_tokens(model: JointTactileMAE, load: Load, numbers: NDArray[np.int64], frames: slice = TUBE) -> Tensor:
    """Patch tokens of clips: numbers [n] -> [n, N, D] float32 on the model's device. They are all in memory at once."""
    with frozen(model):
        return torch.cat(list(_token_batches(model, load, numbers, frames)))


def clip_features(model: JointTactileMAE, load: Load, numbers: NDArray[np.int64], frames: slice = TUBE) -> Tensor:
    """Mean-pooled features of clips: numbers [n] -> [n, D] float32 on the model's device."""
    with frozen(model):
        return torch.cat([tokens.mean(dim=1) for tokens in _token_batches(model, load, numbers, frames)])


def _token_batches(model: JointTactileMAE, load: Load, numbers: NDArray[np.int64], frames: slice) -> Iterator[Tensor]:
    for part in torch.from_numpy(numbers).split(FEATURE_BATCH):
        patches, sensors = load(part)
        yield model.encode_tokens(patches[:, :, frames], sensors).float()


def held_out_rank(model: JointTactileMAE, load: Load, count: int, frames: slice = TUBE) -> float:
    """`eval/effective_rank`: of the features of at most RANK_CLIPS of the `count` held-out clips, evenly spread."""
    return effective_rank(clip_features(model, load, evenly_spread(count, RANK_CLIPS), frames))


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred features [n, D]; in 1..min(n - 1, D), or 0.

    It counts the directions in which the features differ from clip to clip: 1 where they lie on a line, 0 where they
    do not differ by more than rounding errors. NaN where a feature is NaN or infinite. It depends on n: compare only
    ranks of equally many clips.

    After Roy & Vetterli 2007, "The effective rank"; on features without centring it is the RankMe of Garrido et al.
    2023. A common offset of all clips says nothing of them, hence the centring.
    """
    if not bool(torch.isfinite(features).all()):
        return float("nan")
    exact = features.detach().cpu().double()  # float64 on the host: Apple's GPUs have none
    values = torch.linalg.svdvals(exact - exact.mean(dim=0))
    # what is left of equal features is rounding, and would have a high rank: the usual tolerance of a matrix rank
    rounding = max(exact.shape) * torch.finfo(features.dtype).eps * torch.linalg.matrix_norm(exact, 2)
    values = values[values > rounding]
    if len(values) == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
