"""alpha and beta of an update: as given, or moved by what the losses do, to compare a sweep of fixed weights with.

    uncertainty   Kendall, Gal & Cipolla 2018, "Multi-task learning using uncertainty to weigh losses"
    famo          Liu, Feng, Stone & Liu 2023, "FAMO: Fast adaptive multitask optimization"

Weights are numbers to the model: their own gradients have a closed form, so nothing here takes part in the backward
pass, and nothing waits for the device. They are set at an update's first micro-batch and kept to its last, so that
`loss_total = alpha * loss_static + beta * loss_dynamic` holds for the means that are logged.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import TrainConfig

STEP = 0.025  # learning rate of the weights' Adam: FAMO's, used for both
FAMO_DECAY = 0.01  # pulls FAMO's logits back to equal weights (its gamma)
TINY = 1e-8  # keeps the logarithm of a loss finite


class Weighting(Protocol):
    """Moves alpha and beta. Losses are detached [2]: static, dynamic, the means over all processes."""

    again: bool
    """Whether `step` wants the losses of the update's last micro-batch once more, after the optimiser's step."""

    def weights(self, losses: Tensor) -> Tensor:
        """[2] alpha and beta for the update whose first micro-batch has these losses."""

    def step(self, before: Tensor, after: Tensor | None) -> None:
        """Learn from an update.

        Args:
            before: losses of the update; of its last micro-batch if `again`.
            after: the same after the optimiser's step; None unless `again`.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def make_weighting(config: TrainConfig, device: torch.device) -> Weighting | None:
    """The weighting of a config; None where alpha and beta stay as they are."""
    if config.weighting == "fixed":
        return None
    start = torch.tensor(config.weights, dtype=torch.float32, device=device)
    return Uncertainty(start) if config.weighting == "uncertainty" else Famo(start)


class _Learned:
    """Two numbers with an Adam of their own."""

    def __init__(self, start: Tensor, weight_decay: float = 0.0) -> None:
        self._values = torch.nn.Parameter(start)
        self._optimiser = torch.optim.Adam([self._values], lr=STEP, weight_decay=weight_decay)

    def _descend(self, gradient: Tensor) -> None:
        self._values.grad = gradient
        self._optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        return {"values": self._values.detach().cpu(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self._values.copy_(state["values"])
        self._optimiser.load_state_dict(state["optimiser"])


class Uncertainty(_Learned):
    """Homoscedastic uncertainty: minimises `exp(-s) / 2 * loss + s / 2` of both losses, s = log variance.

    alpha and beta are `exp(-s) / 2`; `loss_total` leaves out the terms s / 2, which do not reach the model. Where s has
    settled, alpha = 1 / (2 loss_static) and beta = 1 / (2 loss_dynamic): both losses contribute alike.
    """

    again = False

    def __init__(self, start: Tensor) -> None:
        super().__init__(-torch.log(2 * start))

    def weights(self, losses: Tensor) -> Tensor:
        return torch.exp(-self._values.detach()) / 2

    def step(self, before: Tensor, after: Tensor | None) -> None:
        self._descend((1 - torch.exp(-self._values.detach()) * before) / 2)


class Famo(_Learned):
    """Lets both losses fall at the same relative rate; alpha + beta = 1.

    With z = softmax(w), the model minimises `sum z_i log(loss_i)`, scaled so that the weights z_i / loss_i sum to 1.
    w then moves towards the loss whose logarithm fell less at this update, seen on the same micro-batch: one more
    forward pass (without gradients) an update.
    """

    again = True

    def __init__(self, start: Tensor) -> None:
        super().__init__(torch.log(start / start.sum()), weight_decay=FAMO_DECAY)

    def weights(self, losses: Tensor) -> Tensor:
        shares = torch.softmax(self._values.detach(), 0) / (losses + TINY)
        return shares / shares.sum()

    def step(self, before: Tensor, after: Tensor | None) -> None:
        assert after is not None, "FAMO compares the losses before and after the step"
        fell = torch.log(before + TINY) - torch.log(after + TINY)
        z = torch.softmax(self._values.detach(), 0)
        self._descend(z * (fell - (z * fell).sum()))  # the softmax's Jacobian times `fell`: less weight where it fell
