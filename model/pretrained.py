"""Start from weights: `encoder.pretrained` into the encoder and its embedding. The decoder starts from scratch.

A 2D patch embedding is inflated over the tube: each of its 3 frames gets a third of the weights, so that a repeated
frame gives what the image gave (Carreira & Zisserman 2017, I3D). Embeddings of other patch sizes and positions of other
image sizes are resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from timm import create_model
from timm.layers import QuickGELU, resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from model.config import TrainConfig
from model.data.config import TUBE_FRAMES
from model.errors import ConfigError, one_line
from model.mae import JointTactileMAE
from model.weight_files import Weights, in_timms_names, read_weights

KERNEL, BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
PREFIX = ("cls_token", "reg_token")  # in their order
WITHIN_ENCODER = ("blocks.", "norm_pre.", "patch_embed.norm.")  # what takes part between patches and tokens
NAMED_AT_MOST = 6  # tensors that the report names


def load_pretrained(model: JointTactileMAE, config: TrainConfig) -> str:
    """Replace the weights of a fresh model's encoder by those of `config.encoder.pretrained`, which is not False.

    Returns:
        One line: where the weights came from, which were left out, and which parts of the encoder start at random.

    Raises:
        ConfigError: the weights cannot be had or read, or are of an encoder of another architecture.
    """
    source = config.encoder.pretrained
    assert source is not False, "there are no weights to start from"
    where = f"encoder.pretrained = {'true' if source is True else source}"
    try:
        weights = _from_hub(config) if source is True else read_weights(source)
    except ConfigError as error:
        raise ConfigError(f"encoder.pretrained = {error}") from None
    tensors = dict(weights.tensors)
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ConfigError(f"{where}: {_names(broken)} hold NaN or infinite numbers; take a file of sound weights")
    _check_architecture(tensors, model, where)
    if config.encoder.name is None and weights.heads not in (None, config.encoder.heads):
        raise ConfigError(
            f"{where}: an encoder of {weights.heads} heads, but encoder.heads = {config.encoder.heads}; "
            f"use encoder.heads={weights.heads}"
        )
    state = _embedding(tensors, model, config.encoder.patch)
    state |= _prefix_and_positions(tensors, weights.grid, model, config.grid, where)
    if model.encoder.sensor_tokens is not None and "sensor_tokens" in tensors:
        state["encoder.sensor_tokens"] = _sensor_tokens(tensors.pop("sensor_tokens"), weights.sensors, config)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(("encoder.", "embed."))}
    state |= {f"encoder.{name}": tensors.pop(name) for name in list(tensors) if f"encoder.{name}" in wanted}
    odd = [name for name, tensor in state.items() if tensor.shape != wanted[name].shape]
    lacking = [name for name in wanted if name.startswith("encoder.blocks.") and name not in state]
    if odd or lacking:
        raise ConfigError(f"{where}: {_misfit(odd, lacking, state, wanted)}; is it of {_architecture(model, config)}?")
    _check_nothing_missed(tensors, where)
    model.load_state_dict(state, strict=False)
    random = [name for name in wanted if name not in state]
    return (
        f"{where}: {len(state)} of the encoder's {len(wanted)} tensors loaded; "
        f"left out of the file: {_names(tensors)}; start at random: {_names(random)}{_activation_hint(model)}"
    )


def _from_hub(config: TrainConfig) -> Weights:
    """timm's weights of encoder.name, from its cache or the network."""
    name = config.encoder.name
    assert name is not None, "the config asks for a name with pretrained = true"
    try:
        vit = create_model(name, pretrained=True, num_classes=0, global_pool="")
    except Exception as error:  # what the hub's client raises depends on how the network fails
        raise ConfigError(
            f"true: timm cannot get the weights of encoder.name = {name!r} ({one_line(error, 200)}); "
            "without network, download them elsewhere and give the file: encoder.pretrained=FILE.safetensors"
        ) from None
    return Weights(in_timms_names(vit.state_dict(), "true"), tuple(vit.patch_embed.grid_size))


def _check_architecture(tensors: dict[str, Tensor], model: JointTactileMAE, where: str) -> None:
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    theirs = (tensors[KERNEL].shape[0], len(blocks))
    ours = (model.encoder.width, len(model.encoder.blocks))
    if theirs != ours:
        raise ConfigError(
            f"{where}: an encoder of width {theirs[0]} and {theirs[1]} blocks, but the config's has width {ours[0]} "
            f"and {ours[1]} blocks; set encoder.name (or width and depth) to the file's architecture"
        )
    shape = list(tensors[KERNEL].shape)
    if shape[1:-2] not in ([3], [3, TUBE_FRAMES]):
        raise ConfigError(
            f"{where}: its patch embedding is {shape}; can be used: [D, 3, p, p] of an image, or "
            f"[D, 3, {TUBE_FRAMES}, p, p] of {TUBE_FRAMES} frames"
        )


def _check_nothing_missed(left: Iterable[str], where: str) -> None:
    """Raise ConfigError where the file's encoder has a part that ours lacks, such as LayerScale: without it the weights
    that fit would compute something else."""
    missed = [name for name in left if name.startswith(WITHIN_ENCODER)]
    if missed:
        raise ConfigError(
            f"{where}: its encoder also has {_names(missed)}, which the config's has no place for, so it would compute "
            "something else; set encoder.name to the file's architecture"
        )


def _activation_hint(model: JointTactileMAE) -> str:
    """A remark where the weights may be OpenAI's CLIP in an encoder with another activation: no tensor tells."""
    is_clips = not isinstance(model.encoder.norm_pre, torch.nn.Identity)
    if not is_clips or any(isinstance(module, QuickGELU) for module in model.encoder.modules()):
        return ""
    return "; OpenAI's own CLIP weights want QuickGELU: if these are, use the clip_quickgelu variant of encoder.name"


def _embedding(tensors: dict[str, Tensor], model: JointTactileMAE, patch: int) -> dict[str, Tensor]:
    """The maps of `TubeEmbed`; takes what it uses out of `tensors`."""
    kernel = tensors.pop(KERNEL).float()  # [D, 3, p, p] or [D, 3, 3, p, p]
    frames = kernel.unbind(2) if kernel.ndim == 5 else (kernel / TUBE_FRAMES,) * TUBE_FRAMES
    bias = tensors.pop(BIAS, torch.zeros(len(kernel)))  # CLIP's has none
    maps = [_map_of_patches(frame, patch) for frame in frames]
    state = {"embed.project.weight": torch.cat(maps, dim=1), "embed.project.bias": bias}
    if model.embed.frame is not None:
        image = tensors.pop("frame_embed.weight", kernel.sum(2) if kernel.ndim == 5 else kernel)
        state["embed.frame.weight"] = _map_of_patches(image, patch)
        state["embed.frame.bias"] = tensors.pop("frame_embed.bias", bias)
    return state


def _map_of_patches(kernel: Tensor, patch: int) -> Tensor:
    """Kernel [D, 3, p, p] -> weight [D, P] for patches of `patch` pixels, in the order of `model.losses.patchify`."""
    return resample_patch_embed(kernel.float(), [patch, patch]).permute(0, 2, 3, 1).flatten(1)


def _prefix_and_positions(
    tensors: dict[str, Tensor],
    their_grid: tuple[int, int] | None,
    model: JointTactileMAE,
    grid: tuple[int, int],
    where: str,
) -> dict[str, Tensor]:
    """Prefix tokens and learned positions; takes what it uses out of `tensors`.

    Whether prefix tokens have positions differs between files: those of a file are added to the tokens where ours have
    none, and are 0 where only ours have them.
    """
    encoder, state = model.encoder, {}
    found = [name for name in PREFIX if name in tensors]
    prefix = torch.cat([tensors[name] for name in found], dim=1) if found else None
    fits = prefix is not None and encoder.prefix is not None and prefix.shape == encoder.prefix.shape
    learned = isinstance(encoder.positions, torch.nn.Parameter)  # fixed ones stay
    ahead: Tensor | None = None  # positions of the file's prefix tokens
    if learned and "pos_embed" in tensors:
        positions = tensors.pop("pos_embed")
        counts = {0, encoder.num_prefix, *(tensors[name].shape[1] for name in found[:1])}
        counts |= set() if prefix is None else {prefix.shape[1]}
        their_grid, count = _grid_of(positions.shape[1], counts, their_grid, grid, where)
        ahead, patches = positions[:, :count], positions[:, count:]
        patches = resample_abs_pos_embed(patches, list(grid), list(their_grid), num_prefix_tokens=0)[0]
        in_front = patches.new_zeros(encoder.num_prefix if encoder.embeds_prefix else 0, encoder.width)
        if fits and encoder.embeds_prefix:
            in_front[: ahead.shape[1]] = ahead[0]
        state["encoder.positions"] = torch.cat((in_front, patches))
    if fits:
        assert prefix is not None
        if ahead is not None and not encoder.embeds_prefix:
            prefix = prefix.clone()
            prefix[:, : ahead.shape[1]] += ahead
        state["encoder.prefix"] = prefix
        for name in found:
            del tensors[name]
    return state


def _grid_of(
    length: int, prefix_counts: set[int], told: tuple[int, int] | None, ours: tuple[int, int], where: str
) -> tuple[tuple[int, int], int]:
    """(rows, columns) of a position embedding, and how many of its rows are of prefix tokens.

    Where the file has not `told` its grid, it is square, else as wide as ours.
    """
    for square in (True, False):
        for count in sorted(prefix_counts, reverse=True):
            side = math.isqrt(max(length - count, 0))
            grid = told or ((side, side) if square else ours)
            if math.prod(grid) == length - count > 0:
                return grid, count
    raise ConfigError(
        f"{where}: its position embedding has {length} rows, which fit no square grid of patches, nor {ours[0]} x "
        f"{ours[1]}; convert it to square images first, or leave pos_embed out of the file"
    )


def _sensor_tokens(tokens: Tensor, theirs: tuple[str, ...], config: TrainConfig) -> Tensor:
    """Rows for our sensors, by name; a new sensor starts as the unknown one, which is the last row."""
    rows = [theirs.index(name) if name in theirs else len(theirs) for name in config.encoder.sensors]
    return tokens[[*rows, len(theirs)]]


def _misfit(odd: list[str], lacking: list[str], state: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    if odd:
        name = odd[0]
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        shapes = f"{list(state[name].shape)}, but the model's {list(wanted[name].shape)}"
        return f"{name} is {shapes}{more}"
    return f"lacks {_names(lacking)}"


def _architecture(model: JointTactileMAE, config: TrainConfig) -> str:
    return config.encoder.name or f"width {model.encoder.width}, mlp_ratio {config.encoder.mlp_ratio}"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMED_AT_MOST} more" if len(listed) > NAMED_AT_MOST else ""
    return ", ".join(listed[:NAMED_AT_MOST]) + more or "nothing"
