"""The frame store: built once, whole or not at all, resumed after a kill, mended where it is damaged, shared."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.base import Fault
from model.data.building import build
from model.data.config import DataConfig, SyntheticConfig
from model.data.framefile import FrameWriter
from model.data.records import read_records
from model.data.store import STORE_VARIABLE, FrameStore, open_store, read_store, repair, store_root, verify
from model.data.synthetic import generate
from model.errors import DataError

SIZE = 16
SYNTHETIC = SyntheticConfig(sequences=3, frames=5)


def synthetic(tmp_path: Path, **changes) -> DataConfig:
    return DataConfig(**{"synthetic": SYNTHETIC, "image_size": SIZE, "store_dir": tmp_path / "store", **changes})


def frame_folders(tmp_path: Path, sequences: dict[str, range], **changes) -> DataConfig:
    """Images whose grey level is their index."""
    for name, indices in sequences.items():
        (tmp_path / "root" / name).mkdir(parents=True)
        for index in indices:
            Image.new("L", (20, 16), index).save(tmp_path / "root" / name / f"{index}.png")
    given = {"source": "frames", "root": tmp_path / "root", "image_size": SIZE, "store_dir": tmp_path / "store"}
    return DataConfig(**{**given, **changes})


def damage(data: DataConfig, *names: str) -> None:
    for name in names:
        assert data.root is not None
        (data.root / name).write_bytes(b"")


def test_a_store_holds_the_frames_of_its_source_in_order(tmp_path):
    store = open_store(synthetic(tmp_path))
    frames, labels = generate(SYNTHETIC, (SIZE, SIZE))
    assert [(s.name, s.start, s.first, s.length) for s in store.sequences] == [
        ("press_0000", 0, 0, 5),
        ("press_0001", 0, 5, 5),
        ("press_0002", 0, 10, 5),
    ]
    np.testing.assert_array_equal(store.frames, frames.reshape(15, SIZE, SIZE, 3))
    assert [s.labels["indenter"] for s in store.sequences] == list(labels.indenter)
    np.testing.assert_array_equal([s.labels["slip"] for s in store.sequences], labels.slip)
    assert store.skipped == []
    assert not store.frames.flags.writeable


def test_a_store_is_built_once_and_then_opened(tmp_path):
    calls: list[tuple[int, int]] = []
    first = open_store(synthetic(tmp_path), lambda done, total: calls.append((done, total)))
    assert calls[-1] == (15, 15)
    second = open_store(synthetic(tmp_path), lambda *_: pytest.fail("built again"))
    assert first.folder == second.folder
    assert first.sequences == second.sequences
    assert [p.name for p in (tmp_path / "store").iterdir() if not p.name.endswith(".lock")] == [first.folder.name]


def test_another_size_seed_or_file_is_another_store_and_another_split_is_not(tmp_path):
    data = frame_folders(tmp_path, {"a": range(4)})
    folders = {open_store(d).folder for d in (data, data.model_copy(update={"image_size": (8, 16)}))}
    assert len(folders) == 2
    assert open_store(data.model_copy(update={"split_seed": 3, "frame_stride": 2})).folder in folders
    Image.new("L", (20, 16), 9).save(tmp_path / "root" / "a" / "0.png")
    os.utime(tmp_path / "root" / "a" / "0.png", ns=(1, 1))
    assert open_store(data).folder not in folders
    seeds = [synthetic(tmp_path, synthetic=SyntheticConfig(sequences=1, frames=4, seed=seed)) for seed in (0, 1)]
    assert open_store(seeds[0]).folder != open_store(seeds[1]).folder


def test_store_dir_goes_before_the_environment_and_that_before_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "env"))
    assert store_root(synthetic(tmp_path)) == tmp_path / "store"
    assert store_root(DataConfig()) == tmp_path / "env"
    monkeypatch.delenv(STORE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store_root(DataConfig()).parts[-2:] == ("tactile-sweep", "frames")


def test_a_sequence_is_split_at_missing_indices_and_keeps_its_name(tmp_path):
    data = frame_folders(tmp_path, {"a": range(3), "b": range(10)})
    (tmp_path / "root" / "b" / "4.png").unlink()
    (tmp_path / "root" / "b" / "0.png").unlink()
    store = open_store(data)
    assert [(s.name, s.start, s.first, s.length) for s in store.sequences] == [
        ("a", 0, 0, 3),
        ("b", 1, 3, 3),
        ("b", 5, 6, 5),
    ]
    assert store.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 1, 2, 3, 5, 6, 7, 8, 9]


def test_a_damaged_image_is_skipped_reported_once_and_splits_its_sequence(tmp_path, caplog):
    data = frame_folders(tmp_path, {"a": range(30)})
    damage(data, "a/12.png")
    with caplog.at_level(logging.WARNING):
        store = open_store(data)
        assert open_store(data).skipped == store.skipped
    assert [(s.start, s.length) for s in store.sequences] == [(0, 12), (13, 17)]
    assert [fault.file for fault in store.skipped] == ["a/12.png"]
    assert [r.message for r in caplog.records if "a/12.png" in r.message] == [caplog.records[0].message]
    assert "1 of 30 images cannot be read" in caplog.text


def test_too_many_damaged_images_are_refused_with_their_number_and_the_first_names(tmp_path):
    data = frame_folders(tmp_path, {"a": range(100)})
    damage(data, *(f"a/{index}.png" for index in range(8)))
    with pytest.raises(
        DataError, match=r"8 of 100 images cannot be read \(a/0\.png: .*a/4\.png: .*; and 3 more\)"
    ) as e:
        open_store(data)
    assert "5%" in str(e.value)
    assert not [p for p in (tmp_path / "store").iterdir() if not p.name.endswith(".lock")], "a half store was left"


def test_exactly_the_allowed_share_of_damaged_images_passes(tmp_path):
    data = frame_folders(tmp_path, {"a": range(40)})
    damage(data, "a/3.png", "a/9.png")
    assert len(open_store(data).skipped) == 2


@given(present=st.sets(st.integers(0, 30), min_size=1), faults=st.sets(st.integers(0, 30)))
@settings(max_examples=40)
def test_runs_cover_the_readable_frames_exactly_and_never_span_a_hole(present, faults, tmp_path_factory):
    readable = sorted(present - faults)

    class Holes:
        kind, unit, num_units, sequences = "holes", "images", 1000, ("a",)

        def labels(self, _):
            return {"shape": "x", "value": list(range(31))}

        def read(self, _, size, pool):
            for position in sorted(present):
                fault = Fault(str(position), "damaged")
                yield position, fault if position in faults else np.full((*size, 3), position, np.uint8)

    folder = tmp_path_factory.mktemp("runs")
    build(Holes(), (2, 2), folder)
    frames = np.load(folder / "frames.npy")
    (record,) = read_records(folder / "sequences.jsonl")
    assert frames[:, 0, 0, 0].tolist() == readable
    assert sorted(int(fault.file) for fault in record.skipped) == sorted(present & faults)
    covered = []
    for run in record.runs:
        span = list(range(run.start, run.start + run.length))
        assert frames[run.first : run.first + run.length, 0, 0, 0].tolist() == span == run.labels["value"]
        assert run.labels["shape"] == "x"
        covered += span
    assert covered == readable
    assert all(after.start > before.start + before.length for before, after in itertools.pairwise(record.runs))


@pytest.mark.parametrize("num_frames", [0, 1, 12345])
def test_the_written_file_is_a_plain_npy_file(tmp_path, num_frames):
    with FrameWriter(tmp_path / "frames.npy", (2, 3)) as writer:
        for index in range(num_frames):
            writer.append(np.full((2, 3, 3), index % 256, np.uint8))
    frames = np.load(tmp_path / "frames.npy")
    assert frames.shape == (num_frames, 2, 3, 3)
    np.testing.assert_array_equal(frames[:, 1, 2, 2], np.arange(num_frames) % 256)


def test_progress_counts_frames_within_a_sequence_too(tmp_path):
    data = frame_folders(tmp_path, {"a": range(100)})
    calls: list[tuple[int, int]] = []
    open_store(data, lambda done, total: calls.append((done, total)))
    assert calls == [*((done, 100) for done in range(16, 100, 16)), (100, 100)]


def test_progress_of_a_long_video_starts_from_its_promised_length_and_ends_full(tmp_path):
    class Video:
        kind, unit, num_units, sequences = "video", "videos", 1, ("a",)

        def num_frames(self):
            return 40

        def labels(self, _):
            return {}

        def read(self, _, size, pool):
            yield from ((position, np.zeros((*size, 3), np.uint8)) for position in range(37))

    calls: list[tuple[int, int]] = []
    build(Video(), (2, 2), tmp_path, lambda done, total: calls.append((done, total)))
    assert calls == [(16, 40), (32, 40), (37, 37)]


# --- damage ---


def mended(data: DataConfig, caplog: pytest.LogCaptureFixture, kept: int) -> FrameStore:
    """The store opened again; `kept` sequences were not decoded for it."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        store = open_store(data)
    assert f"{kept} sequences of an earlier build were whole" in caplog.text
    assert verify(store.folder) == []
    return store


def flip_bit(path: Path, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        (old,) = file.read(1)
        file.seek(byte)
        file.write(bytes([old ^ 4]))


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("frames cut", "cannot be|mmap length is greater than file size"),
        ("frames longer", "7 bytes too many"),
        ("no frames", "No such file"),
        ("header", "magic string"),
        ("no records", "No such file"),
        ("records cut", "line 3 of sequences.jsonl is not as it was written"),
        ("a record missing", "the frames that sequences.jsonl lists are not the 15 of frames.npy"),
        ("a label changed", "line 1 of sequences.jsonl"),
    ],
)
def test_a_damaged_store_is_mended_when_it_is_opened_and_says_what_is_damaged(tmp_path, fault, named, caplog):
    store = open_store(synthetic(tmp_path))
    expected = np.array(store.frames)
    frames, records = store.folder / "frames.npy", store.folder / "sequences.jsonl"
    (store.folder / "statistics-of-damaged-frames.npy").write_bytes(b"")
    if fault == "frames cut":
        os.truncate(frames, frames.stat().st_size - 100)
    elif fault == "frames longer":
        frames.write_bytes(frames.read_bytes() + bytes(7))
    elif fault == "no frames":
        frames.unlink()
    elif fault == "header":
        flip_bit(frames, 0)
    elif fault == "no records":
        records.unlink()
    elif fault == "records cut":
        os.truncate(records, records.stat().st_size - 50)
    elif fault == "a record missing":
        records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    else:
        records.write_text(records.read_text().replace("false", "true ", 1))
    with caplog.at_level(logging.WARNING):
        again = open_store(synthetic(tmp_path))
    (message,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"store .* is damaged \(.*({named}).*\); what is damaged is decoded again", message)
    np.testing.assert_array_equal(again.frames, expected)
    assert again.sequences == store.sequences
    assert {path.name for path in again.folder.iterdir()} == {"frames.npy", "sequences.jsonl"}


def test_a_truncated_store_keeps_the_sequences_that_are_whole(tmp_path, caplog):
    store = open_store(synthetic(tmp_path))
    expected = np.array(store.frames)
    os.truncate(store.folder / "frames.npy", 128 + 12 * SIZE * SIZE * 3)
    again = mended(synthetic(tmp_path), caplog, kept=2)
    np.testing.assert_array_equal(again.frames, expected)


def test_a_flipped_bit_is_found_by_verify_and_only_its_sequence_is_decoded_again(tmp_path, caplog):
    store = open_store(synthetic(tmp_path))
    expected = np.array(store.frames)
    assert verify(store.folder) == []
    flip_bit(store.folder / "frames.npy", 128 + 7 * SIZE * SIZE * 3 + 11)
    assert verify(store.folder) == ["press_0001"]
    repair(store.folder)
    again = mended(synthetic(tmp_path), caplog, kept=2)
    np.testing.assert_array_equal(again.frames, expected)


def test_a_store_that_was_copied_to_another_ones_place_is_not_taken_for_it(tmp_path, caplog):
    data = frame_folders(tmp_path, {"a": range(3), "b": range(3)})
    other = open_store(frame_folders(tmp_path / "other", {"a": range(3), "c": range(5)}))
    expected = open_store(data)
    shutil.rmtree(expected.folder)
    shutil.copytree(other.folder, expected.folder)
    again = mended(data, caplog, kept=1)
    assert "it holds other sequences" in caplog.text
    assert again.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]


@given(
    frames_end=st.integers(0, 128 + 15 * SIZE * SIZE * 3),
    records_end=st.integers(0, 2000),
    flips=st.lists(st.tuples(st.sampled_from(["frames.npy", "sequences.jsonl"]), st.integers(0, 20000)), max_size=3),
)
@settings(max_examples=40)
def test_whatever_a_killed_build_left_the_next_one_gives_the_same_store(
    frames_end, records_end, flips, tmp_path_factory
):
    tmp_path = tmp_path_factory.mktemp("left")
    store = open_store(synthetic(tmp_path))
    expected = np.array(store.frames)
    repair(store.folder)
    (scratch,) = (tmp_path / "store").glob(".*.building")
    for name, end in (("frames.npy", frames_end), ("sequences.jsonl", records_end)):
        os.truncate(scratch / name, min(end, (scratch / name).stat().st_size))
    for name, byte in flips:
        if byte < (scratch / name).stat().st_size:
            flip_bit(scratch / name, byte)
    again = open_store(synthetic(tmp_path))
    np.testing.assert_array_equal(again.frames, expected)
    assert again.sequences == store.sequences
    assert verify(again.folder) == []


def test_a_sequence_that_comes_out_longer_or_shorter_than_before_moves_those_behind_it(tmp_path):
    lengths = [4, 3, 5]

    class Changing:
        kind, unit, num_units, sequences = "changing", "images", 1000, ("a", "b", "c")

        def labels(self, _):
            return {}

        def read(self, number, size, pool):
            for position in range(lengths[number]):
                yield position, np.full((*size, 3), 10 * number + position, np.uint8)

    build(Changing(), (2, 2), tmp_path)
    for length in (5, 1):
        flip_bit(tmp_path / "frames.npy", 128 + 4 * 12)  # the first byte of b
        lengths[1] = length
        build(Changing(), (2, 2), tmp_path)
        records, frames = read_store(tmp_path)
        assert [record.rows.length for record in records] == lengths
        assert frames[:, 0, 0, 0].tolist() == [*range(4), *range(10, 10 + length), *range(20, 25)]
        assert verify(tmp_path) == []


# --- several processes ---


BUILT = SyntheticConfig(sequences=3, frames=20)
BUILD = """
    import sys
    from pathlib import Path
    from model.data.config import DataConfig, SyntheticConfig
    from model.data.store import open_store
    folder, waits = Path(sys.argv[1]), sys.argv[2] == "waits"
    data = DataConfig(synthetic=SyntheticConfig(sequences=3, frames=20), image_size=16, store_dir=folder / "store")

    def progress(done, total):
        print("built", done, flush=True)
        if waits:
            sys.stdin.readline()  # until the test lets it go on

    print("opens", flush=True)
    store = open_store(data, progress)
    assert "torch" not in sys.modules
    print("frames", len(store.frames), int(store.frames.sum()), flush=True)
"""
LIMIT_S = 500  # none of them takes long, but the machine may be busy


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.process
def test_of_two_processes_one_builds_and_the_other_waits_and_opens_without_torch(tmp_path):
    builder = start(BUILD, tmp_path, "waits")
    assert builder.stdout is not None
    built = list(itertools.islice(builder.stdout, 2))
    assert built[0] == "opens\n"
    other = start(BUILD, tmp_path, "")
    assert other.stdout is not None
    assert other.stdout.readline() == "opens\n"
    text, _ = builder.communicate("\n" * 10, timeout=LIMIT_S)
    seen, _ = other.communicate(timeout=LIMIT_S)
    assert (builder.returncode, other.returncode) == (0, 0)
    *rest, frames = text.splitlines()
    assert sum(line.startswith("built") for line in [*built, *rest]) == 4
    assert seen.splitlines() == [frames]
    assert frames.startswith("frames 60 ")


@pytest.mark.process
@pytest.mark.parametrize("rotten", [False, True])
def test_a_killed_build_loses_the_sequence_under_way_and_what_rots_until_the_next(tmp_path, rotten, caplog):
    process = start(BUILD, tmp_path, "waits")
    assert process.stdin is not None
    assert process.stdout is not None
    for line in iter(process.stdout.readline, ""):
        if line == "built 48\n":  # 8 frames into the third sequence
            break
        if line.startswith("built"):
            process.stdin.write("\n")
            process.stdin.flush()
    process.kill()
    process.communicate(timeout=LIMIT_S)
    (scratch,) = [path for path in (tmp_path / "store").iterdir() if not path.name.endswith(".lock")]
    assert scratch.name.endswith(".building")
    if rotten:
        flip_bit(scratch / "frames.npy", 1000)
    data = synthetic(tmp_path, synthetic=BUILT)
    store = mended(data, caplog, kept=1 if rotten else 2)
    undisturbed = open_store(synthetic(tmp_path, synthetic=BUILT, store_dir=tmp_path / "undisturbed"))
    np.testing.assert_array_equal(store.frames, undisturbed.frames)
    assert store.sequences == undisturbed.sequences
    visible = [path for path in (tmp_path / "store").iterdir() if not path.name.endswith(".lock")]
    assert visible == [store.folder]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, caplog):
    def interrupt(done: int, total: int) -> None:
        if done >= 48:
            raise KeyboardInterrupt

    data = synthetic(tmp_path, synthetic=BUILT)
    with pytest.raises(KeyboardInterrupt):
        open_store(data, interrupt)
    mended(data, caplog, kept=2)


SHORT_OF_ROOM = """
    import resource, sys
    from pathlib import Path
    from model.data.config import DataConfig, SyntheticConfig
    from model.data.store import open_store
    from model.errors import DataError
    limit = 128 + 50 * 16 * 16 * 3
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    data = DataConfig(synthetic=SyntheticConfig(sequences=3, frames=20), image_size=16, store_dir=sys.argv[1])
    try:
        open_store(data)
    except DataError as error:
        print(error)
"""


@pytest.mark.process
def test_a_build_without_room_says_so_and_the_next_try_keeps_what_was_decoded(tmp_path, caplog):
    text, _ = start(SHORT_OF_ROOM, tmp_path / "store").communicate(timeout=LIMIT_S)
    assert re.search(r"cannot be written: .*File too large.* set data\.store_dir .*make room; what was decoded", text)
    mended(synthetic(tmp_path, synthetic=BUILT), caplog, kept=2)


def large(tmp_path: Path, num_frames: int) -> DataConfig:
    """A sequence of one image under many names, 224 x 224: 150 kB of the store each."""
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).resize((320, 240)).save(folder / "0.jpg")
    for index in range(1, num_frames):
        (folder / f"{index}.jpg").hardlink_to(folder / "0.jpg")
    return DataConfig(source="frames", root=tmp_path / "root", image_size=224, store_dir=tmp_path / "store")


SHARE = """
    import sys
    from pathlib import Path
    import psutil
    from model.data.store import read_store

    def wait(*numbers):
        print(*numbers, flush=True)
        sys.stdin.readline()

    wait("ready")
    before = psutil.Process().memory_full_info()
    wait("measured")
    _, frames = read_store(Path(sys.argv[1]))
    for first in range(0, len(frames), 16):
        frames[first : first + 16].sum()
    wait("read")
    after = psutil.Process().memory_full_info()
    wait(after.pss - before.pss, after.rss - before.rss)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell PSS")
def test_three_processes_that_read_a_store_hold_one_copy_of_it(tmp_path):
    store = open_store(large(tmp_path, 200))
    processes = [start(SHARE, store.folder) for _ in range(3)]
    for _ in range(4):  # all take each step together: what they share changes with the number of them
        lines = [process.stdout.readline() for process in processes if process.stdout is not None]
        for process in processes:
            print(file=process.stdin, flush=True)
    for process in processes:
        process.communicate(timeout=LIMIT_S)
    pss, rss = np.array([[int(number) for number in line.split()] for line in lines]).T
    assert all(rss > 0.95 * store.frames.nbytes)
    assert 0.9 * store.frames.nbytes < pss.sum() < 1.2 * store.frames.nbytes


LITTLE_MEMORY = """
    import re, resource, sys
    from pathlib import Path
    import numpy as np
    from model.data.config import DataConfig
    from model.data.store import open_store

    data = DataConfig.model_validate_json(sys.argv[1])
    held = 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    limit = held + 50_000_000  # two threads, their frames, the decoder
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    frames = open_store(data).frames
    for first in np.random.default_rng(0).permutation(len(frames) - 3):
        assert frames[first + np.arange(4)].shape == (4, 224, 224, 3)
    print(len(frames))
    try:
        np.array(frames)
    except MemoryError:
        print("a copy does not fit")
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="limits the data segment as Linux does")
def test_a_store_larger_than_the_memory_of_its_process_is_built_and_read(tmp_path):
    process = start(LITTLE_MEMORY, large(tmp_path, 600).model_dump_json())
    text, _ = process.communicate(timeout=LIMIT_S)
    assert text == "600\na copy does not fit\n"


def test_a_store_that_cannot_be_written_says_where_and_what_to_set(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/.* cannot be written: .*set data\.store_dir"):
        open_store(synthetic(tmp_path, store_dir=tmp_path / "file"))
