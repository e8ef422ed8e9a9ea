"""Checkpoint files: whole or refused, and never a way to run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import (
    CheckpointError,
    forget_previous,
    has_checkpoint,
    load_checkpoint,
    resume_from,
    save_checkpoint,
)

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


# --- the checkpoint before -----------------------------------------------------------------------------------------


def run_folder(folder: Path) -> Path:
    """The path of a run's last checkpoint, after two were written; returns it."""
    path = folder / "checkpoint" / "last.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch}, keep_previous=True)
    return path


def test_the_last_checkpoint_is_taken_where_it_is_sound(tmp_path):
    assert resume_from(run_folder(tmp_path), lambda state: state["epoch"]) == (2, None)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short", pickle.dumps({"epoch": 2})])
def test_the_checkpoint_before_is_taken_where_the_last_is_damaged_and_it_is_said(tmp_path, damage):
    path = run_folder(tmp_path)
    path.write_bytes(damage)
    epoch, note = resume_from(path, lambda state: state["epoch"])
    assert epoch == 1
    assert note is not None
    assert str(path) in note
    assert note.endswith("Going on from the checkpoint before it, previous.pt")


def test_the_checkpoint_before_is_taken_where_the_last_does_not_fit(tmp_path):
    def take(state: dict) -> int:
        if state["epoch"] == 2:
            raise CheckpointError("the checkpoint does not fit this model")
        return state["epoch"]

    epoch, note = resume_from(run_folder(tmp_path), take)
    assert epoch == 1
    assert note is not None
    assert note.startswith("the checkpoint does not fit this model. ")


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    path = run_folder(tmp_path)
    path.replace(path.with_name("previous.pt"))  # the old one is moved away, the new one not yet there
    assert has_checkpoint(path)
    assert resume_from(path, lambda state: state["epoch"])[0] == 2


def test_where_neither_fits_the_reason_is_that_of_the_last(tmp_path):
    path = run_folder(tmp_path)
    path.write_bytes(b"damaged")
    path.with_name("previous.pt").write_bytes(b"damaged too")
    with pytest.raises(CheckpointError, match=r"last\.pt: not a whole checkpoint"):
        resume_from(path, lambda state: state)


def test_a_checkpoint_of_another_name_stands_for_itself(tmp_path):
    path = run_folder(tmp_path)
    mine = path.with_name("mine.pt")
    mine.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"mine\.pt: not a whole checkpoint"):
        resume_from(mine, lambda state: state)


def test_the_checkpoint_before_can_be_forgotten(tmp_path):
    path = run_folder(tmp_path)
    forget_previous(path)
    forget_previous(path)
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]
