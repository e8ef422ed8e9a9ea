"""`python -m model.judge RUN`: what a finished run has learnt. Features, their rank, probes and pictures.

    python -m model.judge runs/long --label slip
    python -m model.judge runs/long --label object --set data.root=other/frames --set data.labels=other/objects.csv

RUN is a run's folder or a checkpoint. Beside the trained model it judges one with random weights: what it gains over
that was learnt. Frames are normalised as in training, whatever data they are of.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from model.batches import Batches
from model.checkpoint import LAST
from model.config import TrainConfig
from model.configfile import validated, with_overrides
from model.data.clips import Clips, load_clips
from model.device import pick_device
from model.errors import ConfigError, UserError
from model.evaluate import Evaluator
from model.export import Run, read_run
from model.features import frames_seen, held_out_rank
from model.mae import JointTactileMAE
from model.pictures import reconstructions
from model.probe import Probe
from model.probe_task import labels_of
from model.sinks import write_json, write_picture

MAY_DIFFER = {"data", "probe", "pictures", "device"}  # fields that --set may change: the others made the model
TRAINED, RANDOM = "trained", "random weights"

Rows = dict[str, dict[str, float]]


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m model.judge`."""
    result = argparse.ArgumentParser(
        prog="python -m model.judge",
        description="Judge what a finished run has learnt: rank of its features, probes, pictures.",
        epilog="example: python -m model.judge runs/long --label slip",
    )
    result.add_argument("run", type=Path, help="a run's folder, or a checkpoint")
    result.add_argument("--label", help="label that the probes tell the classes of (default: the run's probe.label)")
    result.add_argument("--out", type=Path, help="folder of judge.json and judge.png (default: the run's)")
    result.add_argument(
        "--set", dest="options", action="append", default=[], metavar="KEY=VALUE", help="change data, probe, device"
    )
    return result


def judge_config(run: Run, options: list[str], label: str | None) -> TrainConfig:
    """The run's config with --set and --label. Raises ConfigError where they do not fit the model."""
    content = with_overrides(run.config.model_dump(mode="json"), options)
    if label is not None:
        content["probe"] = dict(content["probe"]) | {"label": label}
    config = validated(TrainConfig, content, "--set")
    changed = [name for name in TrainConfig.model_fields if getattr(config, name) != getattr(run.config, name)]
    if refused := sorted(set(changed) - MAY_DIFFER):
        raise ConfigError(
            f"--set {refused[0]}: the model is trained already; change only {', '.join(sorted(MAY_DIFFER))} here"
        )
    if config.data.height_width != run.config.data.height_width:
        raise ConfigError(
            f"--set data.image_size={config.data.image_size}: the model is trained for "
            f"{run.config.data.image_size}; leave it out, and frames are resized to that"
        )
    return config


def judge(run: Run, config: TrainConfig, clips: Clips, batches: Batches) -> Rows:
    """The `eval/...` and `probe/...` values of the trained model and of one with random weights."""
    held_out = batches.held_out
    probe = Probe(config, clips)
    evaluate = Evaluator(config, clips.held_out, held_out, batches.mean_patches)
    rows = {}
    for name, model in ((TRAINED, run.model), (RANDOM, JointTactileMAE(config, seed=config.seed))):
        model = model.to(batches.mean_patches.device)
        rows[name] = {
            **evaluate(model, held_out),
            "eval/effective_rank": held_out_rank(model, held_out, len(clips.held_out), frames_seen(config)),
            **probe(model, batches.plain, held_out),
        }
    return rows


def table(rows: Rows, num_train: int, num_held_out: int) -> Table:
    """The values side by side."""
    result = Table(title=f"{num_held_out} held-out clips, probes trained on up to {num_train}", title_justify="left")
    result.add_column("metric")
    for name in rows:
        result.add_column(name, justify="right")
    for metric in rows[TRAINED]:
        result.add_row(metric, *(f"{row[metric]:.4g}" for row in rows.values()))
    return result


def output_folder(run: Path, out: Path | None) -> Path:
    """--out; else the folder of the run."""
    if out is not None:
        return out
    if run.is_dir():
        return run
    return run.absolute().parents[len(LAST.parts) - 1] if run.parent.name == LAST.parent.name else run.parent


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad input)."""
    options = parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        run = read_run(options.run)
        config = judge_config(run, options.options, options.label)
        opened = load_clips(config.data)
        clips = replace(opened, mean=np.array(run.mean, np.float32), std=np.array(run.std, np.float32))
        batches = Batches(config, clips, pick_device(config))
        rows = judge(run, config, clips, batches)
        console.print(table(rows, min(len(clips.train), config.probe.clips), len(clips.held_out)))
        if config.probe.label is None:
            classes, _ = labels_of(clips)
            console.print(
                f"no probe: give --label ({', '.join(classes)})" if classes else "no probe: no clip has labels"
            )
        out = output_folder(options.run, options.out)
        write_json(out / "judge.json", {"checkpoint": str(options.run), "label": config.probe.label, **rows})
        if config.pictures:
            image = reconstructions(run.model, config, clips, batches.held_out, clips.mean, clips.std)
            write_picture(out / "judge.png", image)
        console.print(f"judge.json{' and judge.png' if config.pictures else ''} in {out}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
