"""Train the trials of the replay table: the default sweep's trainer over its space, every epoch's metrics kept.

    python scripts/make_replay_table.py --jobs 2 [--frames ROOT]      # hours; goes on where it was stopped
    python scripts/make_replay_table.py --pack                        # -> scripts/evidence/replay_*.csv.gz

The points are a scrambled Sobol sequence over the space of sweeps/alpha_beta.yaml (alpha, log base_lr, mask_ratio),
and the two presets. A row is an epoch: all epoch and `eval/` metrics, the mean and the relative spread of the epoch's
`batch/loss_ratio`, and after the last epoch the accuracy of linear probes. The probes have clips of their own, many
more than a trial's held-out ones. Procedural: presses of another seed (indenter, motion, slip). Real: recordings of
objects, the first ones to learn from and the second ones to be told (object), and the kind of handling, split by
object (label).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

EVIDENCE = Path(__file__).parent / "evidence"
SPECS = {"procedural": "sweeps/alpha_beta.yaml", "real": "sweeps/real_frames.yaml"}
POINTS = {"procedural": 96, "real": 48}
SEEDS = {"procedural": (0, 1), "real": (0, 1)}
PRESET_SEEDS = (0, 1, 2, 3, 4, 5)
SOBOL_SEED = 4
PROBE_SEQUENCES = 256  # procedural presses of the probes' own data set
PROBE_CLIPS = 2048  # of each side, at most
REAL_SPLIT = 0  # holds out the second recordings
DIGITS = 7  # of a number in the table


@dataclass(frozen=True)
class Job:
    """A trial to train. Points from 0 are Sobol's; -1 and -2 are the presets (equal and balanced weights)."""

    source: str
    point: int
    seed: int
    alpha: float
    base_lr: float
    mask_ratio: float

    @property
    def file(self) -> str:
        """Name of its rows' file."""
        return f"{self.source}_{self.point:+04d}_{self.seed}.csv"


def jobs(source: str) -> list[Job]:
    """All trials of a source; the first seed of every point comes first."""
    from scipy.stats import qmc

    unit = qmc.Sobol(3, scramble=True, rng=np.random.default_rng(SOBOL_SEED)).random_base2(7)[: POINTS[source]]
    points = [
        (round(0.1 + 0.8 * a, 4), float(f"{0.002 * 30**b:.4g}"), round(0.05 * round((0.5 + 0.4 * c) / 0.05), 2))
        for a, b, c in unit
    ]
    presets = [Job(source, p, seed, a, 8e-3, 0.75) for seed in PRESET_SEEDS for p, a in ((-1, 0.5), (-2, 0.75))]
    return (
        presets[:2]
        + [Job(source, number, seed, *point) for seed in SEEDS[source] for number, point in enumerate(points)]
        + presets[2:]
    )


def train(job: Job, frames: Path | None) -> list[dict[str, Any]]:
    """The rows of a trial."""
    import torch

    from model.sinks import History
    from model.trainer import Trainer
    from sweep.objective import relative_spread
    from sweep.spec import load_spec

    torch.set_num_threads(1)
    options = [] if job.source == "procedural" else [f"trainer.data.root={frames}"]
    spec = load_spec(SPECS[job.source], options)
    values = {"alpha": job.alpha, "base_lr": job.base_lr, "mask_ratio": job.mask_ratio, "seed": job.seed}
    config = spec.space.to_config(spec.trainer, values)
    trainer, history = Trainer(config), History()
    for event in trainer.train():
        history.log(event)
    rows = []
    for row in history.epoch:
        ratios = [b["batch/loss_ratio"] for b in history.batch if b["batch/epoch"] == row["epoch"]]
        spread = {"ratio_mean": math.fsum(ratios) / len(ratios), "ratio_spread": relative_spread(ratios)}
        rows.append({"point": job.point, "seed": job.seed, **values, **row, **spread})
    rows[-1] |= probes(job.source, trainer, frames)
    return rows


def probe_data(source: str, frames: Path | None) -> dict[str, Any]:
    """Label -> the clips that its probe learns from and is tested on."""
    from model.data.config import DataConfig, SyntheticConfig

    if source == "procedural":
        synthetic = SyntheticConfig(sequences=PROBE_SEQUENCES, seed=1001)
        data = DataConfig(image_size=48, synthetic=synthetic, eval_fraction=0.4, eval_clips=PROBE_CLIPS)
        return dict.fromkeys(("indenter", "motion", "slip"), data)
    assert frames is not None
    shared = {"source": "frames", "root": frames, "labels": frames.parent / "manifest.csv", "image_size": (48, 64)}
    recordings = DataConfig(**shared, group_pattern="__(exp.+?)__", eval_clips=PROBE_CLIPS, split_seed=REAL_SPLIT)
    objects = DataConfig(**shared, group_pattern="^(.+?)__", eval_clips=PROBE_CLIPS, eval_fraction=0.4)
    return {"object": recordings, "label": objects}


def probes(source: str, trainer: Any, frames: Path | None) -> dict[str, float]:
    """Accuracy and balanced accuracy of a linear probe for each label."""
    from model.batches import Batches
    from model.config import ProbeConfig
    from model.data.clips import load_clips
    from model.features import clip_features
    from model.probe import linear_probe, scores
    from model.probe_task import ProbeTask

    found = {}
    for label, data in probe_data(source, frames).items():
        clips = replace(load_clips(data), mean=trainer.clips.mean, std=trainer.clips.std)
        task = ProbeTask.of(ProbeConfig(label=label, clips=PROBE_CLIPS), clips)
        assert task is not None
        batches = Batches(trainer.config.model_copy(update={"data": data}), clips, trainer.device)
        features = clip_features(trainer.model, batches.plain, task.train.numbers)
        test = clip_features(trainer.model, batches.held_out, task.held_out.numbers)
        told = linear_probe(features, task.train.classes, task.groups, len(task.names), test)
        found[f"probe_{label}"], found[f"probe_{label}_balanced"] = scores(told, task.held_out.classes)
    return found


def work(task: tuple[Job, Path, Path | None]) -> str:
    """Train one trial and leave its rows in `folder`; a file there is complete."""
    job, folder, frames = task
    started = time.perf_counter()
    try:
        rows = train(job, frames)
    except ArithmeticError as error:  # diverged: a fact worth a row
        rows = [{"point": job.point, "seed": job.seed, "diverged": str(error)}]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = folder / f".{job.file}"
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.rename(folder / job.file)
    return f"{job.file}: {time.perf_counter() - started:.1f} s"


def pack(source: str, folder: Path) -> Path:
    """All rows of a source in one compressed table, sorted by point, seed and epoch."""
    rows: list[dict[str, str]] = []
    for file in sorted(folder.glob(f"{source}_*.csv")):
        with file.open(encoding="utf-8", newline="") as text:
            rows += csv.DictReader(text)
    rows.sort(key=lambda row: (int(row["point"]), int(row["seed"]), float(row.get("epoch") or 0)))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: short(value) for name, value in row.items()} for row in rows)
    EVIDENCE.mkdir(exist_ok=True)
    path = EVIDENCE / f"replay_{source}.csv.gz"
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))  # equal rows make equal bytes
    return path


def short(value: str) -> str:
    """A number with DIGITS digits; other text as it is."""
    try:
        return f"{float(value):.{DIGITS}g}"
    except ValueError:
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, each on one core")
    parser.add_argument("--frames", type=Path, help="folder of the GelSight Mini sequences; without it no real trials")
    parser.add_argument("--folder", type=Path, default=Path("results/replay"), help="rows of finished trials")
    parser.add_argument("--limit", type=int, help="train at most so many now")
    parser.add_argument("--pack", action="store_true", help="train nothing; make the tables of what is there")
    options = parser.parse_args()
    console = Console(highlight=False)
    if options.pack:
        for source in SPECS:
            if any(options.folder.glob(f"{source}_*.csv")):
                console.print(f"{pack(source, options.folder)}")
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    sources = [source for source in SPECS if source == "procedural" or options.frames is not None]
    frames = options.frames.absolute() if options.frames else None
    # in turn, so that a table made of what is there is balanced
    todo = sorted(
        (
            (place / len(of_source), job)
            for source in sources
            for of_source in [jobs(source)]
            for place, job in enumerate(of_source)
        ),
        key=lambda pair: pair[0],
    )
    tasks = [(job, options.folder, frames) for _, job in todo if not (options.folder / job.file).exists()]
    tasks = tasks[: options.limit]
    with get_context("spawn").Pool(options.jobs) as pool:
        for line in track(pool.imap_unordered(work, tasks), "trials", total=len(tasks), console=console):
            console.print(line)


if __name__ == "__main__":
    main()
