"""TrainConfig: everything that decides what a training run computes. Frozen, unknown keys refused.

The config is the whole truth: two runs with equal configs on the same data give equal rows (on a CPU, to the last bit).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.data.config import DataConfig, absolute
from model.errors import ConfigError
from model.fields import Config, NotNegative, Positive, PositiveInt, Probability, Share

BASE_BATCH = 256  # base_lr is given for this effective batch (linear scaling rule, Goyal et al. 2017)


class EncoderConfig(Config):
    """The ViT encoder: a timm name, or width, depth and heads."""

    name: str | None = None
    """A timm Vision Transformer, for example vit_base_patch16_224, which then decides width, depth and heads."""
    patch_size: PositiveInt | None = None
    """Side of a patch in pixels; that of the timm name, else 8, if absent."""
    width: PositiveInt = 128
    """Numbers of a token."""
    depth: PositiveInt = 4
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads of a block; they divide width."""
    mlp_ratio: Positive = 4.0
    """Hidden width of a block's MLP, as a multiple of width."""
    pretrained: bool | Path = False
    """Start from weights: true for those of the timm name (its tag chooses, `vit_base_patch16_224.mae`; OpenAI's CLIP
    is `vit_base_patch16_clip_quickgelu_224.openai`), or a file: safetensors or a checkpoint. The patch embedding is
    inflated over the tube, positions are resampled."""
    static_embed: Literal["tube", "frame"] = "tube"
    """The static branch goes through the tube's embedding (frame 1 repeated), or through a 2D embedding of its own."""
    sensors: tuple[str, ...] = ()
    """Sensors that have tokens of their own (Feng et al. 2025, AnyTouch); none if empty."""
    sensor_tokens: PositiveInt = 5
    """Tokens of a sensor."""
    unknown_sensor: tuple[Probability, Probability] = (0.0, 0.75)
    """Chance that a training clip gets the tokens of the unknown sensor, at the first and at the last update; it rises
    linearly, so that the encoder also learns to do without."""
    grad_checkpointing: bool = False
    """Compute the activations of encoder blocks again in the backward pass: less memory, about a third slower."""

    @field_validator("pretrained")
    @classmethod
    def _absolute(cls, pretrained: bool | Path) -> bool | Path:
        return pretrained if isinstance(pretrained, bool) else (absolute(pretrained) or False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sensors)) < len(self.sensors):
            raise ValueError(f"sensors = {list(self.sensors)}: one is named twice; name each once")
        if self.name is None:
            if self.pretrained is True:
                raise ValueError("pretrained = true needs name, the timm model whose weights to take")
            _check_width(self.width, self.heads)
            if self.width % 4:
                raise ValueError(f"width = {self.width}; must be a multiple of 4 (sine-cosine position embedding)")
            return self
        given = sorted(self.model_fields_set & {"width", "depth", "heads", "mlp_ratio"})
        changed = [f for f in given if getattr(self, f) != type(self).model_fields[f].default]
        if changed:
            raise ValueError(
                f"name = {self.name!r} fixes {', '.join(changed)}; give either the timm name or {', '.join(changed)}"
            )
        if self.patch_size is None and not re.search(r"patch\d+", self.name):
            raise ValueError(f"name = {self.name!r} does not tell its patch size; give patch_size")
        return self

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        if self.patch_size is not None:
            return self.patch_size
        found = re.search(r"patch(\d+)", self.name or "")
        return int(found.group(1)) if found else 8


class DecoderConfig(Config):
    """The light decoder, shared by both branches (He et al. 2021, section 3)."""

    width: PositiveInt = 96
    """Numbers of a token."""
    depth: PositiveInt = 1
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads of a block; they divide width."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_width(self.width, self.heads)
        if self.width % 4:
            raise ValueError(f"width = {self.width}; must be a multiple of 4 (sine-cosine position embedding)")
        return self


class ProbeConfig(Config):
    """A classifier on the frozen encoder, to see what was learnt (`probe/...`)."""

    label: str | None = None
    """Label of the clips to tell apart: indenter, motion or slip of the procedural ones, or a column of data.labels;
    no probe if absent."""
    every_epochs: PositiveInt | None = None
    """Probe after every so many epochs too; only after the last one if absent."""
    attentive: bool = True
    """Also train an attentive probe (one query attends to the patch tokens) beside the linear one."""
    clips: PositiveInt = 1024
    """At most so many training clips, evenly spread, are used."""


def _check_width(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width = {width} is not a multiple of heads = {heads}; every head needs the same width")


class TrainConfig(Config):
    """One training run of the joint tactile MAE."""

    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    probe: ProbeConfig = ProbeConfig()

    mode: Literal["joint", "static", "dynamic", "alternating"] = "joint"
    """Which losses an update minimises: both, one, or (the baseline) static and dynamic in turn."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.75
    """Share of masked patches, rounded to whole patches (see `num_masked`); evaluation always uses 0.75."""
    mask_kind: Literal["random", "block"] = "random"
    """Masked patches lie anywhere, or form one rectangle (as nearly as their number allows). Either way the mask is the
    same in the frames of a tube. Evaluation always masks at random."""
    norm_pix_loss: bool = False
    """Targets are patches normalised by their own mean and variance (He et al. 2021). Changes every loss's scale."""
    alpha: NotNegative = 0.5
    """Weight of the static loss."""
    beta: NotNegative | None = None
    """Weight of the dynamic loss; 1 - alpha if absent (under Adam only alpha : beta matters)."""
    weighting: Literal["fixed", "uncertainty", "famo"] = "fixed"
    """alpha and beta stay as given, or are only the start and then move (model/weighting.py)."""

    epochs: PositiveInt = 8
    """Passes over the training clips."""
    batch_size: PositiveInt = 32
    """Clips of a micro-batch, over all processes of the run."""
    accum_iter: PositiveInt = 1
    """Micro-batches of a gradient update."""
    base_lr: Positive = 1e-3
    """Learning rate for an effective batch of 256; the peak is base_lr * batch_size * accum_iter / 256."""
    min_lr: NotNegative = 0.0
    """Where the cosine ends."""
    warmup_epochs: NotNegative = 1.0
    """Epochs, or a part of one, in which the learning rate rises from 0 to its peak."""
    weight_decay: NotNegative = 0.05
    """Of matrices; biases, norms and embeddings have none."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW (Loshchilov & Hutter 2019); 0.95 after He et al. 2021."""
    clip_grad: Positive | None = 1.0
    """Largest gradient norm; null switches clipping off."""
    layer_decay: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """Learning rate of each encoder block as a share of the next one's; for training on from pretrained weights."""
    ema_decay: Share | None = None
    """Keep an exponential moving average of the weights; evaluation, probe and export then use it."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of weights, clip order, masks and flips. Equal for all trials of a sweep unless swept: a fairer comparison."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the training runs; auto: the GPU that is there, else the CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 are autocast, fp16 with a loss scaler; auto is bf16 on a GPU that has it, else fp32."""
    compile: bool = False
    """torch.compile of the model: slow to start, faster after. lr, alpha and beta may change without a recompile."""
    pictures: Annotated[int, Field(ge=0)] = 4
    """Held-out clips of which a reconstruction picture is made at the end; 0 for none."""

    @model_validator(mode="before")
    @classmethod
    def _no_lr(cls, content: Any) -> Any:
        if isinstance(content, dict) and "lr" in content:
            raise ValueError(
                f"unknown key 'lr' = {content['lr']!r}; give base_lr, the rate for an effective batch of {BASE_BATCH}: "
                "lr = base_lr * batch_size * accum_iter / 256"
            )
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.beta is None and self.alpha > 1:
            raise ValueError(
                f"alpha = {self.alpha} and no beta: beta = 1 - alpha would be negative; "
                "keep alpha within 0-1 or give beta"
            )
        self._check_mode()
        height, width = self.data.height_width
        patch = self.encoder.patch
        if height % patch or width % patch:
            fits = f"{max(1, round(height / patch)) * patch} x {max(1, round(width / patch)) * patch}"
            raise ValueError(
                f"data.image_size = {height} x {width} is not divided by the patch size {patch}; "
                f"use {fits}, or another encoder.patch_size"
            )
        if self.num_patches < 2:
            raise ValueError(f"one patch of {patch} pixels fills the image; use a larger image or a smaller patch")
        if not 1 <= self.num_masked < self.num_patches:
            left = "no visible" if self.num_masked >= self.num_patches else "no masked"
            raise ValueError(
                f"mask_ratio = {self.mask_ratio} of {self.num_patches} patches leaves {left} patch; must be between "
                f"{1 / self.num_patches:.3g} and {1 - 1 / self.num_patches:.3g}"
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs} is longer than epochs = {self.epochs}")
        if self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr = {self.min_lr} is above the peak learning rate {self.peak_lr:.3g} (see base_lr)")
        return self

    def _check_mode(self) -> None:
        alpha, beta = self.weights
        if alpha == 0 and beta == 0:
            raise ValueError("alpha = 0 and beta = 0: there is nothing to minimise; give one of them a weight")
        for used, name in ((("static", "alternating"), "alpha"), (("dynamic", "alternating"), "beta")):
            if self.mode in used and {"alpha": alpha, "beta": beta}[name] == 0:
                raise ValueError(
                    f"mode = {self.mode!r}, but {name} = 0: such an update would minimise nothing; give {name} a weight"
                )
        if self.weighting != "fixed":
            if self.mode != "joint":
                raise ValueError(
                    f"weighting = {self.weighting!r} balances two losses, but mode = {self.mode!r} computes one an "
                    "update; use mode joint, or weighting fixed"
                )
            if not alpha or not beta:
                raise ValueError(
                    f"weighting = {self.weighting!r} starts from alpha = {alpha:g} and beta = {beta:g}; "
                    "both must be above 0"
                )

    @property
    def weights(self) -> tuple[float, float]:
        """(alpha, beta) with beta filled in."""
        return self.alpha, (1.0 - self.alpha if self.beta is None else self.beta)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per (column, row)."""
        height, width = self.data.height_width
        return height // self.encoder.patch, width // self.encoder.patch

    @property
    def num_patches(self) -> int:
        """Patches of a frame, N."""
        return math.prod(self.grid)

    @property
    def num_masked(self) -> int:
        """Masked patches of a frame in training: mask_ratio rounded to whole patches."""
        return round_to_patches(self.mask_ratio, self.num_patches)

    @property
    def effective_mask_ratio(self) -> float:
        """The share that is really masked."""
        return self.num_masked / self.num_patches

    def batch_share(self, processes: int) -> int:
        """Clips of a micro-batch for each process of the run. Raises ConfigError where they do not come out even."""
        share, left = divmod(self.batch_size, processes)
        if left:
            fits = [str(count * processes) for count in (share, share + 1) if count]
            raise ConfigError(
                f"batch_size = {self.batch_size} is the batch of all {processes} processes together and cannot be "
                f"divided among them evenly; use {' or '.join(fits)}"
            )
        return share

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.base_lr * self.batch_size * self.accum_iter / BASE_BATCH


def round_to_patches(ratio: float, num_patches: int) -> int:
    """Whole patches nearest to a share of them; halves go up (Python's round would go to the even number)."""
    return math.floor(ratio * num_patches + 0.5)
