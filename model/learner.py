"""The learner: a model, its optimiser and everything else that one gradient update changes.

Nothing in an update waits for the device: the losses come back as a tensor, which the trainer reads one update later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.config import TrainConfig
from model.device import autocast, check_compiler, pick_precision
from model.distributed import World
from model.losses import Losses
from model.mae import JointTactileMAE
from model.optim import make_optimiser, set_lr
from model.pretrained import load_pretrained
from model.weighting import make_weighting


class Inputs(NamedTuple):
    """What the network takes: patches [B, N, 4, P]; orders [B, N] with the visible patches first, None for a branch
    that is left out; how many are visible; sensors [B] or None.
    """

    patches: Tensor
    static_order: Tensor | None
    dynamic_order: Tensor | None
    num_visible: int
    sensors: Tensor | None


class Learner:
    """Makes gradient updates.

    Attributes:
        model: its weights as they are trained.
        judged: the model that is evaluated, probed and exported: with `ema_decay` the average of the weights.
        loaded: what was taken of `encoder.pretrained`, a line; None where nothing was.

    Args:
        fresh: False where a state is loaded next, so that pretrained weights need not be read.

    Raises:
        ConfigError: the model cannot be built, or compiled, here.
    """

    def __init__(self, config: TrainConfig, device: torch.device, world: World, fresh: bool = True) -> None:
        check_compiler(config, device)
        self._config, self._device, self._world = config, device, world
        model = JointTactileMAE(config, seed=config.seed)
        self.loaded = load_pretrained(model, config) if fresh and config.encoder.pretrained else None
        self.model = model.to(device)
        self._average: AveragedModel | None = None
        if config.ema_decay is not None:  # its first update copies the weights
            self._average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.judged = self.model if self._average is None else cast(JointTactileMAE, self._average.module)
        self._parallel = world.wrap(self.model, config)
        # lr, alpha and beta stay outside of what is compiled: they may change without a recompile
        self._network = torch.compile(self._parallel, dynamic=False) if config.compile else self._parallel
        self._optimiser = make_optimiser(self.model, config)
        self._scaler = torch.amp.GradScaler(device.type, enabled=pick_precision(config, device) == "fp16")
        self._weighting = make_weighting(config, device)

    def update(self, micro_batches: Iterable[Inputs], lr: float) -> Tensor:
        """One gradient update over `accum_iter` micro-batches, of which the inputs are this process's parts.

        Returns:
            [3] the mean losses static, recon, pred over micro-batches and processes (0 where left out), or [5] with
            alpha and beta where these move. On the device, perhaps not computed yet.
        """
        set_lr(self._optimiser.param_groups, lr)
        accum = self._config.accum_iter
        sums = torch.zeros(3, device=self._device)
        weights: Tensor | None = None  # alpha and beta, where they move
        for number, inputs in enumerate(micro_batches, 1):
            with self._world.gathering(self._parallel, last=number == accum):
                with autocast(self._config, self._device):
                    losses: Losses = self._network(*inputs)
                parts = _stacked(losses)
                sums += parts
                if self._weighting is not None and weights is None:
                    weights = self._weighting.weights(self._pair(parts))
                self._scaler.scale(self._total(losses, weights) / accum).backward()
        self._step()
        mean = self._world.mean(sums / accum)
        if self._weighting is None or weights is None:
            return mean
        if self._weighting.again:
            with torch.no_grad(), autocast(self._config, self._device):
                after = self._pair(_stacked(self.model(*inputs)))
            self._weighting.step(self._pair(parts), after)
        else:
            self._weighting.step(_static_dynamic(mean), None)
        return torch.cat((mean, weights))

    def _total(self, losses: Losses, weights: Tensor | None) -> Tensor:
        """alpha * static + beta * dynamic, of those that were computed."""
        alpha, beta = self._config.weights if weights is None else weights.unbind()
        if losses.dynamic is None:
            assert losses.static is not None
            return alpha * losses.static
        return beta * losses.dynamic if losses.static is None else alpha * losses.static + beta * losses.dynamic

    def _pair(self, parts: Tensor) -> Tensor:
        """Static and dynamic loss over all processes, [2], from this one's [3]."""
        return _static_dynamic(self._world.mean(parts.clone()))

    def _step(self) -> None:
        if self._config.clip_grad is not None:
            self._scaler.unscale_(self._optimiser)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_grad)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update_parameters(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later updates depend on, but for their number. Waits for the device."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self._average is None else self.judged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "weighting": None if self._weighting is None else self._weighting.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], updates: int) -> None:
        """Go on from `state_dict()` after so many updates. Raises what torch raises where the state does not fit."""
        self.model.load_state_dict(state["model"])
        if self._average is not None:
            self.judged.load_state_dict(state["ema"])
            self._average.n_averaged.fill_(updates)
        decays = [group["weight_decay"] for group in self._optimiser.param_groups]
        self._optimiser.load_state_dict(state["optimiser"])
        for group, decay in zip(self._optimiser.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # the config's: it may have changed since, as base_lr, which each update sets
        self._scaler.load_state_dict(state["scaler"])
        if self._weighting is not None:
            self._weighting.load_state_dict(state["weighting"])


def _stacked(losses: Losses) -> Tensor:
    """[3] static, recon, pred, without gradients; 0 for a branch that was left out."""
    found = next(loss for loss in losses if loss is not None)
    return torch.stack([found.new_zeros(()) if loss is None else loss.detach() for loss in losses])


def _static_dynamic(parts: Tensor) -> Tensor:
    """[3] static, recon, pred -> [2] static, dynamic."""
    return torch.stack((parts[0], parts[1] + parts[2]))
