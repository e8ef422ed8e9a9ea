"""Checkpoint files: whole or refused, and never a way to run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

STATE = {"version": 1, "model": {"weight": torch.arange(6.0).reshape(2, 3)}, "best": [0.5, 2], "seconds": 1.25}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "last.pt"
    save_checkpoint(path, STATE)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A file that every Hypothesis example overwrites."""
    return tmp_path_factory.mktemp("damaged") / "last.pt"


def test_what_was_saved_is_loaded_and_no_other_file_is_left(tmp_path):
    path = tmp_path / "checkpoint" / "last.pt"
    save_checkpoint(path, STATE)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"].pop("weight"), STATE["model"]["weight"])
    assert loaded == {"version": 1, "model": {}, "best": [0.5, 2], "seconds": 1.25}
    assert list(path.parent.iterdir()) == [path]


class Interrupting:
    """Stops whoever pickles it, as a kill in the middle of a write would."""

    def __reduce__(self):
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"weights": torch.zeros(1000), "epoch": Interrupting()})
    assert load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"last\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path)


@given(data=st.data())
def test_a_checkpoint_cut_anywhere_is_refused(saved, scratch, data):
    scratch.write_bytes(saved[: data.draw(st.integers(0, len(saved) - 1))])
    with pytest.raises(CheckpointError, match="not a whole checkpoint of this program"):
        load_checkpoint(scratch)


@given(junk=st.binary(max_size=64) | st.binary(max_size=64).map(lambda b: b"\x80\x02" + b))
def test_any_other_bytes_are_refused(scratch, junk):
    scratch.write_bytes(junk)
    with pytest.raises(CheckpointError):
        load_checkpoint(scratch)


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, write):
    trap = tmp_path / "trap"
    write({"version": 1, "model": Malicious(trap)}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="not a whole checkpoint of this program"):
        load_checkpoint(tmp_path / "last.pt")
    assert not trap.exists()


def test_a_file_that_holds_something_else_says_what(tmp_path):
    save_checkpoint(tmp_path / "last.pt", [1, 2])
    with pytest.raises(CheckpointError, match="holds a list, not a checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
