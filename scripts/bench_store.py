"""The frame store in numbers: decoding by threads, checking, random clips, and the memory of several processes.

    python scripts/bench_store.py                        # made-up JPEG frames, about 30 seconds on 2 cores
    python scripts/bench_store.py --root path/to/frames --image-size 48
    python scripts/bench_store.py --root path/to/videos --source videos

Decoding is everything from the files (which the page cache holds after a first pass) to a store on the disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue

import numpy as np
import psutil
from PIL import Image

from model.data.building import build
from model.data.clips import load_clips
from model.data.config import DataConfig, SyntheticConfig
from model.data.sources import open_source
from model.data.store import open_store, read_store, verify
from model.data.synthetic import make_press

BATCH = 32
REPEATS = 3
CAMERA = (240, 320)  # height and width of the made-up JPEG files, those of a GelSight Mini's recordings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, metavar="DIR", help="files to decode")
    parser.add_argument("--source", choices=["frames", "videos"], default="frames", help="what --root holds")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--processes", type=int, default=4, help="that share the store")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or made_up_frames(Path(folder) / "frames")
        data = DataConfig(
            source=options.source, root=root, image_size=options.image_size, store_dir=Path(folder) / "store"
        )
        decoding(data, Path(folder))
        start = time.perf_counter()
        store = open_store(data)
        built = time.perf_counter() - start
        print(f"store: {len(store.frames)} frames, {store.frames.nbytes / 1e6:.1f} MB, built in {built:.1f} s")
        checking(data, store.folder)
        gathering(data)
        sharing(store.folder, options.processes)


def made_up_frames(root: Path, sequences: int = 16, frames: int = 100) -> Path:
    """JPEG files that look like a GelSight's: 16 presses, each of whose frames is used several times."""
    for number in range(sequences):
        (root / f"press_{number}").mkdir(parents=True)
        press, _ = make_press(SyntheticConfig(frames=8), number, (CAMERA[0] // 2, CAMERA[1] // 2))
        for index in range(frames):
            image = Image.fromarray(press[index * len(press) // frames]).resize(CAMERA[::-1])
            image.save(root / f"press_{number}" / f"{index}.jpg", quality=90)
    return root


def decoding(data: DataConfig, folder: Path) -> None:
    source = open_source(data)
    threads = [2**power for power in range((os.cpu_count() or 1).bit_length() + 1)]  # up to twice the cores
    walls: dict[int, list[float]] = {number: [] for number in threads}
    for repeat in range(REPEATS + 1):
        for number in threads:  # in turn, so that a slow minute of the machine hits all alike
            start = time.perf_counter()
            build(source, data.height_width, folder / f"{repeat}-{number}", num_threads=number)
            walls[number].append(time.perf_counter() - start)
    _, frames = read_store(folder / f"{REPEATS}-1")
    for number in threads:
        wall = statistics.median(walls[number][1:])
        print(
            f"decoding, {number:2} threads: {len(frames) / wall:6.0f} frames/s, "
            f"{frames.nbytes / 1e6 / wall:5.0f} MB/s, {statistics.median(walls[1][1:]) / wall:.2f} times one thread"
        )


def checking(data: DataConfig, folder: Path) -> None:
    opened = median_s(lambda: open_store(data))
    checked = median_s(lambda: verify(folder))
    megabytes = (folder / "frames.npy").stat().st_size / 1e6
    print(f"opening: {1000 * opened:.1f} ms; verify: {megabytes / checked:.0f} MB/s from the page cache")


def gathering(data: DataConfig) -> None:
    clips = load_clips(data).train
    random = np.random.default_rng(0)
    batches = [random.integers(0, len(clips), BATCH) for _ in range(100)]
    wall = median_s(lambda: [clips.gather(batch) for batch in batches])
    num_clips = BATCH * len(batches)
    megabytes = num_clips * clips.gather(batches[0][:1]).nbytes / 1e6
    print(
        f"random clips in batches of {BATCH}: {num_clips / wall:.0f} clips/s, {megabytes / wall:.0f} MB/s, one thread"
    )


def median_s(call: Callable[[], object]) -> float:
    """Median seconds of a few calls, the first left out."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def sharing(folder: Path, num_processes: int) -> None:
    """What processes hold of a store that all of them have read, in memory of their own and in shared pages."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(num_processes), context.Queue()
    workers = [context.Process(target=read_all, args=(folder, barrier, results)) for _ in range(num_processes)]
    for worker in workers:
        worker.start()
    growths = np.array([results.get(timeout=120) for _ in workers]) / 1e6
    for worker in workers:
        worker.join()
    size = (folder / "frames.npy").stat().st_size / 1e6
    rss, pss, private = growths.sum(axis=0)
    print(
        f"{num_processes} processes that have read all {size:.1f} MB: PSS grew by {pss:.1f} MB in all = "
        f"{pss / size:.2f} copies (RSS by {rss:.1f} MB), anonymous memory by {private / num_processes:.1f} MB in each"
    )


def read_all(folder: Path, barrier: Barrier, results: Queue[tuple[int, int, int]]) -> None:
    """Growth of (RSS, PSS, anonymous memory) in bytes, all processes side by side."""
    barrier.wait()
    before, private = psutil.Process().memory_full_info(), anonymous()
    barrier.wait()
    _, frames = read_store(folder)
    for first in range(0, len(frames), 64):
        frames[first : first + 64].sum()
    barrier.wait()
    after = psutil.Process().memory_full_info()
    results.put((after.rss - before.rss, after.pss - before.pss, anonymous() - private))
    barrier.wait()


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))


if __name__ == "__main__":
    main()
