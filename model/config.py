"""TrainConfig: everything that decides what a training run computes. Frozen, unknown keys refused.

The config is the whole truth: two runs with equal configs on the same data give equal rows (on a CPU, to the last bit).
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CLIP_FRAMES = 4  # a clip is 4 frames: frame 1 static, 1-3 reconstructed, 4 predicted (metrics.md, Terms)
TUBE_FRAMES = 3  # frames that the encoder sees
BASE_BATCH = 256  # base_lr is given for this effective batch (linear scaling rule, Goyal et al. 2017)

PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SyntheticConfig(_Config):
    """The procedural GelSight (model/data/synthetic.py)."""

    sequences: PositiveInt = 96
    """Presses to make; each has its own indenter, motion and light."""
    frames: Annotated[int, Field(ge=CLIP_FRAMES)] = 16
    """Frames of a press: approach, hold, slide or twist, release."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the presses; not the seed of the training."""


class DataConfig(_Config):
    """Where clips come from and how they are cut."""

    source: Literal["synthetic", "frames", "videos"] = "synthetic"
    """`frames`: root/<sequence>/<index>.{jpg,png}; `videos`: root/**/*.{avi,mp4,...}; `synthetic`: made here."""
    root: Path | None = None
    """Folder of the frames or videos."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 48
    """Side in pixels, or [height, width]; frames are resized to it once, when the store is built."""
    frame_stride: PositiveInt = 1
    """Distance between the frames of a clip. Prediction gets harder with it, so loss_ratio depends on it."""
    clip_step: PositiveInt = 1
    """Distance between the starts of neighbouring clips of a sequence."""
    clips_per_epoch: PositiveInt | None = None
    """Clips drawn (without replacement) for each epoch; all training clips if absent."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sequences (or groups) held out for evaluation."""
    eval_clips: PositiveInt = 128
    """At most so many held-out clips, evenly spread, are used by the fixed evaluation protocol."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split; the same for all trials, so that their evaluations compare."""
    group_pattern: str | None = None
    """Regular expression; sequences whose match (group 1, or all of it) is equal stay on one side of the split.
    `^(.+?)__` splits the GelSight Mini frames by object."""
    hflip: Probability = 0.5
    """Chance of a left-right flip, alike for the 4 frames of a clip."""
    vflip: Probability = 0.0
    """Chance of an up-down flip, alike for the 4 frames of a clip."""
    store_dir: Path | None = None
    """Where decoded frames are kept; the user's cache folder if absent."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @property
    def height_width(self) -> tuple[int, int]:
        """Image size as (height, width) in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @field_validator("root", "store_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # Ray workers run in another folder; ".." goes, symbolic links stay
        return None if path is None else Path(os.path.abspath(path.expanduser()))  # noqa: PTH100

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _root_fits_source(self) -> Self:
        if self.source == "synthetic" and self.root is not None:
            raise ValueError(
                f"root = {str(self.root)!r} is given, but source = 'synthetic' reads no files; "
                "set source to 'frames' (folders of images) or 'videos', or leave root out"
            )
        if self.source != "synthetic" and self.root is None:
            raise ValueError(f"source = {self.source!r} needs root, the folder that holds the {self.source}")
        return self


class EncoderConfig(_Config):
    """The ViT encoder: a timm name, or width, depth and heads."""

    name: str | None = None
    """A timm Vision Transformer, for example vit_base_patch16_224, which then decides width, depth and heads."""
    patch_size: PositiveInt | None = None
    """Side of a patch in pixels; that of the timm name, else 8, if absent."""
    width: PositiveInt = 128
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    mlp_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name is None:
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


class DecoderConfig(_Config):
    """The light decoder, shared by both branches (He et al. 2021, section 3)."""

    width: PositiveInt = 96
    depth: PositiveInt = 1
    heads: PositiveInt = 4

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_width(self.width, self.heads)
        if self.width % 4:
            raise ValueError(f"width = {self.width}; must be a multiple of 4 (sine-cosine position embedding)")
        return self


def _check_width(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width = {width} is not a multiple of heads = {heads}; every head needs the same width")


class TrainConfig(_Config):
    """One training run of the joint tactile MAE."""

    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()

    mask_ratio: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.75
    """Share of masked patches, rounded to whole patches (see `num_masked`); evaluation always uses 0.75."""
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Weight of the static loss."""
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Weight of the dynamic loss; 1 - alpha if absent (under Adam only alpha : beta matters)."""

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 32
    """Clips of a micro-batch."""
    accum_iter: PositiveInt = 1
    """Micro-batches of a gradient update."""
    base_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Learning rate for an effective batch of 256; the peak is base_lr * batch_size * accum_iter / 256."""
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Where the cosine ends."""
    warmup_epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    """Of matrices; biases, norms and embeddings have none."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """AdamW (Loshchilov & Hutter 2019); 0.95 after He et al. 2021."""
    clip_grad: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 1.0
    """Largest gradient norm; null switches clipping off."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of weights, clip order, masks and flips. Equal for all trials of a sweep unless swept: a fairer comparison."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast; auto is bf16 on a GPU that has it, else fp32."""

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
        if self.weights == (0.0, 0.0):
            raise ValueError("alpha = 0 and beta = 0: there is nothing to minimise; give one of them a weight")
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

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.base_lr * self.batch_size * self.accum_iter / BASE_BATCH


def round_to_patches(ratio: float, num_patches: int) -> int:
    """Whole patches nearest to a share of them; halves go up (Python's round would go to the even number)."""
    return math.floor(ratio * num_patches + 0.5)
