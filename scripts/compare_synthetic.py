"""The procedural GelSight beside real frames: a picture, and a table of their statistics.

    python scripts/compare_synthetic.py --real path/to/gelsight_mini/frames

About 5 seconds. Without real frames, the procedural ones are shown alone.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.data.config import SyntheticConfig
from model.data.sources import FrameSource, HeightWidth, Source, SyntheticSource
from model.data.synthetic import MOTIONS
from model.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data" / "gelsight_mini" / "frames"
PICTURE = ROOT / "model" / "data" / "synthetic_vs_real.png"

TABLE_SIZE = (48, 48)  # the default data.image_size
TILE = (84, 112)
COLUMNS = 6
ROWS = 5  # sequences of each kind
CAPTION_WIDTH, GAP = 118, 3

Sequences = dict[str, NDArray[np.uint8]]  # name -> [T, H, W, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=REAL, metavar="DIR", help="folder of <sequence>/<index>.jpg")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="PNG", help="where the picture goes")
    options = parser.parse_args()

    sources: dict[str, Source] = {}
    try:
        sources["real"] = FrameSource(options.real.absolute())
    except DataError as error:
        print(f"no real frames, so the procedural ones are shown alone: {error}", file=sys.stderr)
    sources["procedural"] = SyntheticSource(SyntheticConfig())

    print(f"{'':11}{'mean R G B':>22}{'std R G B':>20}{'|neighbour diff|':>19}{'copy frame 3, MSE':>20}")
    rows: list[tuple[str, NDArray[np.uint8]]] = []
    for kind, source in sources.items():
        small = read_all(source, TABLE_SIZE)
        print(f"{kind:11}{statistics(list(small.values()))}")
        large = read_all(source, TILE, chosen(source, small))
        rows += [(f"{kind}\n{caption(source, name)}", frames) for name, frames in large.items()]
    contact_sheet(rows).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


def read_all(source: Source, size: HeightWidth, names: list[str] | None = None) -> Sequences:
    """The frames of the named sequences (all if None), files that cannot be read left out."""
    with ThreadPoolExecutor() as pool:
        return {
            name: np.stack([frame for _, frame in source.read(number, size, pool) if isinstance(frame, np.ndarray)])
            for number, name in enumerate(source.sequences)
            if names is None or name in names
        }


def statistics(sequences: list[NDArray[np.uint8]]) -> str:
    """A row of the table. Differences are between neighbouring frames, of 255; the MSE is of normalised pixels."""
    pixels = np.concatenate(sequences).astype(np.float32)
    mean, std = pixels.mean(axis=(0, 1, 2), dtype=np.float64), pixels.std(axis=(0, 1, 2), dtype=np.float64)
    steps = np.concatenate([np.diff(frames.astype(np.float32), axis=0) for frames in sequences])
    each = np.abs(steps).mean(axis=(1, 2, 3))
    low, middle, high = np.percentile(each, [10, 50, 90])
    copy_mse = float(((steps / std) ** 2).mean(dtype=np.float64))
    colours = "".join(f"{value:7.1f}" for value in mean) + " " + "".join(f"{value:6.1f}" for value in std)
    return f"{colours}{each.mean():7.2f} ({low:.2f}-{middle:.2f}-{high:.2f}){copy_mse:14.4f}"


def chosen(source: Source, sequences: Sequences) -> list[str]:
    """ROWS sequences: an indenter each, the motions in turn; of real objects, those in which the gel changes most."""

    def change(name: str) -> float:
        frames = sequences[name]
        return float(np.abs(np.diff(frames[shown(len(frames))].astype(np.float32), axis=0)).mean())

    by_kind: dict[str, list[str]] = {}
    for number, name in enumerate(sequences):
        by_kind.setdefault(source.labels(number).get("indenter", name.partition("__")[0]), []).append(name)
    if source.kind == "synthetic":
        motion = {name: source.labels(number)["motion"] for number, name in enumerate(sequences)}
        wanted = zip(by_kind.values(), itertools.cycle(MOTIONS), strict=False)
        return [next((name for name in names if motion[name] == want), names[0]) for names, want in wanted][:ROWS]
    return sorted((max(names, key=change) for names in by_kind.values()), key=change, reverse=True)[:ROWS]


def shown(num_frames: int) -> NDArray[np.int64]:
    """The frames of a sequence that the picture shows, evenly across time."""
    return np.linspace(0, num_frames - 1, COLUMNS).round().astype(np.int64)


def caption(source: Source, name: str) -> str:
    labels = source.labels(source.sequences.index(name))
    return f"{labels['indenter']}, {labels['motion']}" if labels else name.partition("__")[0].replace("_", " ")


def contact_sheet(rows: list[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """A row per sequence: its caption, then COLUMNS frames."""
    height, width = TILE
    sheet = Image.new("RGB", (CAPTION_WIDTH + COLUMNS * (width + GAP), len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (text, frames) in enumerate(rows):
        top = row * (height + GAP)
        draw.multiline_text((4, top + height // 2 - 12), text, fill="black")
        for column, index in enumerate(shown(len(frames))):
            sheet.paste(Image.fromarray(frames[index]), (CAPTION_WIDTH + column * (width + GAP), top))
    # 5 bits per channel: half the file, which is kept under version control, and nothing that the eye misses
    coarse = np.asarray(sheet) & 0xF8
    return Image.fromarray(coarse | coarse >> 5)


if __name__ == "__main__":
    main()
