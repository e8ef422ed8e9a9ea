"""`python -m model.export RUN OUT.safetensors`: the trained encoder as a plain timm ViT, without masks or decoder.

    python -m model.export runs/long encoder.safetensors

    >>> vit = timm.create_model(**arguments)  # printed by the command, and kept in the file's metadata
    >>> vit.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))
    >>> vit((frames - mean) / std)  # [B, 3, H, W] in 0-1 -> [B, D], as JointTactileMAE.encode

A plain ViT takes images, so its 2D patch embedding is the static branch's. With `--frames tube` it takes 3 frames
stacked as 9 channels. Tokens of a sensor become register tokens (Darcet et al. 2024): they do the same thing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from safetensors.torch import save_file
from timm import create_model
from torch import Tensor

from model.checkpoint import LAST, CheckpointError, load_checkpoint
from model.config import TrainConfig
from model.configfile import validated
from model.data.config import TUBE_FRAMES
from model.errors import ConfigError, UserError, guess, one_line
from model.mae import JointTactileMAE
from model.weight_files import METADATA

OWN_VIT = "vit_base_patch16_224"  # the timm name under which a ViT of our own width, depth and heads is built
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Run:
    """A trained model (averaged weights where the run kept them), and how its frames were normalised, per channel."""

    model: JointTactileMAE
    config: TrainConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself, in its metadata.

    Attributes:
        timm: arguments of `timm.create_model`.
        frames: `image`, [B, 3, H, W], or `tube`, [B, 9, H, W]: frames 1-3 stacked as channels.
        mean, std: to normalise each of the 3 channels with, on the 0-1 scale.
        sensor: whose tokens are in it; None where the encoder has none.
    """

    timm: dict[str, Any]
    frames: Literal["image", "tube"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sensor: str | None


def read_run(path: Path) -> Run:
    """The model of a training checkpoint, or of a run's folder, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: there is none, it is damaged, or of another version of this program.
    """
    path = path / LAST if path.is_dir() else path
    state = load_checkpoint(path)
    if not state.keys() >= {"config", "model", "normalisation"}:
        raise CheckpointError(
            f"{path}: lacks the config, the model or the normalisation of its frames; "
            "give a checkpoint that this version of model.train wrote"
        )
    config = validated(TrainConfig, state["config"], str(path))
    model = JointTactileMAE(config).eval()
    try:
        model.load_state_dict(state["model"] if state.get("ema") is None else state["ema"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config ({one_line(error)})") from None
    return Run(model, config, tuple(state["normalisation"]["mean"]), tuple(state["normalisation"]["std"]))


@torch.no_grad()
def plain_vit(
    run: Run, frames: Literal["image", "tube"] = "image", sensor: str | None = None
) -> tuple[dict[str, Tensor], Description]:
    """State dict and description of the plain ViT that computes what `JointTactileMAE.encode` does.

    Args:
        frames: what it takes, see `Description`.
        sensor: whose tokens it gets, one of encoder.sensors or `unknown`, which is also meant by None.

    Raises:
        ConfigError: the encoder has no tokens of that sensor.
    """
    encoder, embed = run.model.encoder, run.model.embed
    sensor_tokens = _sensor_tokens(run, sensor)
    described = Description(
        timm=_timm_arguments(run.config, frames, 0 if sensor_tokens is None else sensor_tokens.shape[0]),
        frames=frames,
        mean=run.mean,
        std=run.std,
        sensor=None if sensor_tokens is None else sensor or UNKNOWN,
    )
    with torch.device("meta"):
        vit = create_model(**described.timm)

    patch = run.config.encoder.patch
    weight, bias = (embed.project.weight, embed.project.bias) if frames == "tube" else embed.single_map()
    kernel = weight.unflatten(1, (-1, patch, patch, 3)).permute(0, 1, 4, 2, 3).flatten(1, 2)
    num_prefix = encoder.num_prefix if encoder.embeds_prefix else 0
    in_front, positions = encoder.positions[:num_prefix], encoder.positions[num_prefix:]
    state = {"patch_embed.proj.weight": kernel}
    if vit.patch_embed.proj.bias is None:  # CLIP's has none, ours was trained
        positions = positions + bias
    else:
        state["patch_embed.proj.bias"] = bias
    # sensor tokens have no position, but timm may want one of every prefix token
    no_position = positions.new_zeros(vit.pos_embed.shape[1] - len(in_front) - len(positions), encoder.width)
    state["pos_embed"] = torch.cat((in_front, no_position, positions))[None]
    prefix = [] if encoder.prefix is None else [*encoder.prefix[0]]
    if vit.cls_token is not None:
        state["cls_token"] = prefix.pop(0)[None, None]
    if vit.reg_token is not None:
        registers = prefix if sensor_tokens is None else [*prefix, *sensor_tokens]
        state["reg_token"] = torch.stack(registers)[None]
    for name in ("norm_pre", "blocks", "norm"):
        state |= {f"{name}.{inner}": tensor for inner, tensor in getattr(encoder, name).state_dict().items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, described


def _sensor_tokens(run: Run, sensor: str | None) -> Tensor | None:
    """[tokens, D], or None where the encoder has no sensors."""
    known = run.config.encoder.sensors
    if run.model.encoder.sensor_tokens is None:
        if sensor is None:
            return None
        raise ConfigError(f"sensor {sensor!r}: this encoder has no sensor tokens (encoder.sensors is empty)")
    if sensor in (None, UNKNOWN):
        return run.model.encoder.sensor_tokens[-1]
    if sensor not in known:
        raise ConfigError(
            f"sensor {sensor!r}: this encoder has no tokens of it;{guess(str(sensor), known)} "
            f"Known: {', '.join((*known, UNKNOWN))}"
        )
    return run.model.encoder.sensor_tokens[known.index(str(sensor))]


def _timm_arguments(config: TrainConfig, frames: str, num_sensor_tokens: int) -> dict[str, Any]:
    encoder = config.encoder
    arguments: dict[str, Any] = {
        "model_name": encoder.name or OWN_VIT,
        "img_size": list(config.data.height_width),
        "patch_size": encoder.patch,
        "num_classes": 0,
        "global_pool": "avg",
        "pool_include_prefix": False,  # over patch tokens
        "fc_norm": False,  # normalise tokens, then pool
    }
    if encoder.name is None:
        arguments |= {"embed_dim": encoder.width, "depth": encoder.depth, "num_heads": encoder.heads}
        arguments |= {"mlp_ratio": encoder.mlp_ratio, "class_token": False}
    if frames == "tube":
        arguments["in_chans"] = 3 * TUBE_FRAMES
    if num_sensor_tokens:
        with torch.device("meta"):
            own = create_model(**arguments).num_reg_tokens
        arguments["reg_tokens"] = own + num_sensor_tokens
    return arguments


def write_export(path: Path, state: dict[str, Tensor], description: Description) -> None:
    """Write a safetensors file so that `path` holds the old or the new one.

    Raises:
        ConfigError: the path is not one of a safetensors file, or cannot be written to.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: the encoder is written as a safetensors file; end its name in .safetensors")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, scratch, metadata={METADATA: json.dumps(asdict(description))})
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m model.export`."""
    result = argparse.ArgumentParser(
        prog="python -m model.export",
        description="Write the encoder of a run as a plain timm Vision Transformer.",
        epilog="example: python -m model.export runs/long encoder.safetensors",
    )
    result.add_argument("run", type=Path, help="a run's folder, or a checkpoint")
    result.add_argument("out", type=Path, help="safetensors file to write")
    result.add_argument(
        "--frames",
        choices=("image", "tube"),
        default="image",
        help="what the ViT takes: an image, or 3 frames stacked as 9 channels (default: %(default)s)",
    )
    result.add_argument("--sensor", help="whose tokens it gets, where the encoder has sensors (default: unknown)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        state, description = plain_vit(read_run(options.run), options.frames, options.sensor)
        write_export(options.out, state, description)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    numbers = sum(tensor.numel() for tensor in state.values())
    console.print(f"{options.out}: {len(state)} tensors, {numbers / 1e6:.1f} M numbers", markup=False)
    console.print(f"vit = timm.create_model(**{description.timm})", markup=False)
    console.print(f"vit.load_state_dict(safetensors.torch.load_file({str(options.out)!r}))", markup=False)
    console.print(f"mean = {list(description.mean)}; std = {list(description.std)}  # of frames in 0-1", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
