"""`python -m model.train CONFIG.yaml`: train one config without Ray, W&B or Optuna.

    python -m model.train results/alpha_beta/best.yaml --set epochs=100 --out runs/long

Writes `config.yaml`, `batch.csv`, `epoch.csv`, `summary.json` and `checkpoint/last.pt` into the output folder.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import yaml
from rich.console import Console

from model.config import TrainConfig
from model.configfile import load_yaml, validated, with_overrides
from model.errors import ConfigError, UserError
from model.metrics import Level
from model.sinks import CsvSink, Event, write_text

CHECKPOINT = Path("checkpoint") / "last.pt"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m model.train`."""
    result = argparse.ArgumentParser(
        prog="python -m model.train",
        description="Train one config of the joint tactile MAE.",
        epilog="example: python -m model.train results/alpha_beta/best.yaml --set epochs=100 --out runs/long",
    )
    result.add_argument("config", type=Path, help="YAML file of TrainConfig fields, such as a sweep's best.yaml")
    result.add_argument(
        "--set", dest="options", action="append", default=[], metavar="KEY=VALUE", help="change a field"
    )
    result.add_argument("--out", type=Path, help="output folder (default: the checkpoint's, else runs/<config>)")
    result.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="go on from this checkpoint")
    return result


def load_config(path: Path, options: list[str]) -> TrainConfig:
    """The TrainConfig of a YAML file. Raises ConfigError."""
    return validated(TrainConfig, with_overrides(load_yaml(path), options), str(path))


def output_folder(options: argparse.Namespace) -> Path:
    """--out; else the run's own folder if it goes on, or runs/<name of the config file>."""
    if options.out is not None:
        return Path(options.out)
    if options.resume is not None:
        return Path(options.resume).absolute().parents[len(CHECKPOINT.parts) - 1]
    return Path("runs") / options.config.stem


def train(config: TrainConfig, out: Path, resume: Path | None, console: Console) -> None:
    """Train to the end; a line per epoch. Interrupted, it leaves a checkpoint to go on from."""
    from model.checkpoint import load_checkpoint, save_checkpoint  # torch: not before the config is known to be good
    from model.trainer import Trainer

    if resume is None and (out / CHECKPOINT).exists():
        raise ConfigError(
            f"--out {out}: holds a run already; give --resume {out / CHECKPOINT} to go on with it, or another --out"
        )
    state = None if resume is None else load_checkpoint(resume)
    trainer = Trainer(config)
    keep_epochs = keep_batches = 0
    if state is not None:
        trainer.load_state_dict(state)
        keep_epochs, keep_batches = trainer.epoch, trainer.reported
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; give a folder that you may write to") from None
    sink = CsvSink(out, keep_batches, keep_epochs)
    write_text(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    console.print(
        f"{trainer.plan.updates} updates an epoch, {config.epochs} epochs, on {trainer.device}; "
        f"mask {config.effective_mask_ratio:.4g} ({config.num_masked} of {config.num_patches} patches)"
    )
    try:
        for event in trainer.train():
            sink.log(event)
            if event.level is Level.EPOCH and all(map(math.isfinite, event.values.values())):
                save_checkpoint(out / CHECKPOINT, trainer.state_dict())
                console.print(_epoch_line(event, config.epochs))
    except KeyboardInterrupt:
        sink.log(trainer.summary())
        kept = (out / CHECKPOINT).exists()
        how = f"the last whole epoch is kept. Go on with --resume {out / CHECKPOINT}" if kept else "no epoch was done"
        console.print(f"stopped; {how}")
        raise
    except FloatingPointError as error:
        sink.log(trainer.summary())
        last = f"; the last good checkpoint is {out / CHECKPOINT}" if (out / CHECKPOINT).exists() else ""
        raise UserError(f"diverged: {error}{last}") from None
    finally:
        sink.close(0)
    console.print(f"rows in {out}, weights in {out / CHECKPOINT}")


def _epoch_line(event: Event, epochs: int) -> str:
    row = event.values
    skills = "".join(
        f"  {name} skill {row[f'eval/{name}_skill']:+.3f}" for name in ("static", "pred") if f"eval/{name}_skill" in row
    )
    return (
        f"epoch {int(row['epoch']) + 1:>3}/{epochs}  train {row['epoch/train_loss']:.4f}  "
        f"reference {row['eval/reference_loss']:.4f}{skills}  lr {row['epoch/lr']:.2e}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input or diverged, 130 interrupted)."""
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        config = load_config(options.config, options.options)
        train(config, output_folder(options), options.resume, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
