"""Whatever a sweep was just writing when it was killed, or when its disk failed: resumed, it is the undisturbed one.

One run of a short sweep gives all the moments (tests/writes.py): what was on disk at each is resumed by itself.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import sweep.report.page
import sweep.trial
from model.checkpoint import load_checkpoint, save_checkpoint
from model.sinks import write_text
from sweep.adoption import adopt_copy
from sweep.pbt import COPIED
from sweep.run import main
from tests.faults import Kept, assert_no_leftovers, assert_wandb_has_every_row_once, table_of, write_spec
from tests.inline import inline_runner
from tests.sweeping import TINY_TRAINER
from tests.tiny import tiny_config
from tests.writes import Moment, Moments, Write, forked, noted, watch_writes

# two trials, each of two epochs of two updates, and a checkpoint after each update
SHORT: dict[str, Any] = {
    "run_cap": 2,
    "wandb": {"mode": "disabled"},
    "trainer": {**TINY_TRAINER, "epochs": 2, "batch_size": 25},
}
ONE_TRIAL: dict[str, Any] = {**SHORT, "run_cap": 1}
CONFIRMED: dict[str, Any] = {**SHORT, "confirm": {"top_k": 1, "seeds": [1, 2]}}
NO_WATCHDOG: dict[str, Any] = {"retries": {"hang_s": None}}  # its thread is not there in a fork, and is waited for

# some hundred sweeps each, in forks, on a loaded machine
pytestmark = [pytest.mark.process, pytest.mark.timeout(3600)]


def ran(spec: Path, results: Path, at_each: Callable[[Write], None] | None = None) -> int:
    """Start or resume a sweep; in a process of its own (`forked`), which stays as this makes it."""
    sweep.trial.SAVE_EVERY_S = 0.0  # as often as can be, what else is done once a minute
    # a second of figures; what counts here is the file
    sweep.report.page.write_report = lambda folder: write_text(folder / "report.html", "a page\n")  # type: ignore
    if at_each is not None:
        watch_writes(results, at_each)
    with inline_runner():
        return main([str(spec), "--results", str(results), "--resume-or-start"])


def undisturbed(spec: Path) -> Kept:
    results = spec.parent / "undisturbed"
    assert forked(lambda: ran(spec, results), spec.parent / "undisturbed.txt") == 0
    return Kept.of(results)


def watched(spec: Path, at_each: Callable[[Write], None]) -> int:
    """The exit code of a sweep in `results` with this done at each write."""
    return forked(lambda: ran(spec, spec.parent / "results", at_each), spec.parent / "results.txt")


def assert_resumed_to(expected: Kept, spec: Path, moments: Iterable[Moment]) -> None:
    """Every one; what went wrong is told of all, each with what was being written."""
    wrong = []
    for moment in moments:
        output = moment.results.with_suffix(".again")
        code = forked(partial(ran, spec, moment.results), output)
        if code not in (0, 1):
            wrong.append(f"{moment}: exit code {code}\n{output.read_text()[-1000:]}")
            continue
        kept = Kept.of(moment.results)
        parts = [name for name in ("rows", "study", "table") if getattr(kept, name) != getattr(expected, name)]
        if parts:
            wrong.append(f"{moment}: other {', '.join(parts)}\n{output.read_text()[-1000:]}")
        try:
            assert_no_leftovers(moment.results)
        except AssertionError as error:
            wrong.append(f"{moment}: {error}")
    assert not wrong, "\n\n".join([f"{len(wrong)} moments", *wrong[:5]])


# --- killed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [0, 1])
def test_a_sweep_killed_at_any_write_is_resumed_to_the_undisturbed_one(tmp_path: Path, half: int) -> None:
    spec = write_spec(tmp_path, **SHORT)
    expected = undisturbed(spec)
    moments = Moments(tmp_path / "results", tmp_path / "kept", lambda number: number % 2 == half)
    assert watched(spec, moments.keep) == 0
    assert Kept.of(tmp_path / "results") == expected
    assert_resumed_to(expected, spec, noted(tmp_path / "kept"))


def test_every_kind_of_file_is_among_the_writes(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **CONFIRMED)
    seen: set[tuple[str, bool, str]] = set()

    def note(write: Write) -> None:
        place = re.sub(r"[0-9a-f-]{36}", "ID", re.sub(r"\.\d+\.tmp", ".tmp", write.place.as_posix()))
        with (tmp_path / "seen.txt").open("a", encoding="utf-8") as file:
            file.write(f"{write.act} {write.half} {re.sub(r'/c?[0-9]{4}/', '/N/', place)}\n")

    assert watched(spec, note) in (0, 1)
    seen = {tuple(line.split(" ", 2)) for line in (tmp_path / "seen.txt").read_text().splitlines()}  # type: ignore
    torn = {place for _, half, place in seen if half == "True"}
    assert torn >= {"study.journal", "trials/N/batch.csv", "trials/N/epoch.csv", "trials/N/checkpoint/.last.pt.tmp"}
    replaced = {place for act, _, place in seen if act == "replace"}
    assert replaced >= {
        *("spec.yaml", "provenance.json", "trials.csv", "confirm.csv", "confirm.json", "best.yaml", "report.html"),
        *(f"trials/N/{name}" for name in ("batch.csv", "epoch.csv", "config.yaml", "summary.json", ".owner")),
        *(f"trials/N/{name}" for name in ("checkpoint/last.pt", "checkpoint/previous.pt")),
        *("trials/N/pictures/reconstruction.png", "trials/N/findings.json", "study.journal.lockID.rename"),
    }


def test_a_confirmation_that_is_killed_is_resumed_to_the_undisturbed_one(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **CONFIRMED)
    expected = undisturbed(spec)
    results, kept = tmp_path / "results", tmp_path / "kept"
    # of the search, every moment has its test above; these are about as many of each kind
    moments = Moments(results, kept, lambda number: number % 17 == 0 and (results / "confirm.json").exists())
    assert watched(spec, moments.keep) in (0, 1)
    assert_resumed_to(expected, spec, noted(kept))
    confirmed = table_of(tmp_path / "undisturbed", "confirm.csv")
    assert all(table_of(moment.results, "confirm.csv") == confirmed for moment in noted(kept))


@pytest.mark.parametrize("number", [60, 75, 90, 140, 190])
def test_a_process_that_really_dies_leaves_each_row_to_wandb_once(tmp_path: Path, number: int) -> None:
    spec, results = write_spec(tmp_path, **SHORT | {"wandb": {"mode": "offline"}}), tmp_path / "results"
    expected = undisturbed(spec)
    before = set(psutil.process_iter())
    moments = Moments(results, tmp_path / "kept", lambda n: n == number)
    assert watched(spec, moments.die) == 9
    services = [p for p in psutil.process_iter() if p not in before and "wandb-core" in p.name()]
    psutil.wait_procs(services, timeout=240)  # each ends its run when its process is gone
    assert forked(lambda: ran(spec, results), tmp_path / "again.txt") == 0, (tmp_path / "again.txt").read_text()
    assert Kept.of(results) == expected
    assert_wandb_has_every_row_once(results)


# --- the disk fails ----------------------------------------------------------------------------------------------


def assert_ends_in_words_and_is_resumed(tmp_path: Path, fault: int, wanted: Callable[[int], bool]) -> None:
    spec = write_spec(tmp_path, **ONE_TRIAL, **NO_WATCHDOG)
    expected = undisturbed(spec)
    moments = Moments(tmp_path / "results", tmp_path / "kept", wanted)
    assert watched(spec, partial(moments.fail, fault)) == 0
    wrong = []
    for moment in noted(tmp_path / "kept"):
        printed, code = moment.printed, "3"
        words = "all that finished is kept; go on with the same command and --resume"
        if moment.write.place.name == ".driver.lock":
            code, words = "2", "Choose a folder with --results DIR"  # before anything began
        elif moment.write.place.name.startswith(".report.html"):
            code, words = "0", "note: no report: "  # all is done; the page can be written at any time
        if moment.code != code or words not in printed or os.strerror(fault) not in printed or "Traceback" in printed:
            wrong.append(f"{moment}\n{printed[-3000:]}")
    assert not wrong, "\n\n".join([f"{len(wrong)} moments", *wrong[:5]])
    assert_resumed_to(expected, spec, noted(tmp_path / "kept"))


@pytest.mark.parametrize("half", [0, 1])
def test_a_sweep_whose_disk_is_full_from_any_write_on_ends_in_words_and_is_resumed(tmp_path: Path, half: int) -> None:
    assert_ends_in_words_and_is_resumed(tmp_path, errno.ENOSPC, lambda number: number % 2 == half)


@pytest.mark.parametrize(
    "fault",
    [errno.EIO, errno.ESTALE, errno.EDQUOT, errno.EACCES, errno.EROFS],
    ids=lambda number: errno.errorcode[number],
)
def test_a_disk_that_fails_otherwise_ends_a_sweep_in_words_too(tmp_path: Path, fault: int) -> None:
    assert_ends_in_words_and_is_resumed(tmp_path, fault, lambda number: number % 23 == fault % 23)


# --- a copy of another trial's weights ---------------------------------------------------------------------------


def test_a_copy_of_weights_is_adopted_whenever_the_process_was_killed_before(tmp_path: Path) -> None:
    results, config = tmp_path / "results", tiny_config()
    own = {"epoch": 2, "best": 0.5, "seconds": 7.0, "model": {"w": torch.zeros(3)}}
    save_checkpoint(results / "last.pt", own)
    save_checkpoint(results / COPIED, own | {"best": 0.1, "seconds": 1.0, "model": {"w": torch.ones(3)}})

    def adopt(at_each: Callable[[Write], None]) -> int:
        watch_writes(results, at_each)
        assert adopt_copy(results / "last.pt", config) is None
        return 0

    moments = Moments(results, tmp_path / "kept")
    assert forked(lambda: adopt(moments.keep), tmp_path / "out.txt") == 0
    found = noted(tmp_path / "kept")
    assert len(found) > 3
    for moment in found:
        adopt_copy(moment.results / "last.pt", config)
        adopted = load_checkpoint(moment.results / "last.pt")
        assert (adopted["best"], adopted["seconds"], adopted["model"]["w"].tolist()) == (0.5, 7.0, [1.0, 1.0, 1.0])
        assert not (moment.results / COPIED).exists()
