"""`python -m model.data.verify`: what it says of whole, damaged and unfinished stores, and what --repair hands back."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.data.config import DataConfig, SyntheticConfig
from model.data.store import FrameStore, open_store, repair, verify
from model.data.verify import main

ROOT = Path(__file__).resolve().parents[1]


def data(tmp_path: Path, seed: int = 0) -> DataConfig:
    synthetic = SyntheticConfig(sequences=3, frames=5, seed=seed)
    return DataConfig(synthetic=synthetic, image_size=16, store_dir=tmp_path / "store")


def damage(store: FrameStore, byte: int = 128 + 7 * 16 * 16 * 3) -> None:
    path = store.folder / "frames.npy"
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_whole_stores_are_listed_with_their_size_and_the_exit_code_is_0(tmp_path, capsys):
    names = sorted(open_store(data(tmp_path, seed)).folder.name for seed in (0, 1))
    assert main([str(tmp_path / "store")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"ok          {name}: 0.0 MB, 15 frames, 3 sequences" for name in names
    ]


def test_a_damaged_store_is_named_with_its_sequences_and_stays_as_it_is_without_repair(tmp_path, capsys):
    store = open_store(data(tmp_path))
    damage(store)
    assert main([str(tmp_path / "store")]) == 1
    out = capsys.readouterr().out
    assert f"damaged     {store.folder.name}: 1 of 3 sequences (press_0001)" in out
    assert "--repair hands damaged stores back" in out
    assert verify(store.folder) == ["press_0001"]


def test_repair_hands_a_damaged_store_back_and_the_next_run_mends_it(tmp_path, capsys):
    whole, broken = (open_store(data(tmp_path, seed)) for seed in (0, 1))
    damage(broken)
    assert main([str(tmp_path / "store"), "--repair"]) == 1
    assert "handed back" in capsys.readouterr().out
    assert whole.folder.exists()
    assert not broken.folder.exists()
    assert verify(open_store(data(tmp_path, 1)).folder) == []
    assert main([str(tmp_path / "store")]) == 0


@pytest.mark.parametrize("file", ["frames.npy", "sequences.jsonl"])
def test_a_store_that_does_not_open_says_why(tmp_path, capsys, file):
    store = open_store(data(tmp_path))
    (store.folder / file).write_bytes(b"x" + (store.folder / file).read_bytes())
    assert main([str(tmp_path / "store")]) == 1
    reason = {"frames.npy": "magic string", "sequences.jsonl": "line 1 of sequences.jsonl"}[file]
    assert reason in capsys.readouterr().out


def test_an_unfinished_store_is_no_damage(tmp_path, capsys):
    store = open_store(data(tmp_path))
    repair(store.folder)
    (tmp_path / "store" / f".{store.folder.name}.building" / "sequences.jsonl").unlink()
    assert main([str(tmp_path / "store")]) == 0
    assert capsys.readouterr().out.startswith(f"unfinished  .{store.folder.name}.building: 0.0 MB, 0 sequences;")


def test_one_store_can_be_given_and_many_damaged_sequences_are_not_all_named(tmp_path, capsys):
    synthetic = SyntheticConfig(sequences=7, frames=4)
    store = open_store(DataConfig(synthetic=synthetic, image_size=16, store_dir=tmp_path))
    for number in range(7):
        damage(store, 128 + number * 4 * 16 * 16 * 3)
    assert main([str(store.folder)]) == 1
    assert (
        "7 of 7 sequences (press_0000, press_0001, press_0002, press_0003, press_0004, ...)" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("make", "said"), [(False, "no such folder"), (True, "holds no frame store")])
def test_a_root_without_stores_is_bad_input(tmp_path, capsys, make, said):
    if make:
        (tmp_path / "none").mkdir()
    assert main([str(tmp_path / "none")]) == 2
    assert said in capsys.readouterr().err


def test_the_command_without_a_root_looks_at_the_default_folder(tmp_path, capsys, frame_stores):
    open_store(data(tmp_path).model_copy(update={"store_dir": None}))
    assert main([]) == 0
    assert "ok          synthetic-16x16-" in capsys.readouterr().out
