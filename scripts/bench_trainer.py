"""The speed of a training step: ours against a plain one, what logging costs, and whether the data keeps up.

    python scripts/bench_trainer.py                      # the default size; on a GPU also ViT-B/16 and ViT-L/14
    python scripts/bench_trainer.py --size vit_base --compile

The plain step is in plain_trainer.py: the same maths on the same weights, as the usual MAE code writes it. The two take
turns, a block of steps each, and every ratio is one of neighbouring blocks: a slow minute of the machine hits both.
About 2 minutes at the default size on 2 cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from plain_trainer import PlainTrainer

from model.config import TrainConfig
from model.data.config import CLIP_FRAMES, TUBE_FRAMES
from model.device import pick_precision
from model.metrics import Level
from model.seeding import generator
from model.sinks import CsvSink, Event, Sink
from model.trainer import Trainer
from sweep.blocks import WandbSettings
from sweep.wandb_run import RunIdentity
from sweep.wandb_sink import WandbSink

ANCESTORS: dict[str, Any] = {"decoder": {"width": 512, "depth": 8, "heads": 16}, "batch_size": 64}
SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "vit_base": ANCESTORS | {"encoder": {"name": "vit_base_patch16_224"}},
    "vit_large": ANCESTORS | {"encoder": {"name": "vit_large_patch14_clip_224"}},
}
FRAMES = 16  # of a procedural press, which gives 13 clips
WARM_UP = 2  # blocks of each kind that are not counted: allocators, kernels' choices, compilation


class Block(NamedTuple):
    """Seconds of one step, the mean of a block: on the wall, and of this process on all cores."""

    wall_s: float
    cpu_s: float


Run = Callable[[], Block]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="may be repeated; all if absent")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch-size", type=int, help="clips of a step (default: 32, of the ViTs 64)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of blocks")
    parser.add_argument("--compile", action="store_true", help="torch.compile of ours; the plain step is as it is")
    options = parser.parse_args()
    gpu = options.device != "cpu" and torch.cuda.is_available()
    for size in options.size or SIZES:
        if size != "default" and not gpu and options.device != "cpu":
            print(f"{size}: left out, there is no GPU here (--device cpu tries it all the same, slowly)")
            continue
        with tempfile.TemporaryDirectory() as folder:
            given = {"device": options.device, "compile": options.compile}
            if options.batch_size is not None:
                given["batch_size"] = options.batch_size
            config = make_config(size, options.steps, Path(folder), given)
            measure(size, config, options.pairs, Path(folder))


def make_config(size: str, steps: int, folder: Path, given: dict[str, Any]) -> TrainConfig:
    """An epoch is a block of steps, so that nothing else of an epoch falls into one."""
    content = SIZES[size] | given
    clips = steps * content.get("batch_size", TrainConfig.model_fields["batch_size"].default)
    data = {
        "image_size": 48 if size == "default" else 224,
        "clips_per_epoch": clips,
        "eval_clips": 8,
        # a fifth is held out; one more for what rounding takes
        "synthetic": {"frames": FRAMES, "sequences": 2 + clips * 5 // (4 * (FRAMES - CLIP_FRAMES + 1)) + 1},
        "store_dir": folder / "store",
    }
    return TrainConfig.model_validate(content | {"data": data, "epochs": 1_000_000})


def measure(size: str, config: TrainConfig, pairs: int, folder: Path) -> None:
    trainer = Trainer(config)
    plain = PlainTrainer(config, trainer.clips, trainer.model, trainer.device)
    steps, batch = trainer.plan.updates, config.batch_size
    where = torch.cuda.get_device_name() if trainer.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    precision = pick_precision(config, trainer.device)
    compiled = ", ours compiled" if config.compile else ""
    print(f"{size}: {where}, {precision}{compiled}, batch {batch}; {pairs} pairs of blocks of {steps} steps")

    ours, theirs = interleaved(lambda: our_block(trainer), lambda: plain_block(plain, steps), pairs)
    step_s = statistics.median(block.wall_s for block in ours)
    for name, blocks in (("ours ", ours), ("plain", theirs)):
        wall, cpu = (1000 * statistics.median(part) for part in zip(*blocks, strict=True))
        total, grown = peak_memory(config, name.strip())
        print(
            f"  {name}  {wall:8.2f} ms a step ({cpu:.2f} ms of CPU time)  {1000 * batch / wall:8.1f} clips/s  "
            f"peak memory {total / 1e6:.0f} MB, {grown / 1e6:.0f} MB of it in the steps"
        )
    print(f"  plain / ours: {ratio_text(theirs, ours)}")

    rate = matrix_rate(trainer.device, precision)
    flops = 3 * forward_flops(config, trainer)
    used = flops * batch / step_s
    print(
        f"  {flops / 1e9:.3f} GFLOP a clip, {used / 1e12:.3f} TFLOP/s: model FLOPs utilisation {used / rate:.0%} of "
        f"the {rate / 1e12:.3f} TFLOP/s of a large {precision} matrix product"
    )
    logging_cost(trainer, pairs, folder)
    data_path(trainer, batch / step_s)


def our_block(trainer: Trainer, log: Callable[[Event], None] | None = None) -> Block:
    """One epoch, timed until its last batch event: the losses of the last update have come from the device by then."""
    wall, cpu = time.perf_counter(), time.process_time()
    block = None
    for event in trainer.run_epoch():
        if event.level is Level.BATCH:
            if log is not None:
                log(event)
            block = Block(time.perf_counter() - wall, time.process_time() - cpu)
    assert block is not None
    return Block(*(seconds / trainer.plan.updates for seconds in block))


def plain_block(plain: PlainTrainer, steps: int) -> Block:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in plain.run(steps):
        pass
    return Block((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)


def interleaved(first: Run, second: Run, pairs: int) -> tuple[list[Block], list[Block]]:
    """Blocks of both in turn; which goes first alternates too."""
    for _ in range(WARM_UP):
        first(), second()
    blocks: tuple[list[Block], list[Block]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            blocks[which].append((first, second)[which]())
    return blocks


def ratio_text(above: list[Block], below: list[Block]) -> str:
    """Median and quartiles of the pairs' ratios, of wall and of CPU time."""
    texts = []
    for index, what in enumerate(("wall", "CPU")):
        ratios = [a[index] / b[index] for a, b in zip(above, below, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        texts.append(f"{middle:.3f} ({low:.3f}-{high:.3f}) in {what} time")
    return ", ".join(texts)


def peak_memory(config: TrainConfig, which: str) -> tuple[int, int]:
    """(peak bytes, of which the steps took) of a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, config, which).result()


def _peak_memory(config: TrainConfig, which: str) -> tuple[int, int]:
    trainer = Trainer(config)
    if which == "plain":
        plain = PlainTrainer(config, trainer.clips, trainer.model, trainer.device)
    cuda = trainer.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else psutil.Process().memory_info().rss
    if which == "plain":
        plain_block(plain, trainer.plan.updates)
    else:
        our_block(trainer)
    if cuda:
        peak = torch.cuda.max_memory_allocated()
    else:  # not ru_maxrss, which a process inherits from its parent
        status = Path("/proc/self/status").read_text()
        peak = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return peak, peak - before


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square matrix product, the median of several."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side, repeats = (8192, 20) if device.type == "cuda" else (1024, 20)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return float(2 * side**3 / statistics.median(seconds[repeats // 4 :]))


def forward_flops(config: TrainConfig, trainer: Trainer) -> int:
    """Multiply-adds of matrices in one clip's forward pass, times 2; backward takes twice as many.

    2E + 2D + embeddings + heads with E = L (24 n d^2 + 4 n^2 d) for n visible tokens, D likewise for all N: what the
    losses need, whoever computes them and however wastefully.
    """
    encoder, decoder = trainer.model.encoder, config.decoder
    total = config.num_patches
    masked = config.num_masked
    visible, pixels = total - masked, 3 * config.encoder.patch**2
    tokens = visible + encoder.num_prefix
    branch = _vit_flops(len(encoder.blocks), tokens, encoder.width) + _vit_flops(decoder.depth, total, decoder.width)
    embeddings = 2 * visible * encoder.width * (pixels + TUBE_FRAMES * pixels + 2 * decoder.width)
    heads = 2 * decoder.width * pixels * (masked + TUBE_FRAMES * masked + total)
    return 2 * branch + embeddings + heads


def _vit_flops(depth: int, tokens: int, width: int) -> int:
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def logging_cost(trainer: Trainer, pairs: int, folder: Path) -> None:
    """Every batch row to CSV and offline W&B, against none."""
    identity = RunIdentity("bench", "bench", "bench", "bench", None, folder)
    sinks: list[Sink] = [CsvSink(folder / "rows"), WandbSink(identity, {}, WandbSettings(mode="offline"))]
    timed = Timed(sinks)
    logged, silent = interleaved(lambda: our_block(trainer, timed.log), lambda: our_block(trainer), pairs)
    for sink in sinks:
        sink.close(0)
    step_s = statistics.median(block.wall_s for block in silent)
    call_s = statistics.fmean(timed.seconds)  # not the median: some calls may do the work of others
    print(
        f"  logging to CSV and offline W&B: steps take {ratio_text(logged, silent)};\n"
        f"    handing a row over takes {1e6 * call_s:.0f} us of the training thread, {call_s / step_s:.2%} of a step"
    )


class Timed:
    """Hands events on, and notes how long that takes."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.seconds: list[float] = []
        self._sinks = sinks

    def log(self, event: Event) -> None:
        start = time.perf_counter()
        for sink in self._sinks:
            sink.log(event)
        self.seconds.append(time.perf_counter() - start)


def data_path(trainer: Trainer, eaten: float) -> None:
    """Gather, copy to the device, flip and normalise, without a step beside it; `eaten` is in clips a second."""
    config, seconds = trainer.config, []
    for number in range(WARM_UP + 30):
        draws = generator(config.seed, trainer.device, "benchmark", number)
        numbers = torch.randint(len(trainer.clips.train), (config.batch_size,), generator=torch.Generator())
        synchronise(trainer.device)
        start = time.perf_counter()
        trainer.batches.train(numbers, draws, slice(None))
        synchronise(trainer.device)
        seconds.append(time.perf_counter() - start)
    fed = config.batch_size / statistics.median(seconds[WARM_UP:])
    print(f"  data path alone: {fed:.0f} clips/s, {fed / eaten:.1f} times what the step eats")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
