"""Images on disk: how one is read, how those of a folder are numbered, and the plain layout of a folder a sequence."""

from __future__ import annotations

import itertools
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from model.data.base import (
    IMAGE_SUFFIXES,
    Fault,
    Frame,
    HeightWidth,
    check_folder,
    file_identity,
    nothing_found,
    ordered_map,
    relative,
)
from model.errors import DataError, one_line

# what Pillow's decoders raise on damaged files; OSError holds UnidentifiedImageError and "image file is truncated"
IMAGE_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

NUMBERED_IMAGE = re.compile(rf"(\d+)(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})\Z", re.IGNORECASE)


class ImageFile(NamedTuple):
    """An image and its position in its sequence."""

    path: Path
    position: int


class ImageSource:
    """A source whose frames are image files; the layouts differ only in which files make up a sequence.

    Args:
        kind: `data.source`.
        root: what the names in faults are relative to.
        images: sequence name -> its images in order of position.
    """

    unit = "images"

    def __init__(self, kind: str, root: Path, images: Mapping[str, list[ImageFile]]) -> None:
        self.kind = kind
        self.sequences = list(images)
        self.num_units = sum(map(len, images.values()))
        self._root = root
        self._images = images

    def identity(self) -> Any:
        return file_identity(self._root, (image.path for images in self._images.values() for image in images))

    def num_frames(self) -> int:
        return self.num_units

    def labels(self, sequence: int) -> dict[str, Any]:
        return {}

    def read(self, sequence: int, size: HeightWidth, pool: Executor) -> Iterator[tuple[int, Frame | Fault]]:
        def decoded(image: ImageFile) -> tuple[int, Frame | Fault]:
            try:
                return image.position, read_image(image.path, size)
            except IMAGE_FAULTS as error:
                return image.position, Fault(relative(image.path, self._root), one_line(error))

        yield from ordered_map(pool, decoded, self._images[self.sequences[sequence]])


class FrameSource(ImageSource):
    """root/<sequence>/<index>.{jpg,jpeg,png}, or images in root itself as the one sequence, where no folder has any.

    The index is the number at the end of the file's stem, sorted as an integer (2 before 10, padded or not); images
    without a number and hidden files are left alone. Positions are the indices; where all of a sequence's indices
    are a multiple of a step apart (0, 3, 6), they are divided by it. A missing index therefore splits the sequence.
    """

    def __init__(self, root: Path) -> None:
        check_folder(root, "frames")
        images = {folder.name: listed for folder in folders_in(root) if (listed := numbered_images(folder))}
        if not images and (loose := numbered_images(root)):
            images = {root.name: loose}
        if not images:
            wanted = f"{root}/<sequence>/<index>.jpg (or .jpeg, .png), or such images in {root} itself"
            raise DataError(nothing_found(root, "frames", wanted))
        super().__init__("frames", root, images)


def folders_in(folder: Path) -> list[Path]:
    """The folders right in `folder` by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def numbered_images(folder: Path) -> list[ImageFile]:
    """The images right in `folder`; positions are indices divided by their common step (see `FrameSource`).

    Raises:
        DataError: two images have the same index.
    """
    numbered = images_by_index(folder)
    indices = sorted(numbered)
    step = math.gcd(*(after - before for before, after in itertools.pairwise(indices))) or 1
    return [ImageFile(numbered[index], index // step) for index in indices]


def images_by_index(folder: Path) -> dict[int, Path]:
    """The images right in `folder` by the number at the end of their stem. Raises DataError where two have the same."""
    numbered: dict[int, Path] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names, not paths: more than twice as fast
        number = NUMBERED_IMAGE.search(name)
        if number is None or name.startswith("."):
            continue
        index = int(number.group(1))
        if index in numbered:
            raise DataError(
                f"data.root: {numbered[index]} and {name} have the same index {index}; every image of a sequence "
                "needs its own. Put different cameras or recordings into folders of their own."
            )
        numbered[index] = folder / name
    return numbered


def read_image(path: Path, size: HeightWidth) -> Frame:
    """An image of any mode, the whole of it resized: RGB uint8 [H, W, 3]. Raises one of IMAGE_FAULTS."""
    height, width = size
    with Image.open(path) as image:
        # lets libjpeg decode at 1/2, 1/4 or 1/8 where that is still twice what the antialiased resizing needs
        image.draft(image.mode, (2 * width, 2 * height))
        image.load()
        return resized(_eight_bit(image).convert("RGB"), size)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow would clip at 255, scaled to 8 bits; anything else as it is."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))


def resized(image: Image.Image, size: HeightWidth) -> Frame:
    """An RGB image at another size: uint8 [H, W, 3]."""
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
