"""Labels and sensors: joined to the clips when they are opened, from files that are checked first."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.data.clips import load_clips
from model.data.config import DataConfig, SyntheticConfig
from model.data.labels import LabelTable, read_label_csv, sensor_of
from model.data.store import Sequence, open_store
from model.errors import DataError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gelsight_mini"
NAMES = ["mug_1", "mug_2", "day1/pen"]


def table(tmp_path: Path, text: str, sequences=NAMES) -> LabelTable:
    (tmp_path / "labels.csv").write_text(text)
    return read_label_csv(tmp_path / "labels.csv", sequences)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(DataError) as caught:
        table(tmp_path, text)
    return str(caught.value)


def presses(tmp_path: Path, rows: list[str], **changes) -> DataConfig:
    """6 procedural presses of 8 frames, with a label file."""
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    given = {
        "synthetic": SyntheticConfig(sequences=6, frames=8),
        "image_size": 16,
        "store_dir": tmp_path / "store",
        "labels": tmp_path / "labels.csv",
    }
    return DataConfig(**{**given, **changes})


def labels_by_clip(data: DataConfig) -> dict[str, dict]:
    clips = load_clips(data)
    sides = (clips.train, clips.held_out)
    return {side.clip_id(number): side.labels(number) for side in sides for number in range(len(side))}


# --- the file ---


@pytest.mark.parametrize("key", ["sequence", "clip"])
def test_a_row_without_a_frame_labels_its_sequence(tmp_path, key):
    found = table(tmp_path, f"object,{key},firmness\nmug,mug_1,hard\n\npen , day1/pen ,\n")
    assert found.whole == {"mug_1": {"object": "mug", "firmness": "hard"}, "day1/pen": {"object": "pen"}}
    assert found.frames == {}


def test_beside_a_column_sequence_the_column_clip_is_a_label(tmp_path):
    assert table(tmp_path, "clip,sequence\nx,mug_1\n").whole == {"mug_1": {"clip": "x"}}


def test_a_row_with_a_frame_labels_that_frame(tmp_path):
    found = table(tmp_path, "sequence,frame,slip\nmug_1,3,1\nmug_1,5,0\nmug_1,6,\nmug_2,4,1\n")
    assert found.frames == {"mug_1": {"slip": {3: "1", 5: "0"}}, "mug_2": {"slip": {4: "1"}}}
    assert found.of(Sequence("mug_1", start=2, first=0, length=4)) == {"slip": [None, "1", None, "0"]}
    assert found.of(Sequence("mug_1", start=6, first=0, length=4)) == {}
    assert found.of(Sequence("day1/pen", start=0, first=0, length=4)) == {}


WORDS = st.text("abcäß,\"';. \t-_/0", max_size=6).map(str.strip)


@given(rows=st.dictionaries(st.sampled_from(NAMES), st.tuples(WORDS, WORDS), min_size=1))
def test_any_text_survives_a_written_label_file(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sequence", "a", "b"), *((name, *values) for name, values in rows.items())])
    found = read_label_csv(path, NAMES)
    assert found.whole == {
        name: {label: value for label, value in zip("ab", values, strict=True) if value}
        for name, values in rows.items()
    }


def test_a_repeated_row_is_merged_and_a_contradiction_is_refused_with_both_lines(tmp_path):
    assert table(tmp_path, "sequence,a\nmug_1,x\nmug_1,x\n").whole == {"mug_1": {"a": "x"}}
    message = refusal(tmp_path, "sequence,a\nmug_1,x\nmug_2,x\nmug_1,y\n")
    assert "labels.csv, line 4: 'mug_1' has other labels in an earlier row (" in message
    assert "labels.csv, line 2); keep one" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sequence,a\nmug_3,x\n", "line 2: there is no sequence 'mug_3'; did you mean 'mug_"),
        ("sequence,a\nzzz,x\n", "there is no sequence 'zzz'; The source has 3: day1/pen, mug_1, mug_2."),
        ("sequence,a\n../mug_1,x\n", "line 2: '../mug_1' points outside data.root"),
        ("sequence,a\n/mug_1,x\n", "line 2: '/mug_1' points outside data.root"),
        ("sequence,a\nmug_1\n", "line 2: has 1 columns, but the header has 2: sequence,a"),
        ("sequence,a\nmug_1,x,y\n", "line 2: has 3 columns, but the header has 2: sequence,a"),
        ("sequence,frame,a\nmug_1,1.5,x\n", "line 2: frame = '1.5'; must be a whole number, 0 or more"),
        ("sequence,frame,a\nmug_1,-1,x\n", "line 2: frame = '-1'; must be a whole number, 0 or more"),
        ("sequence,frame,a\nmug_1,,x\n", "line 2: frame = ''; must be a whole number"),
        ("mug_1,x\n", "line 1: the header is 'mug_1,x'; it needs a column 'sequence'"),
        ("sequence,a,a\nmug_1,x,y\n", "every column needs a name of its own"),
        ("sequence,a,\nmug_1,x,y\n", "every column needs a name of its own"),
        ("sequence,frame\nmug_1,1\n", "line 1: there are no labels: add a column per label"),
        ("sequence,a\n", "line 1: there are no rows below it"),
        ("\n", "labels.csv is empty"),
    ],
)
def test_a_label_file_that_does_not_fit_is_refused_with_the_line_and_the_value(tmp_path, text, said):
    message = refusal(tmp_path, text)
    assert f"{tmp_path}/labels.csv" in message
    assert said in message


def test_a_missing_label_file_and_one_that_is_no_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.labels = .*labels\.csv does not exist; give a CSV file"):
        read_label_csv(tmp_path / "labels.csv", NAMES)
    (tmp_path / "labels.csv").write_bytes(b"\x80\x81")
    with pytest.raises(DataError, match="cannot be read as a CSV file in UTF-8"):
        read_label_csv(tmp_path / "labels.csv", NAMES)


# --- joined to clips ---


def test_labels_of_a_file_go_over_the_sources_own_and_sequences_without_a_row_keep_theirs(tmp_path):
    data = presses(tmp_path, ["sequence,indenter,finger", "press_0002,unknown,thumb"])
    for clip, labels in labels_by_clip(data).items():
        if clip.startswith("press_0002:"):
            assert (labels["indenter"], labels["finger"]) == ("unknown", "thumb")
        else:
            assert labels["indenter"] != "unknown"
            assert "finger" not in labels
        assert len(labels["slip"]) == 4


def test_labels_per_frame_are_those_of_a_clips_frames_and_absent_where_none_has_one(tmp_path):
    rows = ["sequence,frame,touch", *(f"press_0001,{frame},f{frame}" for frame in (2, 4, 5))]
    labels = labels_by_clip(presses(tmp_path, rows, frame_stride=2))
    assert labels["press_0001:0"]["touch"] == [None, "f2", "f4", None]
    assert labels["press_0001:1"]["touch"] == [None, None, "f5", None]
    assert "touch" not in labels["press_0000:0"]
    unstrided = labels_by_clip(presses(tmp_path, ["sequence,frame,touch", "press_0001,7,last"]))
    assert "touch" not in unstrided["press_0001:3"]
    assert unstrided["press_0001:4"]["touch"] == [None, None, None, "last"]


def test_other_labels_leave_the_frame_store_as_it_is(tmp_path):
    data = presses(tmp_path, ["sequence,finger", "press_0002,thumb"])
    load_clips(data)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    (tmp_path / "labels.csv").write_text("sequence,finger\npress_0002,index\n")
    clips = load_clips(data)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert open_store(data).folder == open_store(data.model_copy(update={"labels": None, "sensor": "x"})).folder
    values = {side.labels(n).get("finger") for side in (clips.train, clips.held_out) for n in range(len(side))}
    assert values == {"index", None}


def test_what_is_wrong_with_labels_is_said_before_anything_is_decoded(tmp_path):
    data = presses(tmp_path, ["sequence,finger", "press_9,thumb"])
    with pytest.raises(DataError, match=r"line 2: there is no sequence 'press_9'"):
        load_clips(data)
    assert not (tmp_path / "store").exists()


def frames_with_labels(tmp_path: Path, frame: int, damaged: int | None = None) -> DataConfig:
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for index in range(30):
            Image.new("L", (8, 8), index).save(tmp_path / "root" / name / f"{index}.png")
    if damaged is not None:
        (tmp_path / "root" / "a" / f"{damaged}.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text(f"sequence,frame,touch\na,{frame},yes\n")
    return DataConfig(
        source="frames",
        root=tmp_path / "root",
        labels=tmp_path / "labels.csv",
        image_size=8,
        store_dir=tmp_path / "store",
    )


def test_a_label_beyond_the_last_frame_is_refused_unless_files_could_not_be_read(tmp_path, caplog):
    with pytest.raises(DataError, match=r"frame 30 of 'a', but its last frame is 29\. Frames are numbered as in"):
        load_clips(frames_with_labels(tmp_path / "whole", 30))
    with caplog.at_level(logging.WARNING):
        load_clips(frames_with_labels(tmp_path / "damaged", 29, damaged=29))
    assert "may be one of the 1 files that could not be read" in caplog.text


def test_materials_of_touch_and_go_may_change_without_decoding(tmp_path):
    for folder in ("20220410_023237", "20220412_170000"):
        (tmp_path / "dataset" / folder / "gelsight_frame").mkdir(parents=True)
        for index in range(5):
            path = tmp_path / "dataset" / folder / "gelsight_frame" / f"{index:010d}.jpg"
            Image.new("L", (8, 8), index).save(path)
    data = DataConfig(source="touch_and_go", root=tmp_path, image_size=8, store_dir=tmp_path / "store")
    for material in (7, 9):
        rows = (f"20220410_023237/{2:010d}.jpg,{material}", f"20220412_170000/{4:010d}.jpg,-1")
        (tmp_path / "label.txt").write_text("\n".join(rows) + "\n")
        labels = labels_by_clip(data)
        assert labels["20220410_023237:0"] == {"material": [None, None, material, None]}
        assert labels["20220412_170000:1"] == {}
    assert len([path for path in (tmp_path / "store").iterdir() if not path.name.startswith(".")]) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="the real GelSight frames are not beside the checkout")
def test_the_manifest_of_the_real_frames_labels_them_all(tmp_path):
    data = DataConfig(
        source="frames",
        root=REAL / "frames",
        labels=REAL / "manifest.csv",
        image_size=8,
        store_dir=tmp_path,
        group_pattern="^(.+?)__",
    )
    for clip, labels in labels_by_clip(data).items():
        assert clip.startswith(labels["object"])
        assert labels["label"] in ("slip", "wiggle")


# --- sensors ---


def test_the_sensor_is_the_one_given_else_the_layouts_own_else_default():
    assert sensor_of("press_0000", DataConfig()) == "default"
    assert sensor_of("press_0000", DataConfig(sensor="mini")) == "mini"
    tacquad = DataConfig(source="tacquad", root=Path("root"))
    assert sensor_of("data_indoor/mug/duragel", tacquad) == "duragel"
    assert sensor_of("data_indoor/mug/duragel", tacquad.model_copy(update={"sensor": "mini"})) == "mini"


def test_sensors_of_clips_are_places_in_the_sorted_names(tmp_path):
    for item in ("mug", "pen", "cup", "box"):
        for level, sensor in enumerate(("gelsight", "digit", "duragel")):
            folder = tmp_path / "root" / "data_indoor" / item / sensor
            folder.mkdir(parents=True)
            for index in range(6):
                Image.new("L", (8, 8), 60 * level).save(folder / f"{index}.png")
    rows = [f"{item},0,5,0,5,0,5" for item in ("mug", "pen", "cup", "box")]
    (tmp_path / "root" / "contact_indoor.csv").write_text("\n".join(rows))
    clips = load_clips(DataConfig(source="tacquad", root=tmp_path / "root", image_size=8, store_dir=tmp_path / "store"))
    assert clips.sensors == ("digit", "duragel", "gelsight")
    numbers = np.random.default_rng(0).permutation(len(clips.train))
    places = clips.train.sensor_of(numbers)
    assert places.dtype == np.int64
    names = [clips.train.clip_id(number).partition(":")[0].rpartition("/")[2] for number in numbers]
    assert [clips.sensors[place] for place in places] == names
    with pytest.raises(IndexError):
        clips.held_out.sensor_of(np.array([len(clips.held_out)]))
