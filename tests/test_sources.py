"""Reading frames: folders of images, videos, and what is said where they are missing or damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.base import READ_AHEAD, ordered_map
from model.data.config import DataConfig, SyntheticConfig
from model.data.images import read_image
from model.data.sources import Fault, FrameSource, SyntheticSource, VideoSource, open_source
from model.errors import DataError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "gelsight_mini"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real GelSight frames are not beside the checkout")
SIZE = (12, 16)


def write_images(folder: Path, indices, suffix=".png", pattern="{}", size=(20, 16)) -> None:
    """Images whose red channel is the index."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        Image.new("RGB", size, (index % 256, 50, 100)).save(folder / f"{pattern.format(index)}{suffix}")


def write_video(path: Path, num_frames: int, size=(64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 4
        noise = np.random.default_rng(0)
        for index in range(num_frames):
            pixels = noise.integers(0, 40, (size[1], size[0], 3)).astype(np.uint8) + np.uint8(index)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def read(source, sequence=0, size=SIZE):
    with ThreadPoolExecutor(2) as pool:
        return list(source.read(sequence, size, pool))


def positions(source, sequence=0):
    return [position for position, frame in read(source, sequence) if not isinstance(frame, Fault)]


# --- folders of images ---


@given(indices=st.sets(st.integers(0, 99), min_size=1, max_size=12), padding=st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_images_are_read_in_the_order_of_their_index_as_an_integer(tmp_path_factory, indices, padding):
    root = tmp_path_factory.mktemp("frames")
    write_images(root / "a", indices, pattern=f"{{:0{padding}d}}")
    reds = [int(frame[0, 0, 0]) for _, frame in read(FrameSource(root))]
    assert reds == sorted(indices)


def test_a_missing_index_leaves_a_hole_in_the_positions(tmp_path):
    write_images(tmp_path / "a", [0, 1, 2, 5, 6, 10])
    assert positions(FrameSource(tmp_path)) == [0, 1, 2, 5, 6, 10]


def test_images_numbered_by_threes_have_no_holes(tmp_path):
    write_images(tmp_path / "a", [1, 4, 7, 13])
    assert positions(FrameSource(tmp_path)) == [0, 1, 2, 4]


def test_a_single_image_is_a_sequence(tmp_path):
    write_images(tmp_path / "a", [7])
    assert positions(FrameSource(tmp_path)) == [7]


def test_sequences_are_the_folders_and_hidden_files_and_other_files_are_left_alone(tmp_path):
    write_images(tmp_path / "b", [0, 1], ".jpg")
    write_images(tmp_path / "a", [0, 1, 2], ".PNG", "frame_{:05d}")
    write_images(tmp_path / ".thumbnails", [0])
    write_images(tmp_path / "b", [9], pattern=".{}")
    write_images(tmp_path / "b", [9], pattern="{}_mask")
    (tmp_path / "b" / "notes2.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    source = FrameSource(tmp_path)
    assert source.sequences == ["a", "b"]
    assert source.num_units == 5


def test_images_in_the_root_are_one_sequence_of_its_name(tmp_path):
    write_images(tmp_path / "press", range(3))
    source = FrameSource(tmp_path / "press")
    assert source.sequences == ["press"]
    assert positions(source) == [0, 1, 2]


def test_two_images_with_the_same_index_are_refused(tmp_path):
    write_images(tmp_path / "a", [1])
    write_images(tmp_path / "a", [1], ".jpg", "{:04d}")
    with pytest.raises(DataError, match=r"same index 1.*folders of their own"):
        FrameSource(tmp_path)


def test_identity_changes_with_the_files_and_not_otherwise(tmp_path):
    write_images(tmp_path / "a", range(3))
    before = FrameSource(tmp_path).identity()
    assert FrameSource(tmp_path).identity() == before
    write_images(tmp_path / "a", [3])
    assert FrameSource(tmp_path).identity() != before


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 10), (90, 90, 90)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8080, (128, 128, 128)),
        ("I;16", 0xFFFF, (255, 255, 255)),
    ],
)
def test_an_image_of_any_mode_becomes_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (20, 16), colour).save(tmp_path / "0.png")
    frame = read_image(tmp_path / "0.png", SIZE)
    assert frame.shape == (*SIZE, 3)
    assert frame.dtype == np.uint8
    assert tuple(frame[3, 4]) == expected


def test_a_palette_image_becomes_the_colours_of_its_palette(tmp_path):
    Image.new("RGB", (20, 16), (200, 10, 60)).quantize(4).save(tmp_path / "0.png")
    np.testing.assert_allclose(read_image(tmp_path / "0.png", SIZE)[0, 0], [200, 10, 60], atol=1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_at_a_reduced_size_with_nearly_the_same_result(tmp_path, mode):
    y, x = np.mgrid[0:480, 0:640] / 40
    smooth = (127 + 120 * np.sin(x) * np.cos(y)).astype(np.uint8)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "0.jpg", quality=95)
    with Image.open(tmp_path / "0.jpg") as image:
        whole = np.asarray(image.convert("RGB").resize((64, 48), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(read_image(tmp_path / "0.jpg", (48, 64)) - whole).mean() < 2


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "header only"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_image_is_a_fault_in_its_place_that_names_it(tmp_path, damage, suffix):
    write_images(tmp_path / "a", range(3), suffix, size=(200, 160))
    path = tmp_path / "a" / f"1{suffix}"
    content = {
        "empty": b"",
        "truncated": path.read_bytes()[:-40],
        "text": b"no image at all",
        "header only": path.read_bytes()[:30],
    }
    path.write_bytes(content[damage])
    (_, first), (place, fault), (_, last) = read(FrameSource(tmp_path))
    assert place == 1
    assert isinstance(fault, Fault)
    assert fault.file == f"a/1{suffix}"
    assert fault.reason
    assert first.shape == last.shape == (*SIZE, 3)


# --- videos ---


def test_videos_are_found_in_all_folders_and_named_by_their_path(tmp_path):
    write_video(tmp_path / "day1" / "press.avi", 6)
    write_video(tmp_path / "day2" / "deeper" / "press.mp4", 5)
    write_video(tmp_path / ".trash" / "old.avi", 4)
    source = VideoSource(tmp_path)
    assert source.sequences == ["day1/press", "day2/deeper/press"]
    assert positions(source, 0) == list(range(6))
    assert positions(source, 1) == list(range(5))
    assert all(frame.shape == (*SIZE, 3) and frame.dtype == np.uint8 for _, frame in read(source))


def test_videos_that_differ_only_in_their_suffix_keep_it_in_their_names(tmp_path):
    write_video(tmp_path / "press.avi", 4)
    write_video(tmp_path / "press.mkv", 4)
    assert VideoSource(tmp_path).sequences == ["press.avi", "press.mkv"]


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_cut_in_the_middle_keeps_its_first_frames_and_is_a_fault(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_video(path, 200, (160, 120))  # the header alone is 6 kB
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *frames, (place, fault) = read(VideoSource(tmp_path))
    assert 10 < len(frames) < 150
    assert [position for position, _ in frames] == list(range(len(frames)))
    assert place == len(frames)
    assert isinstance(fault, Fault)
    assert fault.file == f"a{suffix}"


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_a_video_that_does_not_open_is_a_fault(tmp_path, content):
    (tmp_path / "a.avi").write_bytes(content)
    ((place, fault),) = read(VideoSource(tmp_path))
    assert place == 0
    assert isinstance(fault, Fault)


def test_an_mp4_without_its_end_is_a_fault(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    ((_, fault),) = read(VideoSource(tmp_path))
    assert isinstance(fault, Fault)


# --- what is said where nothing is found ---


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_a_missing_folder_an_empty_one_and_a_file_are_refused_by_name(tmp_path, kind):
    with pytest.raises(DataError, match=r"nowhere does not exist; give the folder"):
        open_source(DataConfig(source=kind, root=tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"Looked for .*The folder is empty"):
        open_source(DataConfig(source=kind, root=tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file is a file; give the folder"):
        open_source(DataConfig(source=kind, root=tmp_path / "file"))


def test_videos_where_frames_are_asked_for_and_the_reverse_are_pointed_out(tmp_path):
    write_video(tmp_path / "v" / "a.avi", 4)
    with pytest.raises(DataError, match="holds 1 video: did you mean source: videos"):
        FrameSource(tmp_path / "v")
    write_images(tmp_path / "f" / "a", range(3))
    with pytest.raises(DataError, match="holds 3 images: did you mean source: frames"):
        VideoSource(tmp_path / "f")


def test_images_nested_too_deep_or_without_a_number_or_no_images_are_pointed_out(tmp_path):
    write_images(tmp_path / "deep" / "a" / "left", range(2))
    with pytest.raises(DataError, match=r"2 images deeper down, such as a/left/0\.png"):
        FrameSource(tmp_path / "deep")
    write_images(tmp_path / "named" / "a", [0], pattern="gel{}_raw")
    with pytest.raises(DataError, match=r"such as a/gel0_raw\.png, do not end in a number"):
        FrameSource(tmp_path / "named")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "table.csv").write_text("")
    with pytest.raises(DataError, match=r"holds 1 other file, such as table\.csv"):
        FrameSource(tmp_path / "other")


# --- the rest ---


def test_synthetic_labels_and_identity():
    source = SyntheticSource(SyntheticConfig(sequences=3, frames=5))
    assert positions(source) == list(range(5))
    labels = source.labels(1)
    assert set(labels) == {"indenter", "motion", "depth_mm", "slip"}
    assert len(labels["depth_mm"]) == len(labels["slip"]) == 5
    assert source.identity() != SyntheticSource(SyntheticConfig(sequences=3, frames=5, seed=1)).identity()


def test_ordered_map_keeps_the_order_and_takes_items_only_as_they_are_needed():
    taken = []

    def items():
        for item in range(1, 1001):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(3) as pool:
        results = ordered_map(pool, lambda item: item * 2, items())
        assert [next(results) for _ in range(10)] == list(range(2, 22, 2))
        assert len(taken) <= 10 + READ_AHEAD + 1
        assert list(results)[-1] == 2000


@needs_real
def test_real_videos_give_as_many_frames_as_their_length_at_25_per_second():
    source = VideoSource(REAL / "videos")
    assert [len(positions(source, number)) for number in range(3)] == [450, 450, 138]


@needs_real
def test_all_real_frame_folders_are_found():
    source = FrameSource(REAL / "frames")
    assert len(source.sequences) == 53
    assert source.num_units == 5010
    assert positions(source, source.sequences.index("nylon_thread__exp1__cam0")) == list(range(7))
