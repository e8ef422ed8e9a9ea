"""The trained encoder on whole frames: uint8 or float images of any size in, features out.

encoder = load_encoder(Path("runs/long"))  # or a checkpoint, or an exported file
features = encoder.encode(frames)  # uint8 [B, H, W, 3] -> [B, D]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm import create_model, list_models
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoint import CheckpointError
from model.data.config import TUBE_FRAMES
from model.errors import ConfigError, DataError, guess, one_line
from model.export import UNKNOWN, Description, read_run
from model.losses import patchify
from model.mae import JointTactileMAE
from model.weight_files import METADATA

TIMM_ARGUMENTS = {
    *("model_name", "img_size", "patch_size", "in_chans", "reg_tokens"),
    *("num_classes", "global_pool", "pool_include_prefix", "fc_norm"),
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "class_token"),
}
BRIGHTEST = 1.01  # of float frames; a resized image may overshoot 1 a little


class FrameEncoder(nn.Module):
    """Features of frames without masks; resizes and normalises them as in training. In evaluation mode.

    Attributes:
        size: (height, width) that the encoder was trained at; other frames are resized to it.
        sensors: names that `encode` takes; empty for an exported file, which has chosen.
    """

    def __init__(
        self,
        network: JointTactileMAE | VisionTransformer,
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        patch: int,
        sensors: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.sensors = sensors
        self._patch = patch
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("_std", torch.tensor(std).reshape(3, 1, 1))
        self.eval()

    @torch.no_grad()
    def encode(self, frames: Tensor | NDArray[Any], sensor: str | None = None) -> Tensor:
        """Features of frames or clips, float32 [B, D].

        Args:
            frames: a tensor or array of frames of any size, uint8 [B, H, W, 3] or [B, T, H, W, 3], or float in 0-1
                [B, 3, H, W] or [B, T, 3, H, W]. A frame goes through the static embedding; of a clip of 3 or more,
                frames 1-3 go through the tube's.
            sensor: one of `sensors`; the unknown one if absent.

        Raises:
            DataError: frames of another shape, type or range, or not what an exported file was made for.
            ConfigError: a sensor that the encoder does not know.
        """
        images = self._images(torch.as_tensor(frames))
        if isinstance(self.network, JointTactileMAE):
            patches = patchify(images.permute(0, 1, 3, 4, 2), self._patch)
            return self.network.encode(patches, self._places(sensor, len(images)))
        if sensor is not None:
            raise ConfigError(f"sensor {sensor!r}: an exported encoder has chosen its sensor; use the run's checkpoint")
        wanted = self.network.in_chans // 3
        if (wanted == 1) != (images.shape[1] == 1):
            raise DataError(
                f"{'single frames' if images.shape[1] == 1 else 'clips'}, but this export takes the other; export with "
                "--frames image or tube, or use the run's checkpoint, which takes both"
            )
        features: Tensor = self.network(images[:, :wanted].flatten(1, 2))
        return features

    def _images(self, frames: Tensor) -> Tensor:
        """Normalised [B, T, 3, H, W] of the trained size, T = 1 for single frames."""
        channels_at = -1 if frames.dtype == torch.uint8 else -3
        if frames.ndim not in (4, 5) or frames.shape[channels_at] != 3 or frames.shape[1:].numel() == 0:
            raise DataError(
                f"frames {list(frames.shape)} of {frames.dtype}; give uint8 [B, H, W, 3] or float [B, 3, H, W], "
                "or clips with the frames as a second dimension"
            )
        clips = frames if frames.ndim == 5 else frames[:, None]
        if 1 < clips.shape[1] < TUBE_FRAMES:
            raise DataError(f"clips of {clips.shape[1]} frames; give single frames, or {TUBE_FRAMES} or more")
        if frames.dtype == torch.uint8:
            clips = clips.movedim(-1, -3).to(self._mean.device).float() / 255
        elif not frames.is_floating_point():
            raise DataError(f"frames of {frames.dtype}; give uint8, or float in 0-1")
        else:
            clips = clips.to(self._mean.device).float()
            if len(clips) and not bool((clips.amin() >= 1 - BRIGHTEST) & (clips.amax() <= BRIGHTEST)):
                raise DataError(
                    f"float frames of {clips.amin():.3g} to {clips.amax():.3g}; give them in 0-1, not normalised, "
                    "or as uint8"
                )
        if clips.shape[-2:] != self.size:
            images = F.interpolate(clips.flatten(0, 1), self.size, mode="bilinear", antialias=True)
            clips = images.unflatten(0, clips.shape[:2])
        return (clips - self._mean) / self._std

    def _places(self, sensor: str | None, batch: int) -> Tensor | None:
        if sensor in (None, UNKNOWN):
            return None
        if sensor not in self.sensors:
            raise ConfigError(
                f"sensor {sensor!r}: this encoder does not know it;{guess(str(sensor), self.sensors)} "
                f"Known: {', '.join((*self.sensors, UNKNOWN))}"
            )
        return torch.full((batch,), self.sensors.index(str(sensor)), device=self._mean.device)


def load_encoder(path: Path | str) -> FrameEncoder:
    """The encoder of an exported file (.safetensors), of a training checkpoint or of a run's folder, on the CPU.

    Raises:
        CheckpointError: there is none, it is damaged, or not ours.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _exported(path)
    run = read_run(path)
    encoder = run.config.encoder
    return FrameEncoder(run.model, run.config.data.height_width, run.mean, run.std, encoder.patch, encoder.sensors)


def _exported(path: Path) -> FrameEncoder:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
        described = Description(**json.loads(metadata[METADATA]))
        arguments = described.timm
        # the file decides what is built, so it may only name what an export names: nothing is fetched from elsewhere
        if arguments.keys() - TIMM_ARGUMENTS or arguments["model_name"].partition(".")[0] not in list_models():
            raise ValueError(f"it describes no plain ViT: {arguments}")
        vit = create_model(**arguments)
        vit.load_state_dict(state)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not an encoder that model.export wrote ({type(error).__name__}: {one_line(error)}); "
            "export the run again"
        ) from None
    size = (arguments["img_size"][0], arguments["img_size"][1])
    return FrameEncoder(vit, size, described.mean, described.std, arguments["patch_size"])
