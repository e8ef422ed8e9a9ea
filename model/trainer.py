"""The trainer: a generator of events, one row per gradient update, and state that resumes to the last bit on a CPU.

    for event in Trainer(TrainConfig()).train():
        print(event.level, event.values)

Randomness has no state (model/seeding.py): a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model import metrics
from model.batches import Batches
from model.checkpoint import CheckpointError
from model.config import TrainConfig
from model.data.clips import Clips, load_clips
from model.device import pick_device, to_host
from model.distributed import ALONE, Call, World
from model.encoder import unknown_chance
from model.errors import one_line
from model.evaluate import Evaluator
from model.features import frames_seen, held_out_rank
from model.learner import Inputs, Learner
from model.mae import JointTactileMAE
from model.masks import draw_order
from model.metrics import Level
from model.pictures import Picture, reconstructions
from model.plan import EpochPlan
from model.probe import Probe
from model.resuming import check_identity, identity
from model.rows import Means, Update, batch_row, epoch_row
from model.schedule import lr_at
from model.seeding import generator
from model.sinks import Event


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; says at which update and on which clips."""


@dataclass(frozen=True)
class _InFlight:
    """An update that is done or under way on the device, and not yet logged."""

    iteration: int
    numbers: Tensor  # on the host: losses static, recon, pred, and alpha, beta where they move
    arrived: torch.cuda.Event | None = None

    def values(self) -> list[float]:
        """The numbers; waits for the device where they have not arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values: list[float] = self.numbers.double().tolist()
        return values


class Trainer:
    """Trains one config. Iterate `run_epoch()` or `train()`; between two events `state_dict()` holds everything.

    Args:
        config: what to compute.
        clips: the data, opened before; opened (and, the first time, decoded) here if absent.
        world: this process among those that train the model together.
        fresh: False where `load_state_dict` follows: pretrained weights are then not read.

    Raises:
        ConfigError, DataError: the config does not fit the data, or the data cannot be used.
    """

    def __init__(
        self, config: TrainConfig, clips: Clips | None = None, world: World = ALONE, fresh: bool = True
    ) -> None:
        self.config = config
        self.clips = load_clips(config.data) if clips is None else clips
        self.plan = EpochPlan.of(config, len(self.clips.train))
        self.device = pick_device(config)
        self._world, self._rows = world, world.rows(config)
        self.batches = Batches(config, self.clips, self.device)
        self._learner = Learner(config, self.device, world, fresh)
        self._evaluate = Evaluator(config, self.clips.held_out, self.batches.held_out, self.batches.mean_patches)
        self._probe = Probe(config, self.clips)

        self.update = 0  # updates done
        self.epoch = 0  # epochs done
        self._means = Means()
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

    @property
    def sound(self) -> bool:
        """Weights and losses not yet logged are finite: a checkpoint is worth keeping. Waits for the device."""
        weights = all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters())
        return weights and all(math.isfinite(value) for update in self._in_flight for value in update.values())

    @property
    def model(self) -> JointTactileMAE:
        """The model as it is trained."""
        return self._learner.model

    @property
    def loaded(self) -> str | None:
        """What was taken of `encoder.pretrained`, a line; None where nothing was."""
        return self._learner.loaded

    @property
    def judged(self) -> JointTactileMAE:
        """The model that is evaluated, probed and exported: with `ema_decay` the average of the weights."""
        return self._learner.judged

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
        assert self._world.leads, "the other processes follow"
        assert not self.finished, "there is no epoch left"
        self._seconds, self._resumed_at = self._elapsed(), time.perf_counter()  # an iteration given up before counts
        order = self._epoch_order()
        while self.update < (self.epoch + 1) * self.plan.updates:
            self._world.call(Call.UPDATE)
            self._launch_update(order)
            yield from self._report(keep=1)  # the update before: its losses arrived while this one was launched
        yield from self._report(keep=0)
        row = self._epoch_row() | self._judgement()
        self.epoch += 1
        self._means = Means()
        self._seconds, self._resumed_at = self._elapsed(), None
        yield Event(Level.EPOCH, row)
        for name, value in row.items():
            if not math.isfinite(value):  # the epoch's last update broke the weights
                raise NonFiniteLossError(
                    f"{name} = {value} after epoch {self.epoch - 1}; lower base_lr, or clip gradients (clip_grad)"
                )

    def follow(self) -> Call | None:
        """Make every update that the leading process calls for.

        Returns:
            Its first call for something else; None where the run has ended.
        """
        order: Tensor | None = None
        while (call := self._world.called()) is Call.UPDATE:
            epoch = self.update // self.plan.updates
            if order is None or epoch != self.epoch:
                self.epoch = epoch
                order = self._epoch_order()
            self._launch_update(order)
            self._in_flight.clear()  # the leading process reads and reports them
        return call

    def picture(self) -> Picture:
        """Reconstructions of some held-out clips, uint8 [height, width, 3]."""
        return reconstructions(
            self.judged, self.config, self.clips, self.batches.held_out, self.clips.mean, self.clips.std
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
        first = self.update % self.plan.updates * self.config.accum_iter
        micro_batches = (self._inputs(order, number) for number in range(first, first + self.config.accum_iter))
        numbers = self._learner.update(micro_batches, lr_at(self.update, self.config, self.plan.updates))
        self._in_flight.append(_InFlight(self.update, *to_host(numbers)))
        self.update += 1

    def _inputs(self, order: Tensor, micro_batch: int) -> Inputs:
        """This process's part of a micro-batch, augmented and masked."""
        config, size = self.config, self.config.batch_size
        numbers = order[micro_batch * size : (micro_batch + 1) * size]
        draws = generator(config.seed, self.device, "batch", self.epoch, micro_batch)
        progress = self.update / max(1, config.epochs * self.plan.updates - 1)
        unknown = unknown_chance(config.encoder.unknown_sensor, progress)
        batch = self.batches.train(numbers, draws, self._rows, unknown)
        self.batches.read_ahead(order[(micro_batch + 1) * size : (micro_batch + 2) * size][self._rows])
        visible = config.num_patches - config.num_masked
        static, dynamic = (
            draw_order(config.mask_kind, size, config.grid, visible, draws)[self._rows] for _ in ("static", "dynamic")
        )
        mode = self._mode(self.update)
        return Inputs(
            patches=batch.patches,
            static_order=None if mode == metrics.MODE_DYNAMIC else static,
            dynamic_order=None if mode == metrics.MODE_STATIC else dynamic,
            num_visible=visible,
            sensors=batch.sensors,
        )

    def _mode(self, update: int) -> int:
        """0 static, 1 dynamic, 2 joint; the alternating baseline begins with static."""
        modes = {"joint": metrics.MODE_JOINT, "static": metrics.MODE_STATIC, "dynamic": metrics.MODE_DYNAMIC}
        return modes.get(self.config.mode, update % 2)

    # --- rows ---

    def _report(self, keep: int) -> Iterator[Event]:
        """Events of all updates but the last `keep`."""
        failed: Update | None = None
        while len(self._in_flight) > (keep if failed is None else 0):  # also of a failed trial every update has its row
            update = self._logged(self._in_flight.popleft())
            row = batch_row(update)
            self._means.add(row)
            yield Event(Level.BATCH, row)
            if failed is None and not all(map(math.isfinite, row.values())):
                failed = update
        if failed is not None:
            raise NonFiniteLossError(self._non_finite_message(failed))

    def _logged(self, done: _InFlight) -> Update:
        static, recon, pred, *weights = done.values()
        alpha, beta = weights or self.config.weights
        mode = self._mode(done.iteration)
        has_static, has_dynamic = mode != metrics.MODE_DYNAMIC, mode != metrics.MODE_STATIC
        return Update(
            iteration=done.iteration,
            epoch=done.iteration // self.plan.updates,
            lr=lr_at(done.iteration, self.config, self.plan.updates),
            mode=mode,
            alpha=alpha,
            beta=beta,
            static=static if has_static else None,
            recon=recon if has_dynamic else None,
            pred=pred if has_dynamic else None,
        )

    def _judgement(self) -> dict[str, float]:
        """The evaluation after an epoch, and the probe where one is due."""
        load, every = self.batches.held_out, self.config.probe.every_epochs
        row = self._evaluate(self.judged, load)
        row["eval/effective_rank"] = held_out_rank(
            self.judged, load, len(self.clips.held_out), frames_seen(self.config)
        )
        done = self.epoch + 1
        if done == self.config.epochs or (every is not None and done % every == 0):
            row |= self._probe(self.judged, self.batches.plain, load)
        return row

    def _epoch_row(self) -> dict[str, float]:
        train_loss = self._means.mean("batch/loss_total")
        assert train_loss is not None, "an epoch has at least one update"
        if self._best is None or train_loss < self._best[0]:
            self._best = (train_loss, self.epoch)
        return epoch_row(self.epoch, self._means, lr_at(self.update - 1, self.config, self.plan.updates), self._best[0])

    def _non_finite_message(self, update: Update) -> str:
        named = (("loss_static", update.static), ("loss_recon", update.recon), ("loss_pred", update.pred))
        losses = ", ".join(f"{name} = {value}" for name, value in named if value is not None)
        size = self.config.batch_size * self.config.accum_iter
        first = update.iteration % self.plan.updates * size
        clips = [self.clips.train.clip_id(int(number)) for number in self._epoch_order()[first : first + size]]
        more = ", ..." if len(clips) > 4 else ""
        return (
            f"{losses} at update {update.iteration} (epoch {update.epoch}, lr {update.lr:.3g}, "
            f"clips {', '.join(clips[:4])}{more}); lower base_lr, or clip gradients (clip_grad)"
        )

    def _epoch_order(self) -> Tensor:
        """Clip numbers of the current epoch in their order, [clips of the epoch]."""
        draws = generator(self.config.seed, torch.device("cpu"), "order", self.epoch)
        drawn = self.clips.draw(self.plan.clips, lambda count: torch.randperm(count, generator=draws).numpy())
        return torch.from_numpy(drawn)

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain numbers. Waits for the device."""
        return {
            **identity(self.config, self.clips),
            **self._learner.state_dict(),
            "update": self.update,
            "epoch": self.epoch,
            "means": {"sums": dict(self._means.sums), "counts": dict(self._means.counts)},
            "in_flight": [[update.iteration, *update.values()] for update in self._in_flight],
            "best": None if self._best is None else list(self._best),
            "seconds": self._elapsed(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a trainer with the same config and data.

        Raises:
            CheckpointError: the state is of another version, config, data or architecture. In the last case a part of
                it is loaded already: use a new trainer.
        """
        check_identity(state, self.config, self.clips)
        try:
            self._load(state)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this model ({type(error).__name__}: {one_line(error)})"
            ) from None

    def _load(self, state: dict[str, Any]) -> None:
        self._learner.load_state_dict(state, updates=state["update"])
        self.update, self.epoch = state["update"], state["epoch"]
        self._means = Means(dict(state["means"]["sums"]), dict(state["means"]["counts"]))
        self._in_flight = deque(
            _InFlight(iteration, torch.tensor(losses, dtype=torch.float64)) for iteration, *losses in state["in_flight"]
        )
        self._best = None if state["best"] is None else (state["best"][0], state["best"][1])
        self._seconds, self._resumed_at = state["seconds"], None
