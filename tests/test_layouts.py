"""Published layouts: what is read of small trees of their shape, and what is said of tables that do not fit them."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.config import DataConfig
from model.data.layouts import TacquadSource, TouchAndGoSource, YcbSlideSource, own_sensor, touch_and_go_materials
from model.data.sources import Fault, open_source
from model.data.store import open_store
from model.errors import DataError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gelsight_mini" / "frames"
SIZE = (12, 16)


def write_image(path: Path, index: int, real: bool = False) -> None:
    """An image whose red channel is the index, or a real frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if real:
        frames = sorted((REAL / "rubber_pear__exp1__cam0").iterdir())
        with Image.open(frames[index % len(frames)]) as image:
            image.save(path)
    else:
        Image.new("RGB", (20, 16), (index % 256, 50, 100)).save(path)


def tacquad(root: Path, items=("mug", "pen"), frames=range(1, 13), scene="data_indoor", real=False) -> Path:
    """Every item with 12 frames a sensor, of which the table says that 2-5, 3-11 and 9-10 are in contact."""
    for item in items:
        for sensor in ("gelsight", "digit", "duragel"):
            for index in frames:
                write_image(root / scene / item / sensor / f"{index}.png", index, real)
    contact(root, [f"{item},2,5,3,11,9,10" for item in items], scene)
    return root


def contact(root: Path, rows: list[str], scene="data_indoor") -> None:
    (root / scene.replace("data", "contact")).with_suffix(".csv").write_text("\n".join(rows) + "\n")


def touch_and_go(root: Path, rows: list[str] | None = None, real=False) -> Path:
    for folder in ("20220410_023237", "20220412_170000"):
        for index in range(6):
            write_image(root / "dataset" / folder / "gelsight_frame" / f"{index:010d}.jpg", index, real)
    if rows is not None:
        (root / "label.txt").write_text("\n".join(rows) + "\n")
    return root


def ycb_slide(root: Path, real=False) -> Path:
    for thing in ("004_sugar_box", "021_bleach_cleanser"):
        for number in (0, 3):
            for index in range(5):
                write_image(
                    root / "real" / thing / f"dataset_{number}" / "frames" / f"frame_{index:07d}.jpg", index, real
                )
    return root


def read(source, name):
    with ThreadPoolExecutor(2) as pool:
        return list(source.read(source.sequences.index(name), SIZE, pool))


def refusal(source, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        source(root)
    return str(caught.value)


made_up_and_real = pytest.mark.parametrize(
    "real",
    [
        pytest.param(False, id="made-up"),
        pytest.param(
            True,
            id="real",
            marks=pytest.mark.skipif(not REAL.is_dir(), reason="the real GelSight frames are not beside the checkout"),
        ),
    ],
)

# --- TacQuad ---


@made_up_and_real
def test_tacquad_gives_a_sequence_per_scene_item_and_sensor_of_the_frames_in_contact(tmp_path, real):
    tacquad(tmp_path, real=real)
    tacquad(tmp_path, ["bark"], scene="data_outdoor", real=real)
    source = open_source(DataConfig(source="tacquad", root=tmp_path))
    items = ("data_indoor/mug", "data_indoor/pen", "data_outdoor/bark")
    assert source.sequences == [f"{item}/{sensor}" for item in items for sensor in ("gelsight", "digit", "duragel")]
    assert source.num_units == 3 * (4 + 9 + 2)
    frames = read(source, "data_indoor/pen/digit")
    assert [position for position, _ in frames] == list(range(3, 12))
    assert all(frame.shape == (*SIZE, 3) for _, frame in frames)
    if not real:  # 9, 10, 11 come after 3 as numbers
        assert [int(frame[0, 0, 0]) for _, frame in frames] == list(range(3, 12))
    assert source.labels(source.sequences.index("data_outdoor/bark/gelsight")) == {"item": "bark"}
    assert [own_sensor("tacquad", name) for name in source.sequences[:3]] == ["gelsight", "digit", "duragel"]


@given(first=st.integers(0, 14), length=st.integers(1, 9), missing=st.sets(st.integers(1, 7)))
@settings(max_examples=15)
def test_a_frame_missing_in_a_contact_range_is_a_fault_in_its_place(first, length, missing, tmp_path_factory):
    root = tmp_path_factory.mktemp("tacquad")
    last = first + length - 1
    gone = {first + place for place in missing if 0 < place < length - 1}
    tacquad(root, ["mug"], frames=sorted(set(range(first, last + 3)) - gone))
    contact(root, [f"mug{f',{first},{last}' * 3}"])
    frames = read(TacquadSource(root), "data_indoor/mug/gelsight")
    assert [position for position, _ in frames] == list(range(first, last + 1))
    assert {position for position, frame in frames if isinstance(frame, Fault)} == gone
    assert {frame.file for _, frame in frames if isinstance(frame, Fault)} == {
        f"data_indoor/mug/gelsight/{index}.png" for index in gone
    }


def test_a_missing_and_an_empty_frame_split_the_sequence_and_are_counted(tmp_path):
    tacquad(tmp_path, ["mug"], frames=range(60))
    contact(tmp_path, ["mug,0,50,0,50,0,50"])
    (tmp_path / "data_indoor" / "mug" / "digit" / "7.png").unlink()
    (tmp_path / "data_indoor" / "mug" / "duragel" / "20.png").write_bytes(b"")
    store = open_store(DataConfig(source="tacquad", root=tmp_path, image_size=8, store_dir=tmp_path / "store"))
    assert [(run.name.rpartition("/")[2], run.start, run.length) for run in store.sequences] == [
        ("gelsight", 0, 51),
        ("digit", 0, 7),
        ("digit", 8, 43),
        ("duragel", 0, 20),
        ("duragel", 21, 30),
    ]
    assert [fault.file for fault in store.skipped] == ["data_indoor/mug/digit/7.png", "data_indoor/mug/duragel/20.png"]


def test_images_of_any_mode_and_size_make_one_sequence(tmp_path):
    tacquad(tmp_path, ["mug"])
    folder = tmp_path / "data_indoor" / "mug" / "digit"
    Image.new("I;16", (40, 30), 0x8080).save(folder / "3.png")
    Image.new("L", (7, 9), 90).save(folder / "4.png")
    Image.new("RGBA", (20, 16), (10, 20, 30, 0)).save(folder / "5.png")
    Image.new("RGB", (64, 64), (200, 10, 60)).quantize(4).save(folder / "6.png")
    (folder / "7.png").unlink()
    Image.new("CMYK", (50, 20), (0, 0, 0, 255)).save(folder / "7.jpg")
    colours = [frame[3, 4].tolist() for _, frame in read(TacquadSource(tmp_path), "data_indoor/mug/digit")]
    np.testing.assert_allclose(colours[:5], [[128] * 3, [90] * 3, [10, 20, 30], [200, 10, 60], [0, 0, 0]], atol=2)


def test_items_without_a_row_are_left_out_and_named_in_a_warning(tmp_path, caplog):
    tacquad(tmp_path, ["mug", "pen", "cup"])
    contact(tmp_path, ["pen,2,5,3,11,9,10"])
    with caplog.at_level(logging.WARNING):
        source = TacquadSource(tmp_path)
    assert {name.split("/")[1] for name in source.sequences} == {"pen"}
    assert "2 items of data_indoor have no row in contact_indoor.csv and are left out: cup, mug" in caplog.text


def test_a_row_that_repeats_another_is_merged_and_one_that_contradicts_it_is_refused(tmp_path):
    tacquad(tmp_path, ["mug"])
    contact(tmp_path, ["mug,2,5,3,11,9,10", "", "mug,2,5,3,11,9,10"])
    assert TacquadSource(tmp_path).num_units == 15
    contact(tmp_path, ["mug,2,5,3,11,9,10", "", "mug,2,6,3,11,9,10"])
    message = refusal(TacquadSource, tmp_path)
    assert "contact_indoor.csv, line 3: item 'mug' was given otherwise before" in message
    assert "contact_indoor.csv, line 1); keep one" in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("../mug,2,5,3,11,9,10", "'../mug' points outside data.root"),
        ("a/../../mug,2,5,3,11,9,10", "'a/../../mug' points outside data.root"),
        ("/tmp/mug,2,5,3,11,9,10", "'/tmp/mug' points outside data.root"),
        ("C:\\mug,2,5,3,11,9,10", "points outside data.root"),
        (",2,5,3,11,9,10", "'' points outside data.root"),
        ("mugg,2,5,3,11,9,10", "there is no item 'mugg' in "),
        ("mug,5,2,3,11,9,10", "gelsight from 5 to 2 is the wrong way round; start must be <= end"),
        ("mug,2,5,3,99,9,10", "digit frame 99 does not exist; "),
        ("mug,2,5,3,11,0,10", "duragel frame 0 does not exist; "),
        ("mug,2,5,3,11,9", "has 6 columns; must have 7: item,gelsight_start,gelsight_end,digit_start"),
        ("mug,2,5,3,11,9,10,", "has 8 columns; must have 7"),
        ("mug,2,5.0,3,11,9,10", "gelsight_end = '5.0'; must be a whole number, 0 or more"),
        ("mug,2,5,-3,11,9,10", "digit_start = '-3'; must be a whole number, 0 or more"),
        ("mug,2,5,3,11,nine,10", "duragel_start = 'nine'; must be a whole number"),
        ("mug,2,5,3,11,,10", "duragel_start = ''; must be a whole number"),
    ],
)
def test_a_contact_row_that_does_not_fit_is_refused_with_file_line_and_value(tmp_path, row, said):
    tacquad(tmp_path, ["mug", "pen"])
    contact(tmp_path, ["pen,2,5,3,11,9,10", row])
    message = refusal(TacquadSource, tmp_path)
    assert f"{tmp_path}/contact_indoor.csv, line 2: " in message
    assert said in message


def test_a_misspelt_item_gets_a_guess_and_a_missing_sensor_is_named(tmp_path):
    tacquad(tmp_path, ["mug"])
    shutil.rmtree(tmp_path / "data_indoor" / "mug" / "digit")
    assert "data_indoor/mug/digit holds no images; copy the folder again" in refusal(TacquadSource, tmp_path)
    contact(tmp_path, ["muug,2,5,3,11,9,10"])
    assert "did you mean 'mug'?" in refusal(TacquadSource, tmp_path)


def test_a_tacquad_without_its_table_or_with_one_that_is_no_text_is_refused(tmp_path):
    tacquad(tmp_path, ["mug"])
    table = tmp_path / "contact_indoor.csv"
    table.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a CSV file in UTF-8" in refusal(TacquadSource, tmp_path)
    table.write_text("\n\n")
    assert "contact_indoor.csv is empty" in refusal(TacquadSource, tmp_path)
    table.unlink()
    assert "the contact table of data_indoor = " in (message := refusal(TacquadSource, tmp_path))
    assert "contact_indoor.csv does not exist" in message


def test_another_contact_range_is_another_store_and_a_byte_order_mark_does_no_harm(tmp_path):
    tacquad(tmp_path, ["mug"])
    before = TacquadSource(tmp_path).identity()
    assert TacquadSource(tmp_path).identity() == before
    contact(tmp_path, ["\ufeffmug,2,6,3,11,9,10"])
    assert TacquadSource(tmp_path).identity() != before


# --- Touch and Go ---


@made_up_and_real
@pytest.mark.parametrize("inner", ["", "dataset"])
def test_touch_and_go_gives_all_frames_and_the_materials_of_its_labels(tmp_path, inner, real):
    rows = ["20220410_023237/0000000002.jpg,5", "20220410_023237/0000000003.jpg,-1", "20220412_170000/0000000000.jpg,0"]
    touch_and_go(tmp_path, rows, real)
    (tmp_path / "dataset" / "20220413_000000").mkdir()  # a recording without GelSight frames
    source = TouchAndGoSource(tmp_path / inner)
    assert source.sequences == ["20220410_023237", "20220412_170000"]
    assert [position for position, _ in read(source, "20220412_170000")] == list(range(6))
    assert touch_and_go_materials(tmp_path / inner) == {"20220410_023237": {2: 5}, "20220412_170000": {0: 0}}
    assert own_sensor("touch_and_go", "20220410_023237") == "gelsight"


def test_touch_and_go_labels_may_be_missing_or_lie_in_the_folder_of_the_recordings(tmp_path):
    touch_and_go(tmp_path)
    assert touch_and_go_materials(tmp_path) == {}
    (tmp_path / "dataset" / "label.txt").write_text("20220410_023237/0000000002.jpg,5\n")
    assert touch_and_go_materials(tmp_path) == {"20220410_023237": {2: 5}}
    (tmp_path / "dataset").rename(tmp_path / "recordings")
    assert touch_and_go_materials(tmp_path / "recordings") == {"20220410_023237": {2: 5}}


def test_other_labels_are_the_same_frames(tmp_path):
    touch_and_go(tmp_path, ["20220410_023237/0000000002.jpg,5"])
    before = TouchAndGoSource(tmp_path).identity()
    (tmp_path / "label.txt").write_text("20220410_023237/0000000002.jpg,6\n")
    assert TouchAndGoSource(tmp_path).identity() == before


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("../20220410_023237/0000000002.jpg,5", "points outside data.root"),
        ("/etc/0000000002.jpg,5", "'/etc/0000000002.jpg' points outside data.root"),
        ("20220410_023238/0000000002.jpg,5", "there is no recording '20220410_023238'"),
        ("20220410_023237/0000000099.jpg,5", "20220410_023237/gelsight_frame has no frame 99"),
        ("20220410_023237/frame.jpg,5", "frame = 'frame'; must be a whole number"),
        ("20220410_023237,5", "'20220410_023237'; must be folder/0000000096.jpg"),
        ("20220410_023237/gelsight_frame/0000000002.jpg,5", "must be folder/0000000096.jpg"),
        ("20220410_023237/0000000002.jpg,wood", "label = 'wood'; must be a whole number, -1 or more"),
        ("20220410_023237/0000000002.jpg,-2", "label = '-2'; must be a whole number, -1 or more"),
        ("20220410_023237/0000000002.jpg", "has 1 columns; must have 2: folder/0000000096.jpg,label"),
        ("20220410_023237/0000000000.jpg,4", "was given otherwise before"),
    ],
)
def test_a_label_row_that_does_not_fit_is_refused_with_file_line_and_value(tmp_path, row, said):
    touch_and_go(tmp_path, ["20220410_023237/0000000000.jpg,3", "20220410_023237/0000000000.jpg,3", row])
    message = refusal(TouchAndGoSource, tmp_path)
    assert f"{tmp_path}/label.txt, line 3: " in message
    assert said in message


# --- YCB-Slide ---


@made_up_and_real
@pytest.mark.parametrize("inner", ["", "real"])
def test_ycb_slide_gives_a_sequence_per_recording_with_its_object(tmp_path, inner, real):
    ycb_slide(tmp_path, real)
    write_image(tmp_path / "real" / "bgs" / "frame_0000000.jpg", 0)
    source = YcbSlideSource(tmp_path / inner)
    assert source.sequences == [
        f"{thing}/dataset_{n}" for thing in ("004_sugar_box", "021_bleach_cleanser") for n in (0, 3)
    ]
    assert [position for position, _ in read(source, "021_bleach_cleanser/dataset_3")] == list(range(5))
    assert source.labels(3) == {"object": "021_bleach_cleanser"}
    assert own_sensor("ycb_slide", "004_sugar_box/dataset_0") == "digit"


# --- what is said where nothing is found ---


@pytest.mark.parametrize("kind", ["tacquad", "touch_and_go", "ycb_slide"])
def test_a_folder_of_another_layout_is_refused_with_what_was_looked_for_and_what_is_there(tmp_path, kind):
    write_image(tmp_path / "a" / "0.png", 0)
    with pytest.raises(
        DataError, match=rf"holds no frames in the layout of {kind}\. Looked for .*1 image, such as a/0"
    ):
        open_source(DataConfig(source=kind, root=tmp_path))
    with pytest.raises(DataError, match=r"nowhere does not exist; give the folder that holds the"):
        open_source(DataConfig(source=kind, root=tmp_path / "nowhere"))
