"""Clips by number -> normalised patches on the device, augmented or not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import TrainConfig
from model.data.clips import Clips, ClipSet
from model.losses import patchify
from model.plan import check_sensors


class Batch(NamedTuple):
    """patches [B, N, 4, P], normalised; sensors [B] int64, places in encoder.sensors, None where there are none."""

    patches: Tensor
    sensors: Tensor | None = None


class Batches:
    """Reads the clips of a run.

    Attributes:
        mean_patches: the training-set mean frame as normalised patches [N, P].
        on_batch: is called before each batch of training, evaluation or probe: a sign that the run is alive.

    Raises:
        ConfigError: encoder.sensors does not name a sensor of the data.
    """

    def __init__(self, config: TrainConfig, clips: Clips, device: torch.device) -> None:
        self.on_batch: Callable[[], None] = lambda: None
        self._config = config
        self._clips = clips
        self._device = device
        std, mean = (torch.from_numpy(a).repeat(config.encoder.patch**2) for a in (clips.std, clips.mean))
        # uint8 -> normalised float in one multiply-add: x / 255 -> (x - mean) / std
        self._scale, self._shift = (1 / (255 * std)).to(device), (-mean / std).to(device)
        mean_frame = torch.from_numpy(clips.mean_frame).to(device)[None, None] * 255
        self.mean_patches = self._normalised(mean_frame)[0, :, 0]
        self._sensors = _places(config.encoder.sensors, clips.sensors) if config.encoder.sensors else None
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None
        # one thread reads the next micro-batch while the GPU computes; a CPU would only share its cores with it
        self._reader = ThreadPoolExecutor(1, "read-ahead") if device.type == "cuda" else None

    def train(self, numbers: Tensor, generator: torch.Generator, rows: slice, unknown: float = 0.0) -> Batch:
        """Training clips, each with its 4 frames flipped alike.

        Args:
            numbers: clips of the whole micro-batch, [B].
            generator: draws for the whole micro-batch, so that every process of a run draws the same.
            rows: the part of it that is wanted here.
            unknown: chance that a clip's sensor is hidden.
        """
        self.on_batch()
        chances = torch.rand(2, len(numbers), generator=generator, device=self._device)[:, rows]
        hidden = None
        if self._sensors is not None:
            hidden = torch.rand(len(numbers), generator=generator, device=self._device)[rows] < unknown
        numbers = numbers[rows]
        frames = self._training_frames(numbers)
        for chance, draw, axis in ((self._config.data.hflip, chances[0], 3), (self._config.data.vflip, chances[1], 2)):
            if chance > 0:
                frames = self._flipped(frames, draw < chance, axis)
        sensors = self._sensors_of(self._clips.train, numbers)
        if sensors is not None and hidden is not None:
            sensors = sensors.masked_fill(hidden, len(self._config.encoder.sensors))
        return Batch(self._normalised(frames), sensors)

    def read_ahead(self, numbers: Tensor) -> None:
        """Start reading the clips that `train` will be asked for next; does nothing on a CPU."""
        if self._reader is not None:
            self._ahead = numbers, self._reader.submit(self._read, self._clips.train, numbers)

    def plain(self, numbers: Tensor) -> Batch:
        """Training clips as they are."""
        return self._as_they_are(self._clips.train, numbers)

    def held_out(self, numbers: Tensor) -> Batch:
        """Held-out clips as they are."""
        return self._as_they_are(self._clips.held_out, numbers)

    def _as_they_are(self, clips: ClipSet, numbers: Tensor) -> Batch:
        self.on_batch()
        return Batch(self._normalised(self._moved(self._read(clips, numbers))), self._sensors_of(clips, numbers))

    def _training_frames(self, numbers: Tensor) -> Tensor:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and torch.equal(ahead[0], numbers):
            return self._moved(ahead[1].result())
        return self._moved(self._read(self._clips.train, numbers))

    def _read(self, clips: ClipSet, numbers: Tensor) -> Tensor:
        """uint8 [B, 4, H, W, 3] on the host, in pinned memory where it goes to a GPU."""
        return self._pinned(torch.from_numpy(clips.gather(numbers.numpy())))

    def _pinned(self, values: Tensor) -> Tensor:
        """In pinned memory where they go to a GPU: a copy from anywhere else waits for all that the GPU has to do."""
        return values.pin_memory() if self._device.type == "cuda" else values

    def _moved(self, frames: Tensor) -> Tensor:
        return frames.to(self._device, non_blocking=True)

    def _flipped(self, frames: Tensor, chosen: Tensor, axis: int) -> Tensor:
        """`frames` with the chosen clips flipped along an axis."""
        if self._device.type != "cpu":  # a GPU would have to tell the host how many there are
            return torch.where(chosen[:, None, None, None, None], frames.flip(axis), frames)
        places = chosen.nonzero().squeeze(1)
        return frames.index_copy_(0, places, frames[places].flip(axis))

    def _sensors_of(self, clips: ClipSet, numbers: Tensor) -> Tensor | None:
        if self._sensors is None:
            return None
        return self._moved(self._pinned(self._sensors[torch.from_numpy(clips.sensor_of(numbers.numpy()))]))

    def _normalised(self, frames: Tensor) -> Tensor:
        patches = patchify(frames, self._config.encoder.patch).to(torch.float32, copy=True)
        return patches.mul_(self._scale).add_(self._shift)


def _places(known: tuple[str, ...], there: tuple[str, ...]) -> Tensor:
    """For each sensor of the data its place in encoder.sensors."""
    check_sensors(known, there)
    return torch.tensor([known.index(name) for name in there])
