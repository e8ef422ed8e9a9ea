"""A disk of its own that really fills up or may not be written: a sweep says so, ends, and goes on once it can.

What happens at each single write is in tests/test_every_write.py; here the kernel says no, also to W&B's service.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Kept, assert_no_leftovers, assert_wandb_has_every_row_once
from tests.inline import Inline, sweep
from tests.sweeping import write_spec

pytestmark = [pytest.mark.needs("mount"), pytest.mark.process]
SPEC: dict[str, Any] = {"run_cap": 3, "resources": {"max_concurrent": 1}}


@contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[Path]:
    """A disk of its own at `place`."""
    place.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=True)
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


# no room at all, and room for rows but not for a checkpoint
@pytest.mark.parametrize("leaving", [0, 60_000])
def test_a_sweep_on_a_full_disk_ends_and_is_the_undisturbed_one_once_there_is_room(
    tmp_path: Path, leaving: int
) -> None:
    spec = write_spec(tmp_path, **SPEC)
    assert sweep(spec, tmp_path / "undisturbed").code == 0
    fillers: list[Path] = []

    def fills_up(trial: str, epochs: int) -> None:
        if (trial, epochs) == ("0001", 1):
            fillers.append(fill(disk, leaving))

    with small_disk(tmp_path / "disk", 64) as disk:
        results = disk / "results"
        done = sweep(spec, results, engine=Inline(before_epoch=fills_up))
        assert done.code == 3, done.out + done.err
        assert "the disk is full" in done.out + done.err
        assert "all that finished is kept; go on with the same command and --resume" in done.out + done.err
        assert "Traceback" not in done.out + done.err
        fillers[0].unlink()
        done = sweep(spec, results, "--resume")
        assert done.code == 0, done.out + done.err
        assert Kept.of(results) == Kept.of(tmp_path / "undisturbed")
        assert_wandb_has_every_row_once(results)
        assert_no_leftovers(results)


def test_a_disk_that_may_only_be_read_is_refused_before_anything_starts(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **SPEC, wandb={"mode": "disabled"})
    with small_disk(tmp_path / "disk", 64) as disk:
        results = disk / "results"
        assert sweep(spec, results).code == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = sweep(spec, results, "--resume")
        assert done.code == 2, done.out + done.err
        assert f"cannot write to {results}" in done.err.replace("\n", " ")
        assert "Traceback" not in done.err


def test_a_full_disk_under_the_frame_store_names_the_setting_that_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(tmp_path, **SPEC)
    with small_disk(tmp_path / "small", 0.5) as small:
        monkeypatch.setenv("TACTILE_SWEEP_STORE", str(small))
        filler = fill(small, leaving=20_000)
        done = sweep(spec, tmp_path / "results")
        assert done.code == 2, done.out + done.err
        assert "No space left on device" in done.err
        assert "data.store_dir" in done.err
        filler.unlink()
        done = sweep(spec, tmp_path / "results", "--dry-run", "--no-measure")
        assert done.code == 0, done.out + done.err
