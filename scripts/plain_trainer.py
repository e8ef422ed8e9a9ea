"""The joint step as the trainer's ancestors write it: what bench_trainer.py measures ours against.

The same maths on the same weights, with the habits of the usual MAE code (He et al. 2021; Feng et al. 2025, AnyTouch):
frames are normalised on the host, clip by clip; every patch of every tube is embedded and the visible ones are picked
afterwards; the two branches go through the network one after the other; tokens are unshuffled; the heads predict every
patch and a mask takes the unwanted ones out of the loss; AdamW is PyTorch's default; each step waits for the device,
once for every loss that it logs.

Kept like ours, so that the ratio is not flattered: timm's blocks with fused attention, and the precision.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model.config import TrainConfig
from model.data.clips import Clips
from model.data.config import TUBE_FRAMES
from model.device import autocast
from model.mae import JointTactileMAE
from model.masks import random_order
from model.plan import EpochPlan
from model.schedule import lr_at

Row = dict[str, float]


class PlainTrainer:
    """Trains a copy of `model`'s weights on `clips`, in fp32 or bf16.

    Of a config it knows what the joint recipe has: mode joint, fixed weights, random masks, a micro-batch an update.
    """

    def __init__(self, config: TrainConfig, clips: Clips, model: JointTactileMAE, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._updates = EpochPlan.of(config, len(clips.train)).updates
        self.model = PlainMAE(config, model).to(device)
        self._optimiser = torch.optim.AdamW(_decay_groups(self.model, config.weight_decay), betas=config.betas)
        self._generator = torch.Generator().manual_seed(config.seed)
        # as usual, workers prepare the clips where the steps leave them the processor; they keep on between two runs
        workers = min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
        dataset = PlainClips(clips, config.data.hflip, self._generator)
        shuffled = _endless(len(dataset), self._generator)
        loader = DataLoader(
            dataset, config.batch_size, sampler=shuffled, num_workers=workers, pin_memory=device.type == "cuda"
        )
        self._batches = iter(loader)
        self._iteration = 0

    def run(self, steps: int) -> Iterator[Row]:
        """So many steps, on through the shuffled training clips; a row of the 16 batch metrics each."""
        for clips in itertools.islice(self._batches, steps):
            size = len(clips), self._config.num_patches
            yield self.step(clips, random_order(*size, self._generator), random_order(*size, self._generator))

    def step(self, clips: Tensor, static_order: Tensor, dynamic_order: Tensor) -> Row:
        """One update on normalised clips [B, 4, 3, H, W] with the masks of the orders [B, N]; its 16 batch metrics."""
        config, iteration = self._config, self._iteration
        lr = lr_at(iteration, config, self._updates)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        clips, static_order, dynamic_order = (part.to(self._device) for part in (clips, static_order, dynamic_order))
        with autocast(config, self._device):
            loss_static, loss_recon, loss_pred = self.model(clips, static_order, dynamic_order)
        alpha, beta = config.weights
        loss_dynamic = loss_recon + loss_pred
        loss = alpha * loss_static + beta * loss_dynamic
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()}")
        self._optimiser.zero_grad()
        loss.backward()
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self._optimiser.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._iteration += 1
        return {
            "batch/loss_total": loss.item(),
            "batch/lr": self._optimiser.param_groups[0]["lr"],
            "batch/epoch": iteration // self._updates,
            "batch/iteration": iteration,
            "batch/loss_static": loss_static.item(),
            "batch/loss_dynamic": loss_dynamic.item(),
            "batch/loss_recon": loss_recon.item(),
            "batch/loss_pred": loss_pred.item(),
            "batch/loss_ratio": (loss_static / loss_dynamic).item(),
            "batch/weighted_static": (alpha * loss_static).item(),
            "batch/weighted_dynamic": (beta * loss_dynamic).item(),
            "batch/alpha": alpha,
            "batch/beta": beta,
            "batch/static_contribution": (alpha * loss_static / loss).item(),
            "batch/dynamic_contribution": (beta * loss_dynamic / loss).item(),
            "batch/mode": 2,
        }


class PlainClips(Dataset[Tensor]):
    """Training clips by number, normalised on the host: float32 [4, 3, H, W]."""

    def __init__(self, clips: Clips, hflip: float, generator: torch.Generator) -> None:
        self._clips = clips
        self._hflip = hflip
        self._generator = generator
        self._mean, self._std = (torch.from_numpy(a)[:, None, None] for a in (clips.mean, clips.std))

    def __len__(self) -> int:
        return len(self._clips.train)

    def __getitem__(self, number: int) -> Tensor:
        frames = self._clips.train.gather(np.array([number]))[0]
        flipped = torch.rand((), generator=self._generator) < self._hflip
        clip = []
        for frame in frames:
            image = torch.from_numpy(frame).permute(2, 0, 1).contiguous().float().div(255)
            if flipped:
                image = image.flip(-1)
            clip.append((image - self._mean) / self._std)
        return torch.stack(clip)


class PlainMAE(nn.Module):
    """The network of `model`, weights copied, with the ancestors' forward pass. P = 3 * patch * patch, n visible."""

    def __init__(self, config: TrainConfig, model: JointTactileMAE) -> None:
        super().__init__()
        self._patch = patch = config.encoder.patch
        self._num_visible = config.num_patches - config.num_masked
        encoder = copy.deepcopy(model.encoder)
        assert encoder.positions.shape[0] == config.num_patches + encoder.num_prefix * encoder.embeds_prefix
        self.encoder = encoder  # of which forward is not used, only the parts
        project = model.embed.project
        tube = (TUBE_FRAMES, patch, patch)
        self.patch_embed = nn.Conv3d(3, encoder.width, tube, stride=tube)
        self.patch_embed.bias = copy.deepcopy(project.bias)
        with torch.no_grad():  # ours takes pixels as (frame, row, column, channel)
            weight = project.weight.unflatten(1, (*tube, 3)).permute(0, 4, 1, 2, 3)
            self.patch_embed.weight.copy_(weight)
        self.decoder_embed = copy.deepcopy(model.to_decoder)
        self.mask_token = copy.deepcopy(model.mask_token)
        self.decoder_pos_embed: Tensor
        self.register_buffer("decoder_pos_embed", model.decoder_positions.clone()[None])
        self.decoder_blocks = copy.deepcopy(model.decoder_blocks)
        self.decoder_norm = copy.deepcopy(model.decoder_norm)
        self.static_head = copy.deepcopy(model.static_head)
        self.dynamic_head = copy.deepcopy(model.dynamic_head)

    def forward(self, clips: Tensor, static_order: Tensor, dynamic_order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised clips [B, 4, 3, H, W], orders [B, N] -> losses static, recon, pred."""
        frame = clips[:, :1]
        latent, mask, restore = self.forward_encoder(frame.repeat(1, TUBE_FRAMES, 1, 1, 1), static_order)
        static = self.static_head(self.forward_decoder(latent, restore))
        loss_static = _masked_mse(static, self.patchify(frame), mask)

        tube, last = clips[:, :TUBE_FRAMES], clips[:, TUBE_FRAMES:]
        latent, mask, restore = self.forward_encoder(tube, dynamic_order)
        dynamic = self.dynamic_head(self.forward_decoder(latent, restore))
        pixels = 3 * self._patch**2
        recon, pred = dynamic[..., : TUBE_FRAMES * pixels], dynamic[..., TUBE_FRAMES * pixels :]
        loss_recon = _masked_mse(recon, self.patchify(tube), mask)
        loss_pred = ((pred.float() - self.patchify(last)) ** 2).mean()
        return loss_static, loss_recon, loss_pred

    def patchify(self, clips: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, N, T * P], pixels of a patch as (frame, row, column, channel)."""
        b, t, c, h, w = clips.shape
        p = self._patch
        x = clips.reshape(b, t, c, h // p, p, w // p, p)
        x = torch.einsum("btchpwq->bhwtpqc", x)
        return x.reshape(b, (h // p) * (w // p), t * p * p * c)

    def random_masking(self, x: Tensor, ids_shuffle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, D], order [B, N] -> visible tokens [B, n, D], mask [B, N] (1 = removed), inverse order [B, N]."""
        b, n, d = x.shape
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        ids_keep = ids_shuffle[:, : self._num_visible]
        visible = torch.gather(x, dim=1, index=ids_keep.unsqueeze(-1).repeat(1, 1, d))
        mask = torch.ones([b, n], device=x.device)
        mask[:, : self._num_visible] = 0
        return visible, torch.gather(mask, dim=1, index=ids_restore), ids_restore

    def forward_encoder(self, tube: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tube [B, 3, 3, H, W] -> encoded visible tokens [B, n, D], mask [B, N], inverse order [B, N]."""
        encoder = self.encoder
        x = self.patch_embed(tube.transpose(1, 2)).flatten(2).transpose(1, 2)
        num_embedded = encoder.num_prefix if encoder.embeds_prefix else 0
        x = x + encoder.positions[num_embedded:]
        x, mask, restore = self.random_masking(x, order)
        if encoder.prefix is not None:
            prefix = encoder.prefix + encoder.positions[:num_embedded] if encoder.embeds_prefix else encoder.prefix
            x = torch.cat((prefix.expand(len(x), -1, -1), x), dim=1)
        x = encoder.norm_pre(x)
        for block in encoder.blocks:
            x = block(x)
        return encoder.norm(x)[:, encoder.num_prefix :], mask, restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Encoded visible tokens [B, n, D] -> decoded tokens [B, N, D_d] in the order of the image."""
        x = self.decoder_embed(latent)
        b, n, d = x.shape
        mask_tokens = self.mask_token.repeat(b, ids_restore.shape[1] - n, 1)
        x = torch.cat([x, mask_tokens.to(x.dtype)], dim=1)
        x = torch.gather(x, dim=1, index=ids_restore.unsqueeze(-1).repeat(1, 1, d))
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)


def _endless(count: int, generator: torch.Generator) -> Iterator[int]:
    """Numbers below `count`, shuffled anew in each round."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the patches where mask [B, N] is 1; prediction and target [B, N, K]."""
    loss = ((prediction.float() - target) ** 2).mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """As ours: no decay of vectors, tokens and positions."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        bare = parameter.ndim == 1 or name.endswith(("mask_token", "prefix", "positions"))
        (rest if bare else decay).append(parameter)
    return [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": weight_decay}]
