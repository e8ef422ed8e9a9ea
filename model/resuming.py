"""Whether a run may go on from a checkpoint's state: the same program, config and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint import CheckpointError
from model.config import TrainConfig
from model.data.clips import Clips

STATE_VERSION = 2
# what may differ between the config of a checkpoint and of the run that goes on with it: none of it changes a row
FREE_FIELDS = ("device", "compile", "pictures", "probe")
FREE_DATA_FIELDS = ("root", "labels", "store_dir")  # data may have moved; that they are the same is seen by themselves
SAME_FRAMES = 1e-5  # relative, of mean and deviation: another processor may add up in another order


def identity(config: TrainConfig, clips: Clips) -> dict[str, Any]:
    """The part of a state that tells what it is of."""
    return {
        "version": STATE_VERSION,
        "config": config.model_dump(mode="json"),
        "normalisation": {"mean": clips.mean.tolist(), "std": clips.std.tolist()},
        "train_clips": len(clips.train),
    }


def check_identity(state: dict[str, Any], config: TrainConfig, clips: Clips) -> None:
    """Raise CheckpointError where a state is of another version, config (but for FREE_FIELDS) or data."""
    if state.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"checkpoint version {state.get('version')!r}; this program reads {STATE_VERSION}. Give the "
            "checkpoint/last.pt of a run of this version; weights to start from go into encoder.pretrained"
        )
    if not isinstance(state.get("config"), dict):
        raise CheckpointError("the checkpoint holds no config")
    _check_config(state["config"], config.model_dump(mode="json"))
    try:
        mean, std = (np.array(state["normalisation"][name], float) for name in ("mean", "std"))
        count = state["train_clips"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint does not tell its data ({type(error).__name__}: {error})") from None
    _check_data(count, mean, std, clips)


def _check_config(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    there, here = dict(_flat(_fixed(theirs))), dict(_flat(_fixed(ours)))
    changed = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if changed:
        shown = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in changed)
        raise CheckpointError(
            f"the checkpoint is of another config ({shown}); go on with the config.yaml beside it, or start a new run"
        )


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config must be equal: all but the free fields."""
    data = config.get("data")
    return {name: value for name, value in config.items() if name not in FREE_FIELDS} | {"data": _fixed_data(data)}


def _fixed_data(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    parts = data.get("parts")
    return {name: value for name, value in data.items() if name not in FREE_DATA_FIELDS} | {
        "parts": [_fixed_data(part) for part in parts] if isinstance(parts, list) else parts
    }


def _check_data(count: Any, mean: NDArray[np.float64], std: NDArray[np.float64], clips: Clips) -> None:
    """Files may have come or gone since: the same clip numbers would then mean other clips."""
    same = all(
        then.shape == now.shape and np.allclose(then, now, rtol=SAME_FRAMES, atol=0)
        for then, now in ((mean, clips.mean), (std, clips.std))
    )
    if count != len(clips.train) or not same:
        raise CheckpointError(
            f"the data have changed since the checkpoint ({count} training clips there, {len(clips.train)} here"
            f"{'' if same else '; their mean or deviation differ'}); bring them back as they were, or start a new run"
        )
