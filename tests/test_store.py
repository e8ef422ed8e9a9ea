"""The frame store: built once, whole or not at all, shared by processes, rebuilt where it is damaged."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data import store as store_module
from model.data.config import DataConfig, SyntheticConfig
from model.data.store import STORE_VARIABLE, FrameWriter, open_store, store_root
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
    assert calls == [(1, 3), (2, 3), (3, 3)]
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
@settings(deadline=None, max_examples=40)
def test_runs_cover_the_readable_frames_exactly_and_never_span_a_hole(present, faults, tmp_path_factory):
    readable = sorted(present - faults)

    class Holes:
        kind, unit, num_units, sequences = "holes", "images", 31, ("a",)

        def labels(self, _):
            return {"shape": "x", "value": list(range(31))}

        def read(self, _, size, pool):
            for position in sorted(present):
                fault = store_module.Fault(str(position), "damaged")
                yield position, fault if position in faults else np.full((*size, 3), position, np.uint8)

    path = tmp_path_factory.mktemp("runs") / "frames.npy"
    with FrameWriter(path, (2, 2)) as writer:
        runs, skipped = store_module._decode(Holes(), (2, 2), None, writer, None)
    frames = np.load(path)
    assert frames[:, 0, 0, 0].tolist() == readable
    assert sorted(int(fault.file) for fault in skipped) == sorted(present & faults)
    covered = []
    for run in runs:
        span = list(range(run.start, run.start + run.length))
        assert frames[run.first : run.first + run.length, 0, 0, 0].tolist() == span == run.labels["value"]
        assert run.labels["shape"] == "x"
        covered += span
    assert covered == readable
    assert all(after.start > before.start + before.length for before, after in itertools.pairwise(runs))


@pytest.mark.parametrize("num_frames", [0, 1, 12345])
def test_the_written_file_is_a_plain_npy_file(tmp_path, num_frames):
    with FrameWriter(tmp_path / "frames.npy", (2, 3)) as writer:
        for index in range(num_frames):
            writer.append(np.full((2, 3, 3), index % 256, np.uint8))
    frames = np.load(tmp_path / "frames.npy")
    assert frames.shape == (num_frames, 2, 3, 3)
    np.testing.assert_array_equal(frames[:, 1, 2, 2], np.arange(num_frames) % 256)


@pytest.mark.parametrize("fault", ["short frames", "no meta", "meta cut", "meta of another kind", "sequence too long"])
def test_a_damaged_store_is_built_again_and_says_so_once(tmp_path, fault, caplog):
    store = open_store(synthetic(tmp_path))
    expected = np.array(store.frames)
    frames, meta = store.folder / "frames.npy", store.folder / "meta.json"
    if fault == "short frames":
        os.truncate(frames, frames.stat().st_size - 100)
    elif fault == "no meta":
        meta.unlink()
    elif fault == "meta cut":
        meta.write_text(meta.read_text()[:50])
    elif fault == "meta of another kind":
        meta.write_text("[]")
    else:
        content = json.loads(meta.read_text())
        content["sequences"][-1]["length"] += 1
        meta.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        again = open_store(synthetic(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"the frame store {store.folder} is damaged; it is built again"
    ]
    np.testing.assert_array_equal(again.frames, expected)
    assert again.sequences == store.sequences


BUILD = """
    import sys, time
    from pathlib import Path
    from model.data.config import DataConfig, SyntheticConfig
    from model.data.store import open_store
    folder, pause = Path(sys.argv[1]), float(sys.argv[2])
    data = DataConfig(synthetic=SyntheticConfig(sequences=3, frames=5), image_size=16, store_dir=folder / "store")

    def progress(done, total):
        print("built", done, flush=True)
        time.sleep(pause)

    store = open_store(data, progress)
    assert "torch" not in sys.modules
    print("frames", len(store.frames), int(store.frames.sum()), flush=True)
"""


def start_build(tmp_path: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(tmp_path), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def test_of_two_processes_one_builds_and_the_other_waits_and_opens_without_torch(tmp_path):
    processes = [start_build(tmp_path, 0.3) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(sum(line.startswith("built") for line in lines) for lines in outputs) == [0, 3]
    assert outputs[0][-2] == outputs[1][-2]
    assert outputs[0][-2].startswith("frames 15 ")


def test_a_killed_build_leaves_nothing_that_opens_and_the_next_one_cleans_up(tmp_path):
    process = start_build(tmp_path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "built 1\n"
    process.kill()
    process.communicate(timeout=10)
    left = [path.name for path in (tmp_path / "store").iterdir()]
    assert any(name.endswith(".building") for name in left)
    store = open_store(synthetic(tmp_path))
    assert len(store.frames) == 15
    visible = [path for path in (tmp_path / "store").iterdir() if not path.name.endswith(".lock")]
    assert visible == [store.folder]


def test_a_store_that_cannot_be_written_says_where_and_what_to_set(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/.* cannot be written: .*set data\.store_dir"):
        open_store(synthetic(tmp_path, store_dir=tmp_path / "file"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_raises_rather_than_kills(tmp_path):
    (tmp_path / "frames.npy").symlink_to("/dev/full")
    writer = FrameWriter(tmp_path / "frames.npy", (512, 512))
    with pytest.raises(OSError, match="No space left"):
        writer.append(np.zeros((512, 512, 3), np.uint8))  # more than the file's buffer
