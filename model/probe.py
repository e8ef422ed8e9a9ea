"""Probes: classifiers on the frozen encoder, trained on training clips and tested on held-out ones (`probe/...`).

The linear probe is a multinomial logistic regression on standardised, mean-pooled features. The attentive probe lets
one learned query attend to the patch tokens before its linear layer, since a masked autoencoder's features are seldom
linearly separable after a plain mean (Bardes et al. 2024, V-JEPA; Chen et al. 2022, CAE). Both depend on the features
and the labels alone: equal ones give equal accuracies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import TrainConfig
from model.data.clips import Clips
from model.evaluate import Load
from model.features import clip_features, clip_tokens, frames_seen
from model.mae import JointTactileMAE
from model.metrics import FEATURE_NAMES
from model.probe_task import ProbeTask

L2_GRID = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # beside the mean cross-entropy, strongest first
L2_UNCHOSEN = 0.01  # where the training clips are one group and cannot be split
VALIDATION_SHARE = 0.25  # of the groups of the training clips, to choose the L2 on
LBFGS_STEPS = 100  # for each penalty, from where the one before ended

ATTENTIVE_EPOCHS, ATTENTIVE_BATCH = 40, 64
ATTENTIVE_LR, ATTENTIVE_DECAY = 3e-3, 0.05
HEAD_WIDTH = 32  # of the attentive pooling, at least, where the features are so wide

PROBE_SEED = 20251024  # of the validation split and the attentive probe, the same in every trial
STD_FLOOR = 1e-6  # a feature that does not vary is not blown up

Classes = NDArray[np.int64]


class Probe:
    """Probes models on the clips of a config.

    Raises:
        ConfigError: the clips do not have `probe.label` as a probe needs it (see `ProbeTask.of`).
    """

    def __init__(self, config: TrainConfig, clips: Clips) -> None:
        self._task = ProbeTask.of(config.probe, clips)
        self._config = config

    def __call__(self, model: JointTactileMAE, load_train: Load, load_held_out: Load) -> dict[str, float]:
        """The `probe/...` metrics; none where the config has no `probe.label`.

        Args:
            load_train, load_held_out: read the clips of either side, without augmentation.
        """
        task = self._task
        if task is None:
            return {}
        train, truth = task.train, task.held_out.classes
        num_classes = len(task.names)
        row: dict[str, float] = {}
        frames = frames_seen(self._config)
        sides = (
            (model, load_train, train.numbers, frames),
            (model, load_held_out, task.held_out.numbers, frames),
        )
        if self._config.probe.attentive:
            tokens, test_tokens = (clip_tokens(*side) for side in sides)
            features, test_features = tokens.mean(dim=1), test_tokens.mean(dim=1)
            told = attentive_probe(tokens, train.classes, num_classes, test_tokens)
            row["probe/attentive_accuracy"], row["probe/attentive_balanced_accuracy"] = scores(told, truth)
        else:  # without the memory of their tokens
            features, test_features = (clip_features(*side) for side in sides)
        told = linear_probe(features, train.classes, task.groups, num_classes, test_features)
        row["probe/linear_accuracy"], row["probe/linear_balanced_accuracy"] = scores(told, truth)
        majority = np.bincount(train.classes).argmax()
        row["probe/chance_accuracy"] = float(np.mean(truth == majority))
        return {name: row[name] for name in FEATURE_NAMES if name in row}


def scores(told: Classes, truth: Classes) -> tuple[float, float]:
    """(accuracy, balanced accuracy) of classes [m]; the latter is the mean of the true classes' recalls.

    Chance is 1 / number of classes in balanced accuracy, however uneven they are.
    """
    right = told == truth
    recalls = [right[truth == one].mean() for one in np.unique(truth)]
    return float(right.mean()), float(np.mean(recalls))


# --- linear --------------------------------------------------------------------------------------------------------


def linear_probe(features: Tensor, classes: Classes, groups: Classes, num_classes: int, test: Tensor) -> Classes:
    """Classes [m] that a logistic regression tells from test [m, D], trained on features [n, D] with classes [n].

    groups [n] tell which clips must not be parted when the L2 penalty is chosen (`choose_l2`). In float64 on the host
    and full batch: nothing about it is random.
    """
    exact, exact_test = (part.detach().cpu().double() for part in (features, test))
    targets = torch.from_numpy(classes)
    [classify] = _fit(exact, targets, num_classes, (choose_l2(exact, targets, groups, num_classes),))
    return classify(exact_test).argmax(dim=1).numpy()


def choose_l2(features: Tensor, targets: Tensor, groups: Classes, num_classes: int) -> float:
    """The penalty of L2_GRID with the best balanced accuracy on a quarter of the groups; of equal ones the strongest.

    Not by cross-entropy: of few, uneven classes it prefers the penalty under which everything is the largest class.
    """
    validating = torch.from_numpy(_validation(groups))
    fitting = ~validating
    # a class that no fitted clip shows would be wrong under any penalty
    judged = validating & torch.isin(targets, targets[fitting])
    if not judged.any():
        return L2_UNCHOSEN
    fitted = _fit(features[fitting], targets[fitting], num_classes, L2_GRID)
    truth = targets[judged].numpy()
    balanced = [scores(classify(features[judged]).argmax(dim=1).numpy(), truth)[1] for classify in fitted]
    return L2_GRID[balanced.index(max(balanced))]


def _validation(groups: Classes) -> NDArray[np.bool_]:
    """[n] whether a clip belongs to the quarter of the groups that is left out; to none where there is one group."""
    names = np.unique(groups)
    count = math.ceil(VALIDATION_SHARE * len(names)) if len(names) > 1 else 0
    chosen = np.random.default_rng(PROBE_SEED).permutation(names)[:count]
    mask: NDArray[np.bool_] = np.isin(groups, chosen)
    return mask


@dataclass(frozen=True)
class _Logistic:
    """Standardised features times weights: [m, D] float64 -> logits [m, C]."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    weights: Tensor  # [D + 1, C]; the last row is the bias

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std @ self.weights[:-1] + self.weights[-1]


def _fit(features: Tensor, targets: Tensor, num_classes: int, penalties: tuple[float, ...]) -> list[_Logistic]:
    """A regression for each penalty; each starts from the one before, which is near."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0).clamp_min(STD_FLOOR)
    inputs = (features - mean) / std
    weights = torch.zeros(inputs.shape[1] + 1, num_classes, dtype=torch.float64, requires_grad=True)
    fitted = []
    for penalty in penalties:
        _minimise(weights, inputs, targets, penalty)
        fitted.append(_Logistic(mean, std, weights.detach().clone()))
    return fitted


def _minimise(weights: Tensor, inputs: Tensor, targets: Tensor, penalty: float) -> None:
    """Move the weights to the least mean cross-entropy + penalty / 2 * |weights|^2; the bias has no penalty."""
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=LBFGS_STEPS, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(inputs @ weights[:-1] + weights[-1], targets)
        value = value + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)


# --- attentive -----------------------------------------------------------------------------------------------------


class AttentivePooling(nn.Module):
    """One learned query attends to the tokens of a clip, in several heads; what it reads is classified linearly.

    tokens [B, N, D], standardised -> logits [B, C]. The attention of a single query needs no keys and values of every
    token: q (K x) = (q K) x, and the sum over tokens goes before the value map. The same function, D / heads times
    cheaper. The key's bias is left out: it shifts all tokens' scores alike.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        most = max(width // HEAD_WIDTH, 1)
        self.heads = next(count for count in range(most, 0, -1) if width % count == 0)
        self.query = nn.Parameter(torch.empty(self.heads, width // self.heads))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        for part in (self.key, self.value):  # as nn.MultiheadAttention starts
            nn.init.xavier_uniform_(part.weight)
        nn.init.zeros_(self.value.bias)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = (part.weight.unflatten(0, (self.heads, -1)) for part in (self.key, self.value))  # [heads, d, D]
        looked_for = torch.einsum("hk,hkd->hd", self.query, key) / math.sqrt(self.query.shape[1])
        attention = (tokens @ looked_for.T).softmax(dim=1)  # [B, N, heads]
        read = attention.transpose(1, 2) @ tokens  # [B, heads, D]
        values = torch.einsum("bhd,hkd->bhk", read, value).flatten(1) + self.value.bias
        return self.classify(self.norm(values))


def attentive_probe(tokens: Tensor, classes: Classes, num_classes: int, test: Tensor) -> Classes:
    """Classes [m] that an attentive probe tells from test tokens [m, N, D], trained on tokens [n, N, D], classes [n].

    AdamW for a fixed number of epochs with a cosine that ends at 0, weights and order from a fixed seed.
    """
    device = tokens.device
    mean, std = tokens.mean(dim=(0, 1)), tokens.std(dim=(0, 1), correction=0).clamp_min(STD_FLOOR)
    targets = torch.from_numpy(classes).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PROBE_SEED)
        pooling = AttentivePooling(tokens.shape[-1], num_classes).to(device)
    optimiser = torch.optim.AdamW(pooling.parameters(), lr=ATTENTIVE_LR, weight_decay=ATTENTIVE_DECAY)
    steps = ATTENTIVE_EPOCHS * math.ceil(len(tokens) / ATTENTIVE_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(PROBE_SEED)
    with torch.enable_grad():
        for _ in range(ATTENTIVE_EPOCHS):
            for chosen in torch.randperm(len(tokens), generator=generator).to(device).split(ATTENTIVE_BATCH):
                loss = F.cross_entropy(pooling((tokens[chosen] - mean) / std), targets[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    with torch.no_grad():
        parts = [pooling((part - mean) / std).argmax(dim=1) for part in test.split(ATTENTIVE_BATCH)]
    return torch.cat(parts).cpu().numpy()
