"""Where frames come from: the procedural GelSight, folders of images, videos, published data sets, all behind `Source`.

A source lists its sequences and reads one as (position, frame) pairs. A frame that cannot be read is a `Fault` in its
place; wherever positions do not follow on, the sequence is split, so no clip spans a missing frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from model.data import synthetic
from model.data.base import Fault, Frame, HeightWidth, Source
from model.data.config import SourceConfig, SyntheticConfig
from model.data.images import FrameSource
from model.data.layouts import TacquadSource, TouchAndGoSource, YcbSlideSource
from model.data.videos import VideoSource

__all__ = ["Fault", "Frame", "FrameSource", "HeightWidth", "Source", "SyntheticSource", "VideoSource", "open_source"]

FROM_FILES: dict[str, Callable[[Path], Source]] = {
    "frames": FrameSource,
    "videos": VideoSource,
    "tacquad": TacquadSource,
    "touch_and_go": TouchAndGoSource,
    "ycb_slide": YcbSlideSource,
}


def open_source(data: SourceConfig) -> Source:
    """The source that a config names (a mixture has none: its parts do). Raises DataError where its files are missing
    or do not fit together; nothing is decoded yet."""
    if data.source == "synthetic":
        return SyntheticSource(data.synthetic)
    assert data.root is not None  # the config has checked it
    return FROM_FILES[data.source](data.root)


class SyntheticSource:
    """The presses of model/data/synthetic.py, one sequence each, with labels."""

    kind = "synthetic"
    unit = "presses"

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config
        self.num_units = config.sequences
        self.sequences = [f"press_{index:04d}" for index in range(config.sequences)]

    def identity(self) -> Any:
        return self._config.model_dump()

    def num_frames(self) -> int:
        return self._config.sequences * self._config.frames

    def labels(self, sequence: int) -> dict[str, Any]:
        press = synthetic.press_of(self._config, sequence)
        return {
            "indenter": press.indenter,
            "motion": press.motion,
            "depth_mm": [round(float(depth), 4) for depth in press.depth_mm],
            "slip": press.slip.tolist(),
        }

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        yield from enumerate(synthetic.make_press(self._config, sequence, size)[0])
