"""The trainer: a generator of events, one row per gradient update, and state that resumes to the last bit on a CPU.

    for event in Trainer(TrainConfig()).train():
        print(event.level, event.values)

Randomness has no state: clip order, masks and flips of an update are drawn from generators seeded by (seed, purpose,
place), so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model import metrics
from model.checkpoint import CheckpointError
from model.config import TrainConfig
from model.data.clips import Clips, ClipSet, load_clips
from model.device import pick_device, to_host, uses_bf16
from model.evaluate import Evaluator
from model.losses import patchify, random_order
from model.mae import JointTactileMAE
from model.metrics import Level
from model.plan import EpochPlan
from model.schedule import lr_at
from model.sinks import Event

STATE_VERSION = 1


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; says at which update and on which clips."""


@dataclass(frozen=True)
class _InFlight:
    """An update that is done or under way on the device, and not yet logged."""

    iteration: int
    losses: Tensor  # [3] on the host: static, recon, pred
    arrived: torch.cuda.Event | None = None

    def values(self) -> list[float]:
        """The three losses; waits for the device where they have not arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values: list[float] = self.losses.double().tolist()
        return values


class Trainer:
    """Trains one config. Iterate `run_epoch()` or `train()`; between two events `state_dict()` holds everything.

    Args:
        config: what to compute.
        clips: the data, opened before; opened (and, the first time, decoded) here if absent.

    Raises:
        ConfigError, DataError: the config does not fit the data, or the data cannot be used.
    """

    def __init__(self, config: TrainConfig, clips: Clips | None = None) -> None:
        self.config = config
        self.clips = load_clips(config.data) if clips is None else clips
        self.plan = EpochPlan.of(config, len(self.clips.train))
        self.device = pick_device(config)
        self.model = JointTactileMAE(config, seed=config.seed).to(self.device)
        self._optimiser = torch.optim.AdamW(
            _decay_groups(self.model, config.weight_decay), lr=config.peak_lr, betas=config.betas, fused=True
        )
        std, mean = (torch.from_numpy(a).repeat(config.encoder.patch**2) for a in (self.clips.std, self.clips.mean))
        # uint8 -> normalised float in one multiply-add: x / 255 -> (x - mean) / std
        self._scale, self._shift = (1 / (255 * std)).to(self.device), (-mean / std).to(self.device)
        mean_frame = torch.from_numpy(self.clips.mean_frame).to(self.device)[None, None] * 255
        mean_patches = patchify(mean_frame, config.encoder.patch)[0, :, 0] * self._scale + self._shift
        self._evaluate = Evaluator(config, self.clips.held_out, self._held_out_patches, mean_patches)

        self.update = 0  # updates done
        self.epoch = 0  # epochs done
        self._means = _Means()
        self._in_flight: deque[_InFlight] = deque()
        self._best: tuple[float, int] | None = None  # (epoch/train_loss, epoch)
        self._seconds = 0.0
        self._resumed_at: float | None = None

    @property
    def finished(self) -> bool:
        """All epochs are done."""
        return self.epoch >= self.config.epochs

    @property
    def reported(self) -> int:
        """Batch events given out so far, over all parts of the run."""
        return self.update - len(self._in_flight)

    def train(self) -> Iterator[Event]:
        """All remaining epochs, then the summary."""
        while not self.finished:
            yield from self.run_epoch()
        yield self.summary()

    def run_epoch(self) -> Iterator[Event]:
        """The rest of the current epoch: a batch event per update, then the epoch's event.

        Raises:
            NonFiniteLossError: after the event of the update whose loss is NaN or infinite, or of the epoch whose
                evaluation is.
        """
        assert not self.finished, "there is no epoch left"
        self._seconds, self._resumed_at = self._elapsed(), time.perf_counter()  # an iteration given up before counts
        order = self._epoch_order()
        while self.update < (self.epoch + 1) * self.plan.updates:
            self._launch_update(order)
            yield from self._report(keep=1)  # the update before: its losses arrived while this one was launched
        yield from self._report(keep=0)
        row = self._epoch_row() | self._evaluate(self.model, self._held_out_patches)
        self.epoch += 1
        self._means = _Means()
        self._seconds, self._resumed_at = self._elapsed(), None
        yield Event(Level.EPOCH, row)
        for name, value in row.items():
            if not math.isfinite(value):  # the epoch's last update broke the weights
                raise NonFiniteLossError(
                    f"{name} = {value} after epoch {self.epoch - 1}; lower base_lr, or clip gradients (clip_grad)"
                )

    def summary(self) -> Event:
        """The summary of the epochs done so far; best_loss is absent where no epoch was finished."""
        row: dict[str, float] = {"summary/total_time_seconds": self._elapsed()}
        if self._best is not None:
            row = {"summary/best_epoch": self._best[1], "summary/best_loss": self._best[0]} | row
        return Event(Level.SUMMARY, row)

    def _elapsed(self) -> float:
        running = 0.0 if self._resumed_at is None else time.perf_counter() - self._resumed_at
        return self._seconds + running

    # --- one update ---

    def _launch_update(self, order: Tensor) -> None:
        """Enqueue one gradient update on the device; nothing here waits for it."""
        config, first = self.config, self.update % self.plan.updates * self.config.accum_iter
        lr = lr_at(self.update, config, self.plan.updates)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        alpha, beta = config.weights
        sums = torch.zeros(3, device=self.device)
        for micro_batch in range(first, first + config.accum_iter):
            numbers = order[micro_batch * config.batch_size : (micro_batch + 1) * config.batch_size]
            generator = self._generator("batch", self.epoch, micro_batch)
            patches = self._train_patches(numbers, generator)
            orders = [random_order(len(patches), config.num_patches, generator) for _ in ("static", "dynamic")]
            with self._autocast():
                losses = self.model(patches, *orders, config.num_patches - config.num_masked)
            total = alpha * losses.static + beta * losses.dynamic
            (total / config.accum_iter).backward()
            sums += torch.stack(losses).detach()
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._in_flight.append(_InFlight(self.update, *to_host(sums / config.accum_iter)))
        self.update += 1

    def _report(self, keep: int) -> Iterator[Event]:
        """Events of all updates but the last `keep`."""
        failed: dict[str, float] | None = None
        while len(self._in_flight) > (keep if failed is None else 0):  # also of a failed trial every update has its row
            done = self._in_flight.popleft()
            losses = done.values()
            row = self._batch_row(done.iteration, *losses)
            self._means.add(row)
            yield Event(Level.BATCH, row)
            if failed is None and not all(map(math.isfinite, losses)):
                failed = row
        if failed is not None:
            raise NonFiniteLossError(self._non_finite_message(failed))

    def _batch_row(self, iteration: int, static: float, recon: float, pred: float) -> dict[str, float]:
        """The 16 batch metrics; only three numbers came from the device, the identities are exact in float64."""
        alpha, beta = self.config.weights
        dynamic = recon + pred
        weighted_static, weighted_dynamic = alpha * static, beta * dynamic
        total = weighted_static + weighted_dynamic
        values = (
            total,
            lr_at(iteration, self.config, self.plan.updates),
            iteration // self.plan.updates,
            iteration,
            static,
            dynamic,
            recon,
            pred,
            _ratio(static, dynamic),
            weighted_static,
            weighted_dynamic,
            alpha,
            beta,
            _ratio(weighted_static, total),
            _ratio(weighted_dynamic, total),
            metrics.MODE_JOINT,
        )
        return _present(metrics.BATCH_NAMES, values)

    def _epoch_row(self) -> dict[str, float]:
        alpha, beta = self.config.weights
        mean = self._means.mean
        train_loss = mean("batch/loss_total")
        if self._best is None or train_loss < self._best[0]:
            self._best = (train_loss, self.epoch)
        static, dynamic = mean("batch/loss_static"), mean("batch/loss_dynamic")
        total = alpha * static + beta * dynamic
        values = (
            self.epoch,
            train_loss,
            lr_at(self.update - 1, self.config, self.plan.updates),
            self._best[0],
            static,
            dynamic,
            mean("batch/loss_ratio") if "batch/loss_ratio" in self._means.counts else None,
            mean("batch/weighted_static"),
            mean("batch/weighted_dynamic"),
            _ratio(alpha * static, total),
            _ratio(beta * dynamic, total),
        )
        return _present(metrics.EPOCH_NAMES, values)

    def _non_finite_message(self, row: dict[str, float]) -> str:
        losses = ", ".join(f"{name} = {row[f'batch/{name}']}" for name in ("loss_static", "loss_recon", "loss_pred"))
        size = self.config.batch_size * self.config.accum_iter
        first = int(row["batch/iteration"]) % self.plan.updates * size
        clips = [self.clips.train.clip_id(int(number)) for number in self._epoch_order()[first : first + size]]
        more = ", ..." if len(clips) > 4 else ""
        return (
            f"{losses} at update {row['batch/iteration']} (epoch {row['batch/epoch']}, lr {row['batch/lr']:.3g}, "
            f"clips {', '.join(clips[:4])}{more}); lower base_lr, or clip gradients (clip_grad)"
        )

    # --- data ---

    def _epoch_order(self) -> Tensor:
        """Clip numbers of the current epoch in their order, [clips of the epoch]."""
        generator = self._generator("order", self.epoch, cpu=True)
        return torch.randperm(len(self.clips.train), generator=generator)[: self.plan.clips]

    def _train_patches(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Clips [B] -> normalised patches [B, N, 4, P] on the device; each clip's 4 frames are flipped alike."""
        frames = self._frames(self.clips.train, numbers)
        chances = torch.rand(2, len(frames), generator=generator, device=self.device)
        for chance, draw, axis in ((self.config.data.hflip, chances[0], 3), (self.config.data.vflip, chances[1], 2)):
            if chance > 0:
                frames = torch.where((draw < chance)[:, None, None, None, None], frames.flip(axis), frames)
        return self._normalised_patches(frames)

    def _held_out_patches(self, numbers: Tensor) -> Tensor:
        return self._normalised_patches(self._frames(self.clips.held_out, numbers))

    def _frames(self, clips: ClipSet, numbers: Tensor) -> Tensor:
        frames = torch.from_numpy(clips.gather(numbers.numpy()))
        if self.device.type == "cuda":
            return frames.pin_memory().to(self.device, non_blocking=True)
        return frames.to(self.device)

    def _normalised_patches(self, frames: Tensor) -> Tensor:
        return patchify(frames, self.config.encoder.patch).float() * self._scale + self._shift

    def _generator(self, purpose: str, *place: int, cpu: bool = False) -> torch.Generator:
        name = repr((self.config.seed, purpose, *place)).encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
        return torch.Generator("cpu" if cpu else self.device).manual_seed(seed)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bf16(self.config, self.device))

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain numbers. Waits for the device."""
        return {
            "version": STATE_VERSION,
            "config": self.config.model_dump(mode="json"),
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "update": self.update,
            "epoch": self.epoch,
            "means": {"sums": dict(self._means.sums), "counts": dict(self._means.counts)},
            "in_flight": [[update.iteration, *update.values()] for update in self._in_flight],
            "best": None if self._best is None else list(self._best),
            "seconds": self._elapsed(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a trainer with the same config.

        Raises:
            CheckpointError: the state is of another version, config or architecture. In the last case a part of it is
                loaded already: use a new trainer.
        """
        if state.get("version") != STATE_VERSION:
            raise CheckpointError(f"checkpoint version {state.get('version')!r}; this program reads {STATE_VERSION}")
        ours = self.config.model_dump(mode="json")
        theirs = state.get("config", {})
        changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if changed:
            shown = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in changed)
            raise CheckpointError(f"the checkpoint is of another config ({shown})")
        try:
            self._load(state)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the checkpoint does not fit this model ({type(error).__name__}: {reason})"
            ) from None

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.update, self.epoch = state["update"], state["epoch"]
        self._means = _Means(dict(state["means"]["sums"]), dict(state["means"]["counts"]))
        self._in_flight = deque(
            _InFlight(iteration, torch.tensor(losses, dtype=torch.float64)) for iteration, *losses in state["in_flight"]
        )
        self._best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self._seconds, self._resumed_at = state["seconds"], None


class _Means:
    """Running means of the batch metrics of an epoch, in float64."""

    def __init__(self, sums: dict[str, float] | None = None, counts: dict[str, int] | None = None) -> None:
        self.sums = sums or {}
        self.counts = counts or {}

    def add(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name]


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; vectors (biases, norms), tokens and positions are not (as in timm and MAE)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim >= 2 and not name.endswith(("mask_token", "prefix", "positions"))]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _ratio(part: float, whole: float) -> float | None:
    """part / whole; absent where the whole is 0 (a weight of 0, frames without any change)."""
    return part / whole if whole != 0 else None


def _present(names: tuple[str, ...], values: tuple[float | None, ...]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}
