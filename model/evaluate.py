"""The fixed evaluation protocol: one measure for all trials, whatever they train with (metrics.md, `eval/...`).

Held-out clips, mask ratio 0.75, random masks seeded by the clip's place in the set, no augmentation, each clip's own
sensor. The skill scores compare with what needs no learning: the training set's mean frame, and a copy of frame 3. Both
are measured as the model's losses are: with norm_pix_loss on normalised patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.batches import Batch
from model.config import TrainConfig, round_to_patches
from model.data.clips import ClipSet
from model.data.config import TUBE_FRAMES
from model.losses import in_order, mse, targets
from model.mae import JointTactileMAE
from model.masks import random_order
from model.metrics import EVAL_NAMES

EVAL_MASK_RATIO = 0.75
EVAL_SEED = 20251024  # the same masks in every trial, of any seed
EVAL_BATCH = 64  # not the trial's batch size: float sums must not depend on it

Load = Callable[[Tensor], Batch]


def protocol_masks(num_clips: int, num_patches: int) -> tuple[int, Tensor, Tensor]:
    """The masks of the protocol: visible patches of a frame, static and dynamic order [num_clips, num_patches]."""
    num_masked = min(max(round_to_patches(EVAL_MASK_RATIO, num_patches), 1), num_patches - 1)
    generator = torch.Generator().manual_seed(EVAL_SEED)
    static, dynamic = (random_order(num_clips, num_patches, generator) for _ in ("static", "dynamic"))
    return num_patches - num_masked, static, dynamic


class Evaluator:
    """Evaluates models on `clips` under the fixed protocol.

    Args:
        load: clip numbers -> those clips on the device, without augmentation. Given again at each evaluation, not kept:
            it belongs to the trainer that keeps this evaluator.
        mean_patches: the training-set mean frame as normalised patches [N, P], on the device.
    """

    def __init__(self, config: TrainConfig, clips: ClipSet, load: Load, mean_patches: Tensor) -> None:
        self._norm_pix = config.norm_pix_loss
        self._num_visible, *orders = protocol_masks(len(clips), config.num_patches)
        self._static_order, self._dynamic_order = (order.to(mean_patches.device) for order in orders)
        self._mean_frame_mse, self._copy_frame_mse = self._baselines(load, mean_patches)

    def _batches(self, load: Load) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        count = len(self._static_order)
        for start in range(0, count, EVAL_BATCH):
            chosen = slice(start, min(start + EVAL_BATCH, count))
            batch = load(torch.arange(chosen.start, chosen.stop))
            yield batch, self._static_order[chosen], self._dynamic_order[chosen]

    @torch.no_grad()
    def _baselines(self, load: Load, mean_patches: Tensor) -> tuple[float, float]:
        """MSE of the mean frame at the masked patches of frame 1, and of frame 3 as frame 4."""
        sums = torch.zeros(2, dtype=torch.float64)
        for (patches, _), static_order, _ in self._batches(load):
            wanted = targets(patches, self._norm_pix)
            masked = static_order[:, self._num_visible :]
            target = in_order(wanted[:, :, 0], masked)
            mean = in_order(targets(mean_patches, self._norm_pix).expand(len(patches), -1, -1), masked)
            copied = mse(wanted[:, :, TUBE_FRAMES - 1], wanted[:, :, TUBE_FRAMES])
            sums += len(patches) * torch.stack((mse(mean, target), copied)).cpu().double()
        mean_frame, copy_frame = (sums / len(self._static_order)).tolist()
        return mean_frame, copy_frame

    @torch.no_grad()
    def __call__(self, model: JointTactileMAE, load: Load) -> dict[str, float]:
        """The `eval/...` metrics, computed in float32 whatever the trial trains in. One host copy per evaluation.

        A skill is absent where its baseline makes no error (frames that never change): there is nothing to compare.
        """
        model.eval()
        sizes: list[int] = []
        parts: list[Tensor] = []
        for (patches, sensors), *orders in self._batches(load):
            losses = model(patches, *orders, self._num_visible, sensors)
            sizes.append(len(patches))
            parts.append(torch.stack(losses))
        model.train()
        # float64 on the host only: Apple's GPUs have none
        sums = torch.tensor(sizes, dtype=torch.float64) @ torch.stack(parts).cpu().double()
        static, recon, pred = (sums / len(self._static_order)).tolist()
        dynamic = recon + pred
        reference = 0.5 * static + 0.5 * dynamic
        row = dict(zip(EVAL_NAMES, (static, recon, pred, dynamic, reference), strict=False))
        for name, loss, baseline in (
            ("eval/static_skill", static, self._mean_frame_mse),
            ("eval/pred_skill", pred, self._copy_frame_mse),
        ):
            if baseline > 0:
                row[name] = 1.0 - loss / baseline
        return row
