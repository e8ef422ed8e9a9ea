"""A training run with a folder: rows, checkpoints and pictures go there; it can be stopped at any update and go on."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from model.bars import bar, decoding
from model.checkpoint import forget_previous, has_checkpoint, resume_from, save_checkpoint
from model.config import TrainConfig
from model.data.clips import load_clips
from model.device import pick_device
from model.distributed import World, joined
from model.encoder import check_encoder
from model.errors import ConfigError, UserError
from model.folder import LAST
from model.metrics import Level
from model.sinks import CsvSink, Row, write_text
from model.stopping import StopRequest
from model.trainer import NonFiniteLossError, Trainer

SAVE_EVERY_S = 600.0  # within an epoch; at its end there is a checkpoint in any case


def run(config: TrainConfig, out: Path, resume: Path | None, console: Console) -> None:
    """Train to the end; a line per epoch. Under torchrun, all its processes call this and the first one writes.

    Args:
        out: folder of the run; made if absent.
        resume: the checkpoint to go on from.

    Raises:
        UserError: bad input (ConfigError, DataError, CheckpointError), or the loss became NaN or infinite.
        KeyboardInterrupt: the run was asked to stop and has left a checkpoint, where there was anything to keep.
    """
    with joined(pick_device(config).type) as world:
        trainer = _trainer(config, resume, world, console)
        if not world.leads:
            with StopRequest():  # torchrun signals all its processes; the leading one decides
                trainer.follow()
            return
        _make_folder(out)
        sink = CsvSink(out, keep_batches=trainer.reported, keep_epochs=trainer.epoch)
        write_text(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        shared = f", {world.size} processes" if world.size > 1 else ""
        console.print(
            f"{trainer.plan.updates} updates an epoch, {config.epochs} epochs, on {trainer.device}{shared}; "
            f"mask {config.effective_mask_ratio:.4g} ({config.num_masked} of {config.num_patches} patches)"
        )
        if trainer.loaded is not None:
            console.print(trainer.loaded)
        if trainer.finished:
            console.print("the run was finished already; nothing is left to train")
        try:
            _train(trainer, out, sink, console)
            if config.pictures:
                sink.picture("reconstruction", trainer.picture())
        finally:
            sink.close(0)
        console.print(f"rows in {out}, weights in {out / LAST}")


def _trainer(config: TrainConfig, resume: Path | None, world: World, console: Console) -> Trainer:
    check_encoder(config)  # before frames are decoded for it
    if world.leads:  # the others wait at the store's lock, and find it built
        with decoding(console) as progress:
            clips = load_clips(config.data, progress)
    else:
        clips = load_clips(config.data)
    if resume is None:
        return Trainer(config, clips, world)

    def going_on(state: dict[str, Any]) -> Trainer:
        trainer = Trainer(config, clips, world, fresh=False)
        trainer.load_state_dict(state)
        return trainer

    trainer, note = resume_from(resume, going_on)
    if note is not None and world.leads:
        console.print(f"note: {note}")
    return trainer


def _train(trainer: Trainer, out: Path, sink: CsvSink, console: Console) -> None:
    saved_at = time.monotonic()
    with StopRequest() as stop, bar(console, "updates") as shown:
        task = shown.add_task("", total=trainer.config.epochs * trainer.plan.updates, completed=trainer.update)
        try:
            for event in trainer.train():
                sink.log(event)
                if event.level is Level.BATCH:
                    shown.advance(task)
                    if not math.isfinite(event.values["batch/loss_total"]):
                        continue  # the trainer ends it; the last checkpoint stays one of sound weights
                    if stop.asked:
                        break
                    if time.monotonic() - saved_at < SAVE_EVERY_S:
                        continue
                if event.level is Level.SUMMARY:
                    break  # the last epoch was saved
                if event.level is Level.EPOCH:
                    if not all(map(math.isfinite, event.values.values())):
                        continue
                    console.print(epoch_line(event.values, trainer.config.epochs))
                _save(trainer, out)
                saved_at = time.monotonic()
                if stop.asked and not trainer.finished:
                    break
        except NonFiniteLossError as error:
            sink.log(trainer.summary())
            last = f"; the last good checkpoint is {out / LAST}" if has_checkpoint(out / LAST) else ""
            raise UserError(f"diverged: {error}{last}") from None
        except OSError as error:  # a full disk, mostly
            raise UserError(f"{out} cannot be written: {error}. Make room, then: {_how_to_go_on(out)}") from None
        except KeyboardInterrupt:  # asked twice: what is on the device is given up
            sink.log(trainer.summary())
            console.print(f"stopped. {_how_to_go_on(out)}")
            raise
        if stop.asked and not trainer.finished:
            _save(trainer, out)
            sink.log(trainer.summary())
            console.print(f"stopped. {_how_to_go_on(out)}")
            raise KeyboardInterrupt
    forget_previous(out / LAST)


def _save(trainer: Trainer, out: Path) -> None:
    """Write a checkpoint, unless the update under way has broken the weights: the trainer says so one update later."""
    if trainer.sound:
        save_checkpoint(out / LAST, trainer.state_dict(), keep_previous=True)


def _how_to_go_on(out: Path) -> str:
    if has_checkpoint(out / LAST):
        return f"Go on with --resume {out / LAST}"
    return "start again, there is no checkpoint yet"


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; give a folder that you may write to") from None


def epoch_line(row: Row, epochs: int) -> str:
    """What is printed of an epoch."""
    parts = [f"epoch {int(row['epoch']) + 1:>3}/{epochs}", f"train {row['epoch/train_loss']:.4f}"]
    if "eval/reference_loss" in row:
        parts.append(f"reference {row['eval/reference_loss']:.4f}")
    parts += [
        f"{name} skill {row[f'eval/{name}_skill']:+.3f}" for name in ("static", "pred") if f"eval/{name}_skill" in row
    ]
    parts += [
        f"{name}{'' if name == 'chance' else ' probe'} {row[f'probe/{name}_accuracy']:.3f}"
        for name in ("linear", "attentive", "chance")
        if f"probe/{name}_accuracy" in row
    ]
    return "  ".join([*parts, f"lr {row['epoch/lr']:.2e}"])
