"""Disks that fill up or cannot be written: a sweep says so, ends, and goes on from there once they can be."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweep.study import JOURNAL
from tests.faults import (
    LONG,
    Driver,
    Kept,
    assert_no_leftovers,
    assert_wandb_has_every_row_once,
    driver,
    finish,
    write_spec,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]  # on a loaded machine a sweep takes a minute to start

END_S = 60.0  # W&B's end of a run waits for its service, which has no room either


@contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[Path]:
    """A disk of its own at `place`."""
    place.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this system allows no mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leaving: int = 0) -> Path:
    """Fill a disk up to so many bytes; returns the file that does it."""
    filler = disk / f"filler-{uuid.uuid4().hex}"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leaving))
    return filler


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(write_spec(folder, **LONG), folder / "results")
    return Kept.of(folder / "results")


def assert_ended_for_lack_of_room(running: Driver) -> None:
    assert running.ended(END_S) == 3, running.printed
    assert "the disk is full" in running.printed
    assert "all that finished is kept; go on with the same command and --resume" in running.printed
    assert "Traceback" not in running.printed
    assert running.left_over() == []


def test_a_sweep_on_a_full_disk_ends_and_is_the_undisturbed_one_once_there_is_room(
    tmp_path: Path, undisturbed: Kept
) -> None:
    spec = write_spec(tmp_path, **LONG)
    with small_disk(tmp_path / "large", 256) as disk, small_disk(tmp_path / "small", 1) as small:
        results = disk / "results"
        with driver(spec, results) as running:  # the row of an update
            running.until_rows(18)
            filler = fill(disk)
            assert_ended_for_lack_of_room(running)
        filler.unlink()
        with driver(spec, results, "--resume") as running:  # a checkpoint, for which rows leave no room
            running.until_rows(30)
            filler = fill(disk, leaving=120_000)
            assert_ended_for_lack_of_room(running)
        filler.unlink()
        journal = results / JOURNAL
        (small / JOURNAL).write_bytes(journal.read_bytes())
        journal.unlink()
        journal.symlink_to(small / JOURNAL)
        with driver(spec, results, "--resume") as running:  # the study
            running.until_rows(30)
            filler = fill(small)
            assert_ended_for_lack_of_room(running)
        filler.unlink()
        finish(spec, results)
        kept = Kept.of(results)
        assert (kept.study, kept.rows, kept.table) == (undisturbed.study, undisturbed.rows, undisturbed.table)
        assert_wandb_has_every_row_once(results)
        assert_no_leftovers(results)
        for name in ("trials.csv", "report.html"):
            (results / name).unlink()
        filler = fill(disk)
        with driver(spec, results, "--resume") as running:  # the table of trials
            assert_ended_for_lack_of_room(running)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with driver(spec, tmp_path / "link", "--resume", "--results", str(results)) as running:
            assert running.ended(END_S) == 2
            assert f"cannot write to {results}" in running.printed
            assert "Traceback" not in running.printed


def test_a_full_disk_under_the_frame_store_names_the_setting_that_moves_it(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **LONG)
    with small_disk(tmp_path / "small", 0.5) as small:
        filler = fill(small, leaving=20_000)
        with driver(spec, tmp_path / "results", env={"TACTILE_SWEEP_STORE": str(small)}) as running:
            assert running.ended(END_S) == 2
            assert "No space left on device" in running.printed
            assert "data.store_dir" in running.printed
        filler.unlink()
        with driver(
            spec, tmp_path / "results", "--dry-run", "--no-measure", env={"TACTILE_SWEEP_STORE": str(small)}
        ) as running:
            assert running.ended(END_S) == 0, running.printed
