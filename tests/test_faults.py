"""Whatever dies, a sweep loses nothing: real sweeps, whose processes are killed, stopped and starved."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from model.sinks import read_csv
from tests.faults import (
    LIMIT_S,
    LONG,
    SWEEP_S,
    Driver,
    Kept,
    assert_no_leftovers,
    assert_wandb_has_every_row_once,
    driver,
    finish,
    num_rows,
    stop,
    study_of,
    table_of,
    write_spec,
)
from tests.sweeping import TINY_TRAINER

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]  # on a loaded machine a sweep takes a minute to start

CONFIRMED: dict[str, Any] = {**LONG, "confirm": {"top_k": 1, "seeds": [1, 2]}}
ROOT = Path(__file__).parents[1]
END_S = 30.0  # Slurm and Kubernetes kill what has not ended by then
CLOCK_BACK = """
import time
real, real_ns = time.time, time.time_ns
time.time = lambda: real() - 86_400
time.time_ns = lambda: real_ns() - 86_400 * 10**9
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    """A sweep with its confirmation that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(write_spec(folder, **CONFIRMED), folder / "results")
    return folder / "results", Kept.of(folder / "results")


def assert_as_undisturbed(results: Path, undisturbed: tuple[Path, Kept]) -> None:
    kept = Kept.of(results)
    assert kept.study == undisturbed[1].study
    assert kept.rows == undisturbed[1].rows
    assert kept.table == undisturbed[1].table
    assert table_of(results, "confirm.csv") == table_of(undisturbed[0], "confirm.csv")
    assert_wandb_has_every_row_once(results)
    assert_no_leftovers(results)


# --- the driver killed 20 times over one sweep -----------------------------------------------------------------------


def moment(number: int, draw: random.Random, running: Driver) -> bool:
    """Wait for a random moment to kill the driver at; False where the sweep ended before."""
    results = running.results
    ends = ("best.yaml", "confirm.csv", "confirm.json", "report.html")
    before = {name: (results / name).exists() for name in ends}
    if number % 3 == 0:  # while it starts
        limit_s, rows = draw.uniform(0.2, 6.0), 10**9
    else:
        limit_s, rows = LIMIT_S, num_rows(results) + draw.randrange(1, 400)  # of 3,240
    give_up = time.monotonic() + limit_s
    while running.process.poll() is None:
        running.below()
        if time.monotonic() > give_up or num_rows(results) >= rows:
            return True
        if any((results / name).exists() and not before[name] for name in ends) and draw.random() < 0.5:
            return True
        time.sleep(0.02)
    return False


def test_a_sweep_whose_driver_is_killed_20_times_is_the_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[Path, Kept]
) -> None:
    spec, results, draw = write_spec(tmp_path, **CONFIRMED), tmp_path / "results", random.Random(0)
    finished: dict[str, tuple[bytes, bytes]] = {}
    for number in range(20):
        again = ("--resume",) if (results / "spec.yaml").exists() else ()
        with driver(spec, results, *again) as running:
            if moment(number, draw, running):
                running.process.kill()
            running.process.wait()
            assert "Traceback" not in running.printed
            assert running.left_over() == []
        if (results / "trials").exists():
            there = rows_of_finished(results)
            assert {name: there.get(name) for name in finished} == finished
            finished = there
    finish(spec, results)
    assert_as_undisturbed(results, undisturbed)


def rows_of_finished(results: Path) -> dict[str, tuple[bytes, bytes]]:
    """Of the trials that the study has as finished, by id."""
    ended = [trial for trial in study_of(results) if trial["state"] == "COMPLETE"]
    names = [f"{'c' if trial['study'].endswith('.confirm') else ''}{trial['number']:04d}" for trial in ended]
    return {name: rows_of_one(results / "trials" / name) for name in names}


def rows_of_one(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "batch.csv").read_bytes(), (folder / "epoch.csv").read_bytes()


# --- everything else that may die, in one sweep that is resumed each time --------------------------------------------


@pytest.fixture(scope="module")
def bad_day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(spec, results) of a sweep that each test resumes and disturbs anew; the last one ends it."""
    folder = tmp_path_factory.mktemp("bad_day")
    (folder / "past").mkdir()
    (folder / "past/sitecustomize.py").write_text(CLOCK_BACK, encoding="utf-8")
    return write_spec(folder, **CONFIRMED), folder / "results"


def going_on(bad_day: tuple[Path, Path], *options: str, env: dict[str, str] | None = None) -> Any:
    spec, results = bad_day
    again = ("--resume",) if (results / "spec.yaml").exists() else ()
    return driver(spec, results, *again, *options, env=env)


def until_under_way(running: Driver) -> str:
    """Wait until the sweep has gone on by some rows and a trial is in its first half; returns which."""
    running.until_rows(12)
    found: list[str] = []

    def is_found() -> bool:
        trial = under_way(running.results)
        found.extend([trial] if trial is not None else [])
        return bool(found)

    running.until(is_found, "a trial in its first half")
    return found[0]


def assert_said(running: Driver, *words: str) -> None:
    printed = running.printed
    for word in words:
        assert word in printed
    assert "Traceback" not in printed
    assert "raylet)" not in printed  # Ray's own log


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_when_ray_itself_is_killed_the_driver_ends_and_says_how_to_go_on(bad_day: tuple[Path, Path], name: str) -> None:
    with going_on(bad_day) as running:
        until_under_way(running)
        (process,) = [process for process in running.below() if process.name() == name]
        process.kill()
        assert running.ended(END_S + 5) == 3
        assert_said(running, f"Ray's process {name} has died", "the same command and --resume")
        assert running.left_over() == []
    assert_no_leftovers(bad_day[1])


def test_sigterm_to_every_process_of_the_sweep_at_once_ends_it_cleanly(bad_day: tuple[Path, Path]) -> None:
    with going_on(bad_day) as running:
        until_under_way(running)
        for process in [*running.below(), psutil.Process(running.process.pid)]:
            process.terminate()
        assert running.ended(END_S + 5) == 130
        assert_said(running, "--resume")
        assert running.left_over() == []
    assert not (bad_day[1] / ".stop").exists()


def test_sigint_twice_ends_at_once(bad_day: tuple[Path, Path]) -> None:
    with going_on(bad_day) as running:
        until_under_way(running)
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal's Ctrl-C does
        running.until(lambda: "once more ends at once" in running.printed, "its answer")
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.ended(END_S) == 130
        assert_said(running, "--resume")
        assert running.left_over() == []


def test_a_killed_worker_one_that_got_sigterm_and_a_killed_wandb_service_cost_nothing(
    bad_day: tuple[Path, Path],
) -> None:
    with going_on(bad_day, "--set", "retries.max_failures=5") as running:
        for end, sign in (
            (signal.SIGKILL, "goes on in another"),
            (signal.SIGTERM, "goes on in another"),
            (None, "another one was given the rows"),
        ):
            until_under_way(running)
            said = running.printed.count(sign)
            (worker,) = running.named("Trainable")
            (service,) = [process for process in running.below() if process.name() == "wandb-core"]
            if end is None:
                service.kill()
            else:
                worker.send_signal(end)
            running.until(lambda sign=sign, said=said: running.printed.count(sign) > said, sign)
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.ended(END_S) == 130
        assert_said(running, "once more ends at once", "the same command and --resume")
        assert running.left_over() == []


def test_sigterm_twice_is_one_request_for_an_orderly_end(bad_day: tuple[Path, Path]) -> None:
    with going_on(bad_day) as running:
        until_under_way(running)
        for _ in range(2):
            os.killpg(running.process.pid, signal.SIGTERM)
        assert running.ended(END_S) == 130
        assert_said(running, "the same command and --resume")
        assert running.left_over() == []
    table = table_of(bad_day[1], "confirm.csv" if (bad_day[1] / "confirm.csv").exists() else "trials.csv")
    assert table[-1]["state"] == "running"
    assert_no_leftovers(bad_day[1])


def test_damaged_files_and_a_clock_set_back_change_nothing_and_the_sweep_is_the_undisturbed_one(
    bad_day: tuple[Path, Path], undisturbed: tuple[Path, Kept]
) -> None:
    spec, results = bad_day
    if not results.exists():
        with driver(spec, results) as running:
            running.until_epoch("0000", 3)
            running.process.send_signal(signal.SIGTERM)
            running.ended(END_S)
    ended = rows_of_finished(results)
    (unfinished,) = [folder for folder in (results / "trials").iterdir() if folder.name not in ended]
    checkpoint = unfinished / "checkpoint/last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100] + bytes(100))
    with (unfinished / "batch.csv").open("ab") as file:
        file.write(b"17,0.3,\xff\xfe\n" + bytes(40))
    now = time.time()
    for file in results.rglob("*"):  # to processes whose clock was set back, these are of tomorrow
        os.utime(file, (now, now), follow_symlinks=False)
    finish(spec, results, env={"PYTHONPATH": str(spec.parent / "past")})
    assert_as_undisturbed(results, undisturbed)


# --- late workers, hanging trials, memory ----------------------------------------------------------------------------


# a worker as on another node, which Ray cannot reach and the driver cannot end
WORKER = """
import json, sys
from sweep.trainable import SweepTrainable
worker = SweepTrainable(json.loads(sys.argv[1]))
while not worker.step()["done"]:
    pass
"""


def test_a_worker_that_comes_back_late_writes_nothing_more(tmp_path: Path, undisturbed: tuple[Path, Kept]) -> None:
    spec, results = write_spec(tmp_path, **CONFIRMED), tmp_path / "results"
    with driver(spec, results) as running:
        running.until_epoch("0000", 1)
        with driver(spec, tmp_path / "second", "--resume", "--results", str(results)) as second:
            assert second.ended() == 2
            assert f"process {running.process.pid}" in second.printed
        trial = until_under_way(running)
        running.process.kill()
        running.process.wait()
        assert running.left_over() == []
    shared = {
        "sweep": "tiny",
        "sweep_uid": json.loads((results / "provenance.json").read_text())["uid"],
        "results": str(results),
        "wandb": {"mode": "offline"},
        "project": "tactile-sweep",
    }
    job = {
        "shared": shared,
        "stop_file": str(results / ".stop"),
        "threads": 1,
        "trial": trial,
        "values": study_of(results)[int(trial)]["params"],
        "config": yaml.safe_load((results / "trials" / trial / "config.yaml").read_text()),
    }
    rows = num_rows(results)
    with subprocess.Popen([sys.executable, "-c", WORKER, json.dumps(job)], cwd=ROOT) as late:
        try:
            give_up = time.monotonic() + LIMIT_S
            while num_rows(results) < rows + 20:
                assert late.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.01)
            stop(psutil.Process(late.pid))
            finish(spec, results)
            before = files_of(results / "trials")
            services = [process for process in psutil.Process(late.pid).children() if process.name() == "wandb-core"]
            assert services
            late.send_signal(signal.SIGCONT)
            assert late.wait(60) == 1
            assert not psutil.wait_procs(services, timeout=60)[1]
        finally:
            late.kill()
    assert files_of(results / "trials") == before
    assert_as_undisturbed(results, undisturbed)


def under_way(results: Path) -> str | None:
    """The trial that is in its first half and will not end before a test has looked."""
    (*_, newest) = sorted((results / "trials").iterdir())
    rows = newest / "epoch.csv"
    return newest.name if rows.exists() and 3 <= len(read_csv(rows)) < LONG["trainer"]["epochs"] // 2 else None


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_trial_that_hangs_is_ended_and_tried_again_and_fails_with_its_reason(
    tmp_path: Path, undisturbed: tuple[Path, Kept]
) -> None:
    spec, results = write_spec(tmp_path, **LONG, retries={"hang_s": 8, "max_failures": 1}), tmp_path / "results"
    once, ever = (results / "trials" / name / "checkpoint/last.pt" for name in ("0001", "0002"))
    with driver(spec, results) as running:
        running.until_epoch("0000", 1)
        for pipe in (once, ever):  # nobody writes to it: who reads it, waits
            pipe.parent.mkdir(parents=True)
            os.mkfifo(pipe)
        (worker,) = running.named("Trainable")
        stop(worker)
        running.until(lambda: "trial 0000 hung and was ended" in running.printed, "the end of a stopped process")
        running.until(lambda: "trial 0001 hung and was ended" in running.printed, "the end of a hanging trial")
        once.unlink(missing_ok=True)
        assert running.ended(SWEEP_S) == 0, running.printed
        assert running.left_over() == []
        assert_said(running)
    rows = table_of(results)
    assert [row["state"] for row in rows] == ["complete", "complete", "failed"]
    assert "it hung: no batch for 8 s (retries.hang_s)" in rows[2]["reason"]
    assert "load_checkpoint" in (results / "trials/0002/hang.txt").read_text()
    assert "was stopped by a signal" in (results / "trials/0000/hang.txt").read_text()
    there = rows_of_one(results / "trials/0000"), rows_of_one(results / "trials/0001")
    assert there == (undisturbed[1].rows["0000"], undisturbed[1].rows["0001"])


def test_a_trial_without_memory_fails_and_says_what_to_lower_and_the_others_go_on(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        run_cap=2,
        parameters={"decoder.width": {"values": [32, 2**21]}},
        search={"presets": [{"decoder.width": 2**21}, {"decoder.width": 32}], "startup_trials": 1},
        trainer={**TINY_TRAINER, "epochs": 1},
        retries={"max_failures": 0},
    )
    finish(spec, tmp_path / "results")
    failed, complete = table_of(tmp_path / "results")
    assert (failed["state"], complete["state"]) == ("failed", "complete")
    assert "out of memory" in failed["reason"]
    assert "lower batch_size" in failed["reason"]
    assert len(read_csv(tmp_path / "results/trials/0001/batch.csv")) == 6
