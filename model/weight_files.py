"""Encoder weights as others save them -> one set of names: timm's, with a kernel that may be that of a tube.

Understood are state dicts of timm and what timm itself converts (MAE, DINO, OpenAI's CLIP, OpenCLIP, ...), those of
Hugging Face's CLIP and SigLIP, and our own checkpoints and exports; bare, nested in a training checkpoint, or part of a
larger model.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from model.data.config import TUBE_FRAMES
from model.errors import ConfigError, one_line

METADATA = "tactile_encoder"  # key of the JSON text that our export writes into a safetensors file

# averaged weights first, and a state dict before what it may lie in
NESTED = ("ema", "state_dict_ema", "model_ema", "teacher", "target_encoder", "state_dict", "model", "module", "encoder")

TIMM, OPENAI, HUGGING_FACE = "patch_embed.proj.weight", "ln_pre.weight", "embeddings.patch_embedding.weight"
OURS = "embed.project.weight"

HUGGING_FACE_NAMES = (
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^pre_layrnorm\.", "norm_pre."),  # sic
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
)


@dataclass(frozen=True)
class Weights:
    """Weights of a ViT.

    Attributes:
        tensors: by timm's names, `patch_embed.proj.weight` [D, 3, p, p] or that of a tube [D, 3, 3, p, p] (channel,
            frame). From our own checkpoints also `frame_embed.{weight,bias}` and `sensor_tokens`.
        grid: (rows, columns) of the position embedding, where the file says so.
        sensors: whose `sensor_tokens` those are.
        heads: of attention, where the file says so: no tensor tells.
    """

    tensors: dict[str, Tensor]
    grid: tuple[int, int] | None = None
    sensors: tuple[str, ...] = ()
    heads: int | None = None


def read_weights(path: Path) -> Weights:
    """The weights in a safetensors file or a checkpoint. Nothing in the file is run.

    Raises:
        ConfigError: the file is missing, cut short, a pickle of more than tensors, or holds no ViT; says which.
    """
    content, metadata = _read(path)
    state = _tensors(content)
    if OURS in state:
        return _ours(state, content.get("config", {}))
    tensors = in_timms_names(state, str(path))
    if METADATA not in metadata:
        return Weights(tensors)
    arguments = json.loads(metadata[METADATA])["timm"]
    height, width = arguments["img_size"]
    grid = (height // arguments["patch_size"], width // arguments["patch_size"])
    return Weights(tensors, grid, heads=arguments.get("num_heads"))


def in_timms_names(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The ViT in a state dict, by timm's names. Raises ConfigError, which begins with `where`, unless it holds one."""
    prefix, kind = _place_of_vit(state, where)
    vit = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if kind == HUGGING_FACE:
        vit = _from_hugging_face(vit)
    elif kind == OPENAI:
        vit = {f"visual.{name}": tensor for name, tensor in vit.items()}
    kernel = vit.get("patch_embed.proj.weight", vit.get("visual.conv1.weight"))
    assert kernel is not None, "the ViT was found by its patch embedding"
    if kernel.ndim == 2:  # a linear map of flattened patches
        side = math.isqrt(kernel.shape[1] // 3)
        vit["patch_embed.proj.weight"] = kernel = kernel.unflatten(1, (3, side, side))
    # timm's conversion of other projects' names; the kernel's own size and no positions keep it from resampling, which
    # is done later, for tubes too
    shape = torch.empty(kernel.shape[0], 3, *kernel.shape[-2:], device="meta")
    target = SimpleNamespace(patch_embed=SimpleNamespace(proj=SimpleNamespace(weight=shape)), pos_embed=None, head=None)
    tensors: dict[str, Tensor] = checkpoint_filter_fn(vit, target)
    kernel = tensors["patch_embed.proj.weight"]
    if kernel.ndim == 4 and kernel.shape[1] == 3 * TUBE_FRAMES:  # our export of a tube: frames stacked as channels
        tensors["patch_embed.proj.weight"] = kernel.unflatten(1, (TUBE_FRAMES, 3)).transpose(1, 2)
    return tensors


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Content and metadata of a file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        # checkpoints of training scripts often hold their arguments
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a whole safetensors file ({error}); copy it again") from None
    except Exception as error:  # on damaged files torch raises whatever it stumbles over, IndexError for one
        raise ConfigError(
            f"{path}: not a checkpoint of plain tensors ({one_line(error, 200)}). It is cut short, or a pickle of "
            "other objects, which could run code and is not opened; where you trust it, save its state dict as "
            "safetensors"
        ) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content, {}


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The innermost state dict."""
    inner = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)
    if inner is not None:
        return _tensors(inner)
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _place_of_vit(state: Iterable[str], where: str) -> tuple[str, str]:
    """Prefix of the names of the one ViT in a state dict, and the kind of its names."""
    markers = (TIMM, OPENAI, HUGGING_FACE)
    found = [
        (name.removesuffix(kind), kind)
        for name in state
        for kind in markers
        if name == kind or name.endswith(f".{kind}")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(repr(prefix) for prefix, _ in found)
        raise ConfigError(f"{where}: holds {len(found)} ViTs, at {places}; save the one you want as a file of its own")
    shown = ", ".join(list(state)[:4]) or "no tensors"
    raise ConfigError(
        f"{where}: no ViT found in it (it holds {shown}, ...); names must be those of timm, MAE, DINO, CLIP (OpenAI or "
        "Hugging Face) or of our own checkpoints"
    )


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's and SigLIP's vision model; timm has query, key and value in one matrix."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in HUGGING_FACE_NAMES:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    for name in [n for n in result if ".attn.q_proj." in n]:
        parts = [result.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        result[name.replace("q_proj", "qkv")] = torch.cat(parts)
    for name in ("pos_embed", "cls_token"):
        if name in result:
            result[name] = result[name].reshape(1, -1, result[name].shape[-1])
    result.pop("embeddings.position_ids", None)
    return result


def _ours(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
    """Our own checkpoint. Class and register tokens stay together as `cls_token`: only their order matters."""
    names = {
        "encoder.prefix": "cls_token",
        "embed.project.bias": "patch_embed.proj.bias",
        "embed.frame.weight": "frame_embed.weight",
        "embed.frame.bias": "frame_embed.bias",
    }
    tensors = {
        names.get(name, name.removeprefix("encoder.")): tensor
        for name, tensor in state.items()
        if name.startswith(("encoder.", "embed.")) and name not in (OURS, "encoder.positions")
    }
    side = math.isqrt(state[OURS].shape[1] // (3 * TUBE_FRAMES))
    tensors["patch_embed.proj.weight"] = state[OURS].unflatten(1, (TUBE_FRAMES, side, side, 3)).permute(0, 4, 1, 2, 3)
    if "frame_embed.weight" in tensors:
        tensors["frame_embed.weight"] = tensors["frame_embed.weight"].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    if "encoder.positions" in state:
        tensors["pos_embed"] = state["encoder.positions"][None]
    if not config:
        return Weights(tensors)
    size = config["data"]["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    encoder = config["encoder"]
    heads = encoder["heads"] if encoder["name"] is None else None
    return Weights(tensors, (height // side, width // side), tuple(encoder.get("sensors", ())), heads)
