"""DataConfig: where clips come from and how they are cut. Frozen, unknown keys refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.fields import Config, Positive, PositiveInt, Probability

CLIP_FRAMES = 4  # a clip is 4 frames: frame 1 static, 1-3 reconstructed, 4 predicted (metrics.md, Terms)
TUBE_FRAMES = 3  # frames that the encoder sees

Kind = Literal["synthetic", "frames", "videos", "tacquad", "touch_and_go", "ycb_slide", "mixture"]


class SyntheticConfig(Config):
    """The procedural GelSight (model/data/synthetic.py)."""

    sequences: PositiveInt = 96
    """Presses to make; each has its own indenter, motion and light."""
    frames: Annotated[int, Field(ge=CLIP_FRAMES)] = 16
    """Frames of a press: approach, hold, slide or twist, release."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the presses; not the seed of the training."""


class SourceConfig(Config):
    """One source of sequences, and how clips are cut from them."""

    source: Kind = "synthetic"
    """`frames`: root/<sequence>/<index>.{jpg,png}; `videos`: root/**/*.{avi,mp4,...}; `synthetic`: made here;
    `tacquad`, `touch_and_go`, `ycb_slide`: those datasets as they are published (model/data/layouts.py);
    `mixture`: the sources in `parts` together."""
    root: Path | None = None
    """Folder of the frames or videos."""
    sensor: str | None = None
    """Name of the sensor; the layout's own (TacQuad: gelsight, digit, duragel) or `default` if absent."""
    labels: Path | None = None
    """CSV file of labels: a header, a column `sequence` (optionally `frame`), a column per label."""
    frame_stride: PositiveInt = 1
    """Distance between the frames of a clip. Prediction gets harder with it, so loss_ratio depends on it."""
    clip_step: PositiveInt = 1
    """Distance between the starts of neighbouring clips of a sequence."""
    group_pattern: str | None = None
    """Regular expression; sequences whose match (group 1, or all of it) is equal stay on one side of the split.
    `^(.+?)__` splits the GelSight Mini frames by object."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @field_validator("root", "labels")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return absolute(path)

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
        if self.source not in ("synthetic", "mixture") and self.root is None:
            what = self.source if self.source in ("frames", "videos") else "data set"
            raise ValueError(f"source = {self.source!r} needs root, the folder that holds the {what}")
        return self


class PartConfig(SourceConfig):
    """A source that is part of a mixture."""

    name: str | None = None
    """Begins the names of its sequences; the source's kind (and a number where two are alike) if absent."""
    weight: Positive | None = None
    """Its share of the clips of an epoch, relative to the other parts'; without weights every clip counts alike."""

    @field_validator("name")
    @classmethod
    def _begins_names(cls, name: str | None) -> str | None:
        if name is not None and re.fullmatch(r"[\w.+-]+", name) is None:
            raise ValueError(f"{name!r} begins the names of sequences; use letters, digits and any of _ . + -")
        return name

    @model_validator(mode="after")
    def _no_mixture(self) -> Self:
        if self.source == "mixture":
            raise ValueError("source = 'mixture' within a mixture; list the sources in one data.parts")
        return self


class DataConfig(SourceConfig):
    """Where clips come from and how they are cut."""

    parts: tuple[PartConfig, ...] = ()
    """The sources of a mixture."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 48
    """Side in pixels, or [height, width]; frames are resized to it once, when the store is built."""
    clips_per_epoch: PositiveInt | None = None
    """Clips drawn for each epoch, without replacement (of a weighted part all, before any comes again); as many as
    there are training clips if absent."""
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sequences (or groups) held out for evaluation."""
    eval_clips: PositiveInt = 128
    """At most so many held-out clips, evenly spread, are used by the fixed evaluation protocol."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split; the same for all trials, so that their evaluations compare."""
    hflip: Probability = 0.5
    """Chance of a left-right flip, alike for the 4 frames of a clip."""
    vflip: Probability = 0.0
    """Chance of an up-down flip, alike for the 4 frames of a clip."""
    store_dir: Path | None = None
    """Where decoded frames are kept; the user's cache folder if absent."""

    @model_validator(mode="after")
    def _mixture_has_parts(self) -> Self:
        if self.source != "mixture":
            if self.parts:
                raise ValueError(f"parts are given, but source = {self.source!r}; set source to 'mixture'")
            return self
        if not self.parts:
            raise ValueError("source = 'mixture' needs parts, the list of its sources (at least one)")
        fields = {name: info.default for name, info in SourceConfig.model_fields.items() if name != "source"}
        given = [name for name, default in fields.items() if getattr(self, name) != default]
        if given:
            raise ValueError(
                f"{', '.join(given)} given beside source = 'mixture', which has no frames of its own; "
                "put it into those of the parts that it is for"
            )
        weights = [part.weight for part in self.parts]
        if None in weights and any(weights):
            raise ValueError(
                f"weights of the parts are {weights}; give each part a weight, or none: without them every clip counts "
                "alike"
            )
        names = self.part_names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two parts have the name {twice!r}; give each a name of its own")
        return self

    @property
    def part_names(self) -> tuple[str, ...]:
        """Of each part its name, else its kind: `frames`, `frames_2`, ..."""
        kinds = [part.source for part in self.parts]
        numbers = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
        return tuple(
            part.name or (part.source if number == 1 else f"{part.source}_{number}")
            for part, number in zip(self.parts, numbers, strict=True)
        )

    @property
    def height_width(self) -> tuple[int, int]:
        """Image size as (height, width) in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @field_validator("store_dir")
    @classmethod
    def _store_absolute(cls, path: Path | None) -> Path | None:
        return absolute(path)


def absolute(path: Path | None) -> Path | None:
    """An absolute path: Ray workers run in another folder. ".." goes, symbolic links stay."""
    return None if path is None else Path(os.path.abspath(path.expanduser()))  # noqa: PTH100
