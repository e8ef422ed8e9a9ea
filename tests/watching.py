"""What a trainer gives its model and gets back, seen through torch's own hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.losses import unpatchify
from model.sinks import Event
from model.trainer import Trainer


@dataclass(frozen=True)
class Call:
    """One forward pass: patches [B, N, 4, P], orders [B, N], sensors [B], the losses [3] (NaN for one left out)."""

    patches: Tensor
    static_order: Tensor
    dynamic_order: Tensor
    num_visible: int
    sensors: Tensor | None
    losses: Tensor


@dataclass(frozen=True)
class Calls:
    """The forward passes of training and of evaluation."""

    training: list[Call]
    evaluation: list[Call]


def watch(trainer: Trainer) -> Calls:
    """Keeps every later forward pass of the trainer's model."""
    calls = Calls([], [])

    def keep(model: torch.nn.Module, inputs: tuple[Any, ...], losses: Any) -> None:
        kept = calls.training if model.training else calls.evaluation
        values = [torch.tensor(torch.nan) if loss is None else loss.detach() for loss in losses]
        sensors = inputs[4] if len(inputs) > 4 else None
        kept.append(Call(*inputs[:4], sensors, torch.stack(values)))

    trainer.model.register_forward_hook(keep)
    return calls


def frames_of(call: Call, trainer: Trainer) -> Tensor:
    """The clips of a call as uint8 frames [B, 4, H, W, 3]: normalisation and patches undone."""
    frames = unpatchify(call.patches, trainer.config.encoder.patch, trainer.config.grid)
    std, mean = torch.from_numpy(trainer.clips.std), torch.from_numpy(trainer.clips.mean)
    return ((frames * std + mean) * 255).round().to(torch.uint8)


def comparable(events: list[Event]) -> list[tuple[str, dict[str, float]]]:
    """Events without the one number that differs between equal runs, the time."""
    return [
        (str(e.level), {name: v for name, v in e.values.items() if name != "summary/total_time_seconds"})
        for e in events
    ]
