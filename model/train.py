"""`python -m model.train CONFIG.yaml`: train one config without Ray, W&B or Optuna.

    python -m model.train results/alpha_beta/best.yaml --set epochs=100 --out runs/long

    torchrun --nproc-per-node 2 -m model.train CONFIG.yaml

Writes `config.yaml`, `batch.csv`, `epoch.csv`, `summary.json`, `checkpoint/last.pt` and `pictures/` into the output
folder. Under torchrun the processes train together; batch_size is their common batch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from model.config import TrainConfig
from model.configfile import load_yaml, validated, with_overrides
from model.errors import ConfigError, UserError
from model.folder import LAST


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
        return Path(options.resume).absolute().parents[len(LAST.parts) - 1]
    return Path("runs") / options.config.stem


def check_folder(out: Path, resume: Path | None) -> None:
    """Raise ConfigError where the folder holds a run that is not to be gone on with, or none where one is."""
    if resume is None and (out / LAST).exists():
        raise ConfigError(
            f"--out {out}: holds a run already; give --resume {out / LAST} to go on with it, or another --out"
        )
    if resume is not None and resume.exists() and not (out / "batch.csv").exists():
        raise ConfigError(
            f"--out {out}: holds no rows of a run, so a resumed one cannot go on there; leave --out out to go on in "
            "the folder of the checkpoint, or copy that whole folder"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input or diverged, 130 interrupted)."""
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        config = load_config(options.config, options.options)
        out = output_folder(options)
        check_folder(out, options.resume)
        from model.runner import run  # torch: not before the config is known to be good

        run(config, out, options.resume, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
