"""Data sets in the layouts in which they are published: TacQuad, Touch and Go, YCB-Slide.

In all three, positions are the numbers in the names of the files, so a clip id such as
`data_indoor/mug/digit:120` names the file 120.png. Tables are checked against the files before anything is decoded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from model.data.base import check_folder, nothing_found
from model.data.images import ImageFile, ImageSource, folders_in, images_by_index
from model.data.tables import check_inside, listed, read_rows, whole_number
from model.errors import DataError, guess

TACQUAD_SENSORS = ("gelsight", "digit", "duragel")  # in the order of the columns of contact_*.csv
TACQUAD_SCENES = {"data_indoor": "contact_indoor.csv", "data_outdoor": "contact_outdoor.csv"}
NO_MATERIAL = -1  # label of a Touch and Go frame that its authors skip

log = logging.getLogger(__name__)


def own_sensor(source: str, sequence: str) -> str | None:
    """The sensor that a layout gives away for a sequence of it; None for sources that do not tell."""
    if source == "tacquad":
        return sequence.rpartition("/")[2]
    return {"touch_and_go": "gelsight", "ycb_slide": "digit"}.get(source)


# --- TacQuad -------------------------------------------------------------------------------------------------------


class TacquadSource(ImageSource):
    """TacQuad (Feng et al. 2025, AnyTouch): root/{data_indoor,data_outdoor}/<item>/{gelsight,digit,duragel}/<int>.png.

    `contact_indoor.csv` and `contact_outdoor.csv` in root tell the frames in contact, a row an item without a header:
    `item,gelsight_start,gelsight_end,digit_start,digit_end,duragel_start,duragel_end`, ends included. Only these are
    read, as one sequence per scene, item and sensor, `data_indoor/<item>/gelsight`, with the label `item`. A file that
    is missing within a range is a fault like an unreadable one. Items without a row are left out with a warning: which
    of their frames are in contact is not known. A row that repeats another one is merged with it.

    Raises:
        DataError: a table is missing, or has a row that does not fit the files or contradicts another row.
    """

    def __init__(self, root: Path) -> None:
        check_folder(root, "folders of TacQuad")
        images: dict[str, list[ImageFile]] = {}
        for scene, table in TACQUAD_SCENES.items():
            if (root / scene).is_dir():
                images |= _tacquad_scene(root / scene, root / table)
        if not images:
            wanted = "data_indoor/<item>/{gelsight,digit,duragel}/<int>.png, or the same in data_outdoor"
            raise DataError(nothing_found(root, "tacquad", wanted))
        super().__init__("tacquad", root, images)

    def labels(self, sequence: int) -> dict[str, Any]:
        return {"item": self.sequences[sequence].split("/")[1]}


def _tacquad_scene(folder: Path, table: Path) -> dict[str, list[ImageFile]]:
    """Sequence name -> images in contact, by the rows of the scene's table."""
    items = [item.name for item in folders_in(folder)]
    seen: dict[str, tuple[str, list[str]]] = {}  # item -> the row that it was first given in
    images: dict[str, list[ImageFile]] = {}
    for where, cells in read_rows(table, f"the contact table of {folder.name}"):
        if len(cells) != 1 + 2 * len(TACQUAD_SENSORS):
            columns = ",".join(f"{sensor}_start,{sensor}_end" for sensor in TACQUAD_SENSORS)
            raise DataError(f"{where}: has {len(cells)} columns; must have 7: item,{columns}, without a header.")
        item, *numbers = cells
        check_inside(item, where)
        if item not in items:
            raise DataError(
                f"{where}: there is no item {item!r} in {folder};{guess(item, items)} Correct the row, or remove it."
            )
        first_where, first_numbers = seen.setdefault(item, (where, numbers))
        if first_where != where:
            _check_same(numbers, first_numbers, f"item {item!r}", where, first_where)
            continue
        for sensor, start, end in zip(TACQUAD_SENSORS, numbers[::2], numbers[1::2], strict=True):
            images[f"{folder.name}/{item}/{sensor}"] = _contact(folder / item / sensor, start, end, where)
    left_out = [item for item in items if item not in seen]
    if left_out:
        log.warning(
            "%d items of %s have no row in %s and are left out: %s",
            len(left_out),
            folder.name,
            table.name,
            listed(left_out),
        )
    return images


def _contact(folder: Path, start: str, end: str, where: str) -> list[ImageFile]:
    """The images [start, end] of a sensor's folder, also those that should be there and are not."""
    first = whole_number(start, f"{folder.name}_start", where)
    last = whole_number(end, f"{folder.name}_end", where)
    if first > last:
        raise DataError(f"{where}: {folder.name} from {first} to {last} is the wrong way round; start must be <= end.")
    files = images_by_index(folder) if folder.is_dir() else {}
    if not files:
        raise DataError(f"{where}: {folder} holds no images; copy the folder again, or remove the row.")
    for frame in (first, last):
        if frame not in files:
            raise DataError(
                f"{where}: {folder.name} frame {frame} does not exist; {folder} holds {min(files)} to {max(files)}."
            )
    return [ImageFile(files.get(index, folder / f"{index}.png"), index) for index in range(first, last + 1)]


# --- Touch and Go --------------------------------------------------------------------------------------------------


class TouchAndGoSource(ImageSource):
    """Touch and Go (Yang et al. 2022): dataset/<YYYYMMDD_HHMMSS>/gelsight_frame/%010d.jpg.

    root holds `dataset`, or is that folder.

    Every recording is a sequence, and all of its frames are used, labelled or not. The labels are those of
    `touch_and_go_materials`; they are checked here, but are no part of the frames, so they may change later.

    Raises:
        DataError: no recordings, or `label.txt` does not fit them.
    """

    def __init__(self, root: Path) -> None:
        check_folder(root, "recordings of Touch and Go")
        images = {
            folder.name: images
            for folder in folders_in(_inner(root, "dataset"))
            if (images := _all_images(folder / "gelsight_frame"))
        }
        if not images:
            wanted = "dataset/<YYYYMMDD_HHMMSS>/gelsight_frame/<number>.jpg"
            raise DataError(nothing_found(root, "touch_and_go", wanted))
        super().__init__("touch_and_go", root, images)
        _read_materials(root, {name: {image.position for image in images} for name, images in images.items()})


def touch_and_go_materials(root: Path) -> dict[str, dict[int, int]]:
    """Recording -> frame -> number of its material, from `label.txt` beside or in `dataset`; none without the file.

    Its rows are `folder/0000000096.jpg,label`. Frames with the label -1, which the authors skip, have no material. A
    row that repeats another one is merged with it.

    Raises:
        DataError: a row is malformed, points outside the recordings, or contradicts another one.
    """
    return _read_materials(root, None)


def _read_materials(root: Path, existing: dict[str, set[int]] | None) -> dict[str, dict[int, int]]:
    """See `touch_and_go_materials`; with `existing` frames per recording, others are refused."""
    path = _label_file(root)
    if path is None:
        return {}
    found: dict[str, dict[int, tuple[int, str]]] = {}
    for where, cells in read_rows(path, "the labels of Touch and Go"):
        if len(cells) != 2:
            raise DataError(f"{where}: has {len(cells)} columns; must have 2: folder/0000000096.jpg,label.")
        file, label = cells[0], whole_number(cells[1], "label", where, least=NO_MATERIAL)
        check_inside(file, where)
        folder, slash, name = file.partition("/")
        stem, _, suffix = name.partition(".")
        if not slash or not suffix or "/" in name:
            raise DataError(f"{where}: {file!r}; must be folder/0000000096.jpg.")
        frame = whole_number(stem, "frame", where)
        if existing is not None and folder not in existing:
            raise DataError(
                f"{where}: there is no recording {folder!r} with images in gelsight_frame;{guess(folder, existing)} "
                "Correct the row, or copy the recording."
            )
        if existing is not None and frame not in existing[folder]:
            raise DataError(
                f"{where}: {folder}/gelsight_frame has no frame {frame}; remove the row, or copy the image."
            )
        first, first_where = found.setdefault(folder, {}).setdefault(frame, (label, where))
        _check_same(label, first, f"frame {file!r}", where, first_where)
    return {
        folder: {frame: label for frame, (label, _) in frames.items() if label != NO_MATERIAL}
        for folder, frames in found.items()
    }


def _label_file(root: Path) -> Path | None:
    dataset = _inner(root, "dataset")
    beside = dataset.parent if dataset.name == "dataset" else dataset
    return next((path for path in (beside / "label.txt", dataset / "label.txt") if path.is_file()), None)


# --- YCB-Slide -----------------------------------------------------------------------------------------------------


class YcbSlideSource(ImageSource):
    """YCB-Slide (Suresh et al. 2022, MidasTouch): real/<object>/dataset_{0..4}/frames/frame_%07d.jpg.

    root holds `real`, or is that folder.
    Every recording is a sequence `<object>/dataset_0` with the label `object`. Raises DataError where there is none.
    """

    def __init__(self, root: Path) -> None:
        check_folder(root, "objects of YCB-Slide")
        images = {
            f"{thing.name}/{recording.name}": images
            for thing in folders_in(_inner(root, "real"))
            for recording in folders_in(thing)
            if recording.name.startswith("dataset_") and (images := _all_images(recording / "frames"))
        }
        if not images:
            wanted = "real/<object>/dataset_<number>/frames/frame_<number>.jpg"
            raise DataError(nothing_found(root, "ycb_slide", wanted))
        super().__init__("ycb_slide", root, images)

    def labels(self, sequence: int) -> dict[str, Any]:
        return {"object": self.sequences[sequence].partition("/")[0]}


# --- shared --------------------------------------------------------------------------------------------------------


def _inner(root: Path, name: str) -> Path:
    """root/name where it is there; else root is taken for that folder."""
    return root / name if (root / name).is_dir() else root


def _all_images(folder: Path) -> list[ImageFile]:
    found = images_by_index(folder) if folder.is_dir() else {}
    return [ImageFile(found[index], index) for index in sorted(found)]


def _check_same(value: Any, first: Any, what: str, where: str, first_where: str) -> None:
    if value != first:
        raise DataError(f"{where}: {what} was given otherwise before ({first_where}); keep one of the two rows.")
