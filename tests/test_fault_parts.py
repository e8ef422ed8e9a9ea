"""The parts that faults are met with, by themselves: ownership, the watchdog, what a damaged file still holds."""

from __future__ import annotations

import errno
import faulthandler
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoint import save_checkpoint
from model.sinks import CsvSink, read_csv, remove_scratch, sound_rows
from sweep import watchdog
from sweep.faults import out_of_memory, storage_trouble
from sweep.ownership import Ownership, TakenOverError
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob
from sweep.watchdog import OPEN_STACKS, STACKS, Watchdog, take_stacks
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]


def job(results: Path, **changes: object) -> TrialJob:
    content = {"trial": "0003", "sweep": "s", "sweep_uid": "abcd1234", "results": results, "config": tiny_config()}
    return TrialJob.model_validate(
        content | {"values": {"alpha": 0.5}, "project": "p", "wandb": {"mode": "disabled"}} | changes
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_process_whose_trial_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    late = TrialRun(job(tmp_path))
    late.run_epoch()
    following = TrialRun(job(tmp_path))
    following.run_epoch()
    before = files_of(tmp_path)
    with pytest.raises(TakenOverError, match="another process has taken this trial over"):
        late.run_epoch()
    assert files_of(tmp_path) == before
    assert following.run_epoch().finished
    assert len(read_csv(tmp_path / "trials/0003/batch.csv")) == 12


def test_one_that_is_late_saves_and_tells_nothing(tmp_path: Path) -> None:
    late = TrialRun(job(tmp_path))
    late.run_epoch()
    TrialRun(job(tmp_path)).run_epoch()
    late._diagnosis.add_batch({"batch/epoch": 1, "batch/loss_total": math.nan})
    before = files_of(tmp_path)
    for write in (late._save, late._tell):
        with pytest.raises(TakenOverError):
            write()
    assert files_of(tmp_path) == before


def test_one_that_is_late_to_end_leaves_summary_and_checkpoint_alone(tmp_path: Path) -> None:
    late = TrialRun(job(tmp_path))
    TrialRun(job(tmp_path)).close()
    before = files_of(tmp_path)
    with pytest.raises(TakenOverError):
        late.close()
    assert files_of(tmp_path) == before


def test_an_ended_trial_is_nobodys_and_has_no_scratch_file(tmp_path: Path) -> None:
    (tmp_path / "trials/0003/checkpoint").mkdir(parents=True)
    for left in (".config.yaml.17.tmp", "batch.csv.tmp", "checkpoint/.last.pt.17.tmp"):
        (tmp_path / "trials/0003" / left).write_bytes(b"half")
    run = TrialRun(job(tmp_path, hang_s=600.0))
    while not run.run_epoch().finished:
        pass
    assert [name for name in files_of(tmp_path) if Path(name).name.startswith(".") or name.endswith(".tmp")] == []


def test_a_folder_that_was_removed_is_taken_for_lost(tmp_path: Path) -> None:
    owner = Ownership(tmp_path)
    owner.take()
    owner.check()
    (tmp_path / ".owner").unlink()
    with pytest.raises(TakenOverError):
        owner.check()


def test_a_checkpoint_that_must_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"update": 1})
    before = files_of(tmp_path)

    def refuse() -> None:
        raise TakenOverError("late")

    with pytest.raises(TakenOverError):
        save_checkpoint(path, {"update": 2}, keep_previous=True, last_look=refuse)
    assert files_of(tmp_path) == before


@pytest.mark.process
def test_a_process_that_hangs_without_giving_back_the_lock_of_python_is_ended_with_its_stacks(tmp_path: Path) -> None:
    # a search with so many ways holds Python's lock until it ends, in hours
    code = """
import re, sys
from pathlib import Path
from sweep.watchdog import Watchdog
dog = Watchdog(1.0, Path(sys.argv[1]))
with dog.watching():
    re.match("(a+)+$", "a" * 40 + "b")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 1
    assert take_stacks(tmp_path)
    assert "re/__init__.py" in (tmp_path / STACKS).read_text()
    assert not take_stacks(tmp_path)


def test_a_process_that_waits_between_two_parts_or_goes_on_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # faulthandler counts in C, by no clock that a test could hold: what it is told says when it would end the process
    told: list[str] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda limit_s, **how: told.append("count"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append("stop"))
    monkeypatch.setattr(watchdog, "ARM_EVERY_S", -1.0)  # no batch is too soon after the last
    dog = Watchdog(1.0, tmp_path)
    with dog.watching():
        dog.alive()
        dog.alive()
        assert told == ["count"] * 3
        with dog.paused():
            dog.alive()
            assert told[3:] == ["stop"]
        assert told[4:] == ["count"]
    dog.alive()
    assert told[5:] == ["stop"]
    dog.close()
    assert not (tmp_path / OPEN_STACKS).exists()


@pytest.mark.parametrize(
    "tail", [b"5,0.1", b"1,2,3\n", b"x,0.5\n", bytes(64), bytes(64) + b"\n", b"\xff\xfe\n", b"\n"], ids=repr
)
def test_of_a_damaged_file_the_rows_before_the_damage_are_there(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"batch/iteration,loss\n0,0.5\n1,\n" + tail)
    assert sound_rows(path) == [{"batch/iteration": 0, "loss": 0.5}, {"batch/iteration": 1}]


def test_rows_are_kept_before_a_damaged_tail(tmp_path: Path) -> None:
    CsvSink(tmp_path).close(0)
    path = tmp_path / "epoch.csv"
    head = path.read_bytes()
    row = b"0" + b"," * head.count(b",") + b"\n"
    path.write_bytes(head + row + b"\xff\xfe\n" + bytes(9))
    CsvSink(tmp_path, keep_epochs=1).close(0)
    assert path.read_bytes() == head + row


def test_scratch_files_go_and_others_stay(tmp_path: Path) -> None:
    for name in (".spec.yaml.1.tmp", "epoch.csv.tmp", "epoch.csv", "notes.tmp"):
        (tmp_path / name).touch()
    remove_scratch(tmp_path, tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch.csv", "notes.tmp"]


def test_what_a_full_disk_refused_is_found_behind_other_errors() -> None:
    error = RuntimeError("writing")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/batch.csv")
    assert storage_trouble(error) == "the disk is full: /disk/batch.csv cannot be written (No space left on device)"
    assert storage_trouble(OSError(errno.EROFS, ""), Path("/r")) == (
        "the file system is read-only: /r cannot be written (Read-only file system)"
    )
    assert storage_trouble(FileNotFoundError(errno.ENOENT, "")) is None
    assert storage_trouble(ValueError("7")) is None


@pytest.mark.parametrize(
    "last",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: ...",
        "MemoryError",
    ],
)
def test_a_lack_of_memory_says_what_to_lower(last: str) -> None:
    reason = out_of_memory(f"Traceback ...\n  File ...\n{last}\n")
    assert reason is not None
    assert "lower batch_size" in reason
    assert out_of_memory("Traceback ...\nValueError: 7\n") is None
