"""Real processes of real sweeps are killed: what tests/test_every_write.py and test_halt.py show in one process holds.

Workers wait at gates (tests/gated.py), so that each kill comes at the same moment of the sweep.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults import (
    Driver,
    Kept,
    assert_no_leftovers,
    assert_wandb_has_every_row_once,
    driver,
    rows_of,
    study_of,
    table_of,
    write_spec,
)
from tests.gated import Gates
from tests.inline import run_inline
from tests.sweeping import TINY_TRAINER

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]  # on a loaded machine a sweep takes a minute to start

SHORT: dict[str, Any] = {"resources": {"max_concurrent": 1}, "run_cap": 2, "trainer": {**TINY_TRAINER, "epochs": 3}}
GO_ON = "the same command and --resume"


def gated(spec: Path, results: Path, gates: Gates) -> Any:
    again = ("--resume",) if (results / "spec.yaml").exists() else ()
    return driver(spec, results, *again, env=gates.env, module="tests.gated")


def until_reached(running: Driver, gates: Gates, gate: str) -> None:
    running.until(lambda: gates.reached(gate), f"a worker at {gate}")
    running.below()


def assert_ended(running: Driver, code: int, *words: str) -> None:
    assert running.ended() == code, running.printed
    for word in words:
        assert word in running.printed
    assert "Traceback" not in running.printed
    assert "raylet)" not in running.printed  # Ray's own log
    assert running.left_over() == []


def assert_is_the_undisturbed_one(spec: Path, results: Path) -> None:
    assert run_inline(spec, spec.parent / "undisturbed") == 0
    assert Kept.of(results) == Kept.of(spec.parent / "undisturbed")
    assert_wandb_has_every_row_once(results)
    assert_no_leftovers(results)


def test_a_sweep_whose_driver_is_killed_goes_on_to_the_undisturbed_end(tmp_path: Path) -> None:
    spec, results, gates = write_spec(tmp_path, **SHORT), tmp_path / "results", Gates(tmp_path / "gates")
    gates.shut("0001-2")
    with gated(spec, results, gates) as running:
        until_reached(running, gates, "0001-2")
        running.process.kill()
        running.process.wait()
        gates.open("0001-2")  # the worker finds nobody to tell
        assert running.left_over() == []
        assert "Traceback" not in running.printed
    assert run_inline(spec, results, "--resume") == 0
    assert_is_the_undisturbed_one(spec, results)


def test_a_killed_worker_costs_nothing_and_its_trial_fails_once_it_dies_too_often(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **SHORT, retries={"max_failures": 1})
    results, gates = tmp_path / "results", Gates(tmp_path / "gates")
    gates.shut("0000-2")
    gates.shut("0001-1")
    with gated(spec, results, gates) as running:
        for gate in ("0000-2", "0001-1", "0001-1"):
            until_reached(running, gates, gate)
            worker = gates.take_worker(gate)
            os.kill(worker, signal.SIGKILL)
            if gate == "0000-2":
                gates.open(gate)
        assert_ended(running, 0, "the worker of trial 0000 died; the trial goes on in another")
    complete, failed = table_of(results)
    assert (complete["state"], failed["state"]) == ("complete", "failed")
    assert failed["reason"] == "its worker process died (killed, or out of memory)"
    assert run_inline(spec, tmp_path / "undisturbed") == 0
    assert rows_of(results)["0000"] == rows_of(tmp_path / "undisturbed")["0000"]


def test_when_ray_itself_is_killed_the_driver_says_so_and_blames_no_trial(tmp_path: Path) -> None:
    spec, results, gates = write_spec(tmp_path, **SHORT), tmp_path / "results", Gates(tmp_path / "gates")
    for gate, name in (("0000-1", "raylet"), ("0001-1", "gcs_server")):
        gates.shut(gate)
        with gated(spec, results, gates) as running:
            until_reached(running, gates, gate)
            (process,) = [process for process in running.below() if process.name() == name]
            process.kill()
            gates.open(gate)
            assert_ended(running, 3, f"Ray's process {name} has died", GO_ON)
        assert "FAIL" not in {trial["state"] for trial in study_of(results)}
        assert_no_leftovers(results)
    assert run_inline(spec, results, "--resume") == 0
    assert_is_the_undisturbed_one(spec, results)


def test_sigterm_to_every_process_of_a_sweep_ends_it_with_checkpoints(tmp_path: Path) -> None:
    spec, results, gates = write_spec(tmp_path, **SHORT), tmp_path / "results", Gates(tmp_path / "gates")
    gates.shut("0000-2")
    with gated(spec, results, gates) as running:
        until_reached(running, gates, "0000-2")
        for process in [*running.below(), psutil.Process(running.process.pid)]:
            process.terminate()  # as Slurm does
        running.until(lambda: (results / ".stop").exists(), "the driver's request")
        gates.open("0000-2")
        assert_ended(running, 130, "stopping: trials write their checkpoints", GO_ON)
    assert not (results / ".stop").exists()
    assert run_inline(spec, results, "--resume") == 0
    assert_is_the_undisturbed_one(spec, results)
