"""What else may come between the rows of a sweep, in one process each: signals, wandb's end, a second worker, a hang, a
clock that is set back, damaged files, too little memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import sweep.trainable
import sweep.trial
from model.sinks import read_csv, write_json
from sweep.ownership import OWNER
from sweep.watchdog import OPEN_STACKS, STACKS, StoppedProcesses, take_stacks
from tests.faults import (
    Kept,
    assert_no_leftovers,
    assert_wandb_has_every_row_once,
    stop,
    study_of,
    table_of,
    write_spec,
)
from tests.inline import Inline, run_inline
from tests.sweeping import TINY_TRAINER
from tests.writes import BYTES, Write, forked, watch_writes

SHORT: dict[str, Any] = {
    "run_cap": 2,
    "wandb": {"mode": "disabled"},
    "trainer": {**TINY_TRAINER, "epochs": 2, "batch_size": 25},
}
OFFLINE = {"wandb": {"mode": "offline"}}

pytestmark = pytest.mark.process  # sweeps in forks


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path, **SHORT)


def undisturbed(spec: Path) -> Kept:
    in_a_fork(spec, spec.parent / "undisturbed")
    return Kept.of(spec.parent / "undisturbed")


def in_a_fork(spec: Path, results: Path, *options: str) -> None:
    """A sweep to its end. A process that has spoken to wandb must not be forked: the next test would wait for ever."""
    output = spec.parent / "fork.txt"
    assert forked(lambda: run_inline(spec, results, *options), output) == 0, output.read_text(encoding="utf-8")


def at_row(number: int, trial: str, action: Callable[[], None]) -> Callable[[Write], None]:
    """Does this once, before that row of a trial is written, counted from 0."""
    rows = 0

    def at_each(write: Write) -> None:
        nonlocal rows
        if write == Write(Path(f"trials/{trial}/batch.csv"), BYTES):
            rows += 1
            if rows == number + 1:
                action()

    return at_each


def swept(spec: Path, at_each: Callable[[Write], None]) -> tuple[int, str]:
    """Exit code and words of a sweep in a fork, with this done at each write. Trials look for requests at each row."""
    results, output = spec.parent / "results", spec.parent / "printed.txt"

    def run() -> int:
        sweep.trial.LOOK_EVERY_S = -1.0
        sweep.trainable.SAME_REQUEST_S = 0.0
        watch_writes(results, at_each)
        return run_inline(spec, results)

    return forked(run, output), output.read_text(encoding="utf-8")


# --- signals -----------------------------------------------------------------------------------------------------


def test_a_sweep_that_is_stopped_within_an_epoch_goes_on_to_the_undisturbed_end(spec: Path) -> None:
    results = spec.parent / "results"
    code, printed = swept(spec, at_row(1, "0001", lambda: signal.raise_signal(signal.SIGINT)))
    assert code == 130
    assert "once more ends at once" in printed
    assert "stopped; go on with the same command and --resume" in printed
    assert [row["state"] for row in table_of(results)] == ["complete", "running"]
    assert (results / "trials/0001/checkpoint/last.pt").exists()
    assert_no_leftovers(results)
    assert run_inline(spec, results, "--resume") == 0
    assert Kept.of(results) == undisturbed(spec)


def test_sigint_twice_ends_a_sweep_at_once(spec: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    results = spec.parent / "results"
    code, printed = swept(spec, at_row(1, "0001", twice))
    assert code == 130
    assert "stopped at once; go on with the same command and --resume" in printed
    assert "Traceback" not in printed
    assert run_inline(spec, results, "--resume") == 0
    assert Kept.of(results) == undisturbed(spec)


def test_a_worker_alone_that_gets_sigterm_leaves_a_checkpoint_and_its_trial_goes_on_in_another(spec: Path) -> None:
    code, printed = swept(spec, at_row(1, "0000", lambda: signal.raise_signal(signal.SIGTERM)))
    assert code == 0
    assert "the worker of trial 0000 died; the trial goes on in another" in printed
    assert Kept.of(spec.parent / "results") == undisturbed(spec)


# --- wandb, a second worker --------------------------------------------------------------------------------------


def test_a_wandb_service_that_is_killed_is_replaced_and_given_the_rows(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **SHORT | OFFLINE)

    def kill_service() -> None:
        (service,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        service.kill()
        service.wait()

    code, printed = swept(spec, at_row(2, "0001", kill_service))
    assert code == 0, printed
    assert "W&B's service process had died; another one was given the rows" in printed
    assert Kept.of(tmp_path / "results") == undisturbed(spec)
    assert_wandb_has_every_row_once(tmp_path / "results")


def test_a_worker_that_comes_back_late_ends_without_another_word_on_disk_or_to_wandb(tmp_path: Path) -> None:
    spec, results = write_spec(tmp_path, **SHORT | OFFLINE), tmp_path / "results"

    def files() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (results / "trials").rglob("*") if file.is_file()}

    services: list[psutil.Process] = []
    before: dict[str, bytes] = {}

    def meanwhile() -> None:
        """This one is late: its trial is given to another process, which ends it."""
        (service,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        (tmp_path / "service").write_text(str(service.pid))
        again = [sys.executable, "-c", f"import os; os.kill({os.getpid()}, 19)"]
        subprocess.run(again, check=True)  # SIGSTOP: the test goes on from here

    pid = os.fork()
    if pid == 0:
        os._exit(swept(spec, at_row(1, "0001", meanwhile))[0])
    driver = _grandchild_that_stops(pid)
    (results / ".driver.lock").unlink()  # as on another machine, which the first one's lock does not reach
    in_a_fork(spec, results, "--resume")
    before.update(files())
    services.append(psutil.Process(int((tmp_path / "service").read_text())))
    driver.send_signal(signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert not psutil.wait_procs(services, timeout=240)[1]
    assert files() == before
    assert Kept.of(results) == undisturbed(spec)
    assert_wandb_has_every_row_once(results)


def _grandchild_that_stops(pid: int) -> psutil.Process:
    give_up = time.monotonic() + 240
    while time.monotonic() < give_up:
        for child in psutil.Process(pid).children():
            if child.status() == psutil.STATUS_STOPPED:
                return child
        time.sleep(0.02)
    raise AssertionError("it never came to the row at which it stops")


# --- trials that hang --------------------------------------------------------------------------------------------


def test_a_trial_that_hung_is_tried_again_and_fails_with_its_reason_once_it_hangs_too_often(tmp_path: Path) -> None:
    results = tmp_path / "results"
    hangs = {"0000": 1, "0001": 2}

    def hang(trial: str, epochs: int) -> None:
        if epochs == 1 and hangs[trial]:
            hangs[trial] -= 1
            (results / "trials" / trial / OPEN_STACKS).write_text("File load.py, line 7", encoding="utf-8")
            raise RuntimeError("the watchdog has ended this worker")

    spec = write_spec(tmp_path, **SHORT, retries={"hang_s": 8, "max_failures": 1})
    assert run_inline(spec, results, engine=Inline(before_epoch=hang)) == 0
    complete, failed = table_of(results)
    assert (complete["state"], failed["state"]) == ("complete", "failed")
    assert failed["reason"] == "it hung: no batch for 8 s (retries.hang_s); where it stood: trials/0001/hang.txt"
    assert all((results / "trials" / name / STACKS).exists() for name in ("0000", "0001"))


def test_a_trials_process_that_is_stopped_for_too_long_is_ended_from_outside_and_a_running_one_is_not(
    tmp_path: Path,
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as child:
        try:
            process = psutil.Process(child.pid)
            host = os.uname().nodename
            content = {"token": "t", "host": host, "pid": child.pid, "pid_since": process.create_time()}
            write_json(tmp_path / OWNER, content)
            look = StoppedProcesses(0.0).look
            look([tmp_path])
            assert child.poll() is None
            stop(process)
            StoppedProcesses(3600.0).look([tmp_path])
            StoppedProcesses(None).look([tmp_path])
            assert child.poll() is None
            look([tmp_path])
            assert child.wait(240) == -signal.SIGKILL
        finally:
            child.kill()
    assert take_stacks(tmp_path)
    assert "was stopped by a signal" in (tmp_path / STACKS).read_text()


# --- memory, files, clocks ---------------------------------------------------------------------------------------


def test_a_trial_without_memory_fails_and_says_what_to_lower_and_the_others_go_on(tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        **SHORT,
        parameters={"decoder.width": {"values": [32, 2**21]}},
        search={"presets": [{"decoder.width": 2**21}, {"decoder.width": 32}], "startup_trials": 1},
        retries={"max_failures": 0},
    )
    assert run_inline(spec, tmp_path / "results") == 0
    failed, complete = table_of(tmp_path / "results")
    assert (failed["state"], complete["state"]) == ("failed", "complete")
    assert "out of memory" in failed["reason"]
    assert "lower batch_size" in failed["reason"]
    assert len(read_csv(tmp_path / "results/trials/0001/batch.csv")) == 4


def test_damaged_files_and_a_clock_that_was_set_back_change_nothing(spec: Path) -> None:
    results = spec.parent / "results"

    def stop_here(trial: str, epochs: int) -> None:
        if (trial, epochs) == ("0001", 1):
            raise KeyboardInterrupt

    assert run_inline(spec, results, engine=Inline(before_epoch=stop_here)) == 130
    assert study_of(results)[-1]["state"] == "RUNNING"
    trial = results / "trials/0001"
    checkpoint = trial / "checkpoint/last.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes((results / "trials/0000/checkpoint/last.pt").read_bytes()[:-100] + bytes(100))
    with (trial / "batch.csv").open("ab") as file:
        file.write(b"17,0.3,\xff\xfe\n" + bytes(40))

    def resumed_yesterday() -> int:
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() - 86_400
        time.time_ns = lambda: real_ns() - 86_400 * 10**9
        return run_inline(spec, results, "--resume")

    assert forked(resumed_yesterday, spec.parent / "again.txt") == 0
    assert Kept.of(results) == undisturbed(spec)
    assert_no_leftovers(results)
