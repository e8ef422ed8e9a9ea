"""How a sweep ends before its trials: signals, a full disk, Ray's death, a lost head. The clock and the processes are
ours: nothing waits.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from sweep.halt import (
    ASKED_S,
    HEAD_GONE_S,
    HEAD_SILENT_S,
    IDLE_S,
    LAST_S,
    LIST_EVERY_S,
    SAME_REQUEST_S,
    Halt,
    Machine,
    Overdue,
)

HEAD = "10.0.0.1:6379"


class Ended(Exception):
    """The driver's process has ended itself, with this exit code."""


class Process:
    """A child of the driver, as psutil shows it."""

    def __init__(self, name: str) -> None:
        self._name, self.alive = name, True

    def name(self) -> str:
        return self._name

    def is_running(self) -> bool:
        return self.alive

    def status(self) -> str:
        return psutil.STATUS_RUNNING

    def kill(self) -> None:
        self.alive = False

    def wait(self, timeout: float) -> int | None:
        return 0


class Sweep:
    """A driver under way with its Ray; `after` lets time pass, and its guard looks around as it goes."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.said: list[str] = []
        self.hands_out = True
        self.head_answers = True
        names = ("raylet", "gcs_server", "ray::SweepTrainable.step", "ray::IDLE", "ray::DashboardAgent")
        self.raylet, self.gcs, self.worker, self.idle, self.agent = self.processes = [Process(name) for name in names]
        self.stop_file = folder / ".stop"
        machine: Any = Machine(lambda: self.now, self._below, lambda address: self.head_answers, self._end)
        self.halt = Halt(self.stop_file, self.said.append, self._hand_out_no_more, machine)

    def _below(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    @staticmethod
    def _end(code: int) -> NoReturn:
        raise Ended(code)

    def _hand_out_no_more(self) -> None:
        self.hands_out = False

    def after(self, seconds: float) -> None:
        """So many seconds pass."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.halt.look()

    @contextmanager
    def running(self, head: str | None = None) -> Iterator[None]:
        with self.halt.signals(), self.halt.watching_ray(head):
            yield


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


# --- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_asks_the_trials_for_their_checkpoints_and_no_more_are_handed_out(
    sweep: Sweep, number: signal.Signals
) -> None:
    with sweep.running():
        signal.raise_signal(number)
        sweep.halt.check()
    assert sweep.halt.asked
    assert sweep.stop_file.exists()
    assert not sweep.hands_out
    assert sweep.said == ["stopping: trials write their checkpoints; once more ends at once"]
    assert sweep.halt.trouble is None


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_sigint_ends_at_once(sweep: Sweep, first: signal.Signals) -> None:
    with sweep.running():
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_again_at_once_is_the_same_request(sweep: Sweep) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.after(SAME_REQUEST_S - 1)
        signal.raise_signal(signal.SIGTERM)
        assert len(sweep.said) == 1


def test_sigterm_again_later_ends_at_once(sweep: Sweep) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.after(SAME_REQUEST_S)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_sigterm_after_sigint_ends_at_once(sweep: Sweep) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_signals_are_the_process_s_own_again_afterwards(sweep: Sweep) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with sweep.running():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- trials that are late ----------------------------------------------------------------------------------------


def test_trials_have_their_time_and_are_ended_when_it_is_over(sweep: Sweep) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.after(ASKED_S)
        sweep.halt.check()
        sweep.after(0.5)
        with pytest.raises(Overdue):
            sweep.halt.check()


def test_a_driver_that_ray_does_not_let_go_after_the_last_trial_ends_itself(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.after(5)
        sweep.worker.kill()  # it has left its checkpoint
        sweep.after(IDLE_S - 1)
        with pytest.raises(Ended, match="130"):
            sweep.after(2)
    assert "stopped; all that finished is kept" in capsys.readouterr().err


def test_of_a_cluster_that_was_joined_the_trials_are_not_seen_and_have_their_time(sweep: Sweep) -> None:
    sweep.processes.clear()
    with sweep.running(HEAD):
        signal.raise_signal(signal.SIGTERM)
        sweep.after(ASKED_S - 1)
        sweep.halt.check()


def test_a_sweep_that_nobody_asked_to_end_goes_on_for_ever(sweep: Sweep) -> None:
    with sweep.running():
        sweep.after(100 * LAST_S)
        sweep.halt.check()
        assert not sweep.halt.ray_died()
    assert sweep.said == []
    assert sweep.hands_out


def test_a_trial_that_never_answers_is_killed_with_all_of_ray_and_the_driver_ends_itself(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.after(LAST_S)
        assert all(process.alive for process in sweep.processes)
        with pytest.raises(Ended, match=r"^130$"):
            sweep.after(0.5)
    assert not any(process.alive for process in sweep.processes)
    assert not sweep.stop_file.exists()
    assert capsys.readouterr().err == "stopped; all that finished is kept; go on with the same command and --resume\n"


def test_a_worker_that_started_after_the_request_is_killed_too(sweep: Sweep) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.processes.append(late := Process("ray::SweepTrainable.step"))
        with pytest.raises(Ended):
            sweep.after(LAST_S + 1)
    assert not late.alive


# --- a full disk -------------------------------------------------------------------------------------------------


def test_what_the_disk_refuses_ends_the_sweep_and_the_first_reason_stays(sweep: Sweep) -> None:
    with sweep.running():
        with sweep.halt.on_full_disk():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/trials.csv")
        sweep.halt.fail("a consequence")
    assert sweep.halt.trouble == "the disk is full: /disk/trials.csv cannot be written (No space left on device)"
    assert sweep.said == [f"{sweep.halt.trouble}. Ending; trials write their checkpoints where they can"]
    assert sweep.stop_file.exists()
    assert not sweep.hands_out
    assert not sweep.halt.asked


def test_an_error_that_is_not_of_the_disk_is_raised(sweep: Sweep) -> None:
    with pytest.raises(FileNotFoundError), sweep.halt.on_full_disk():
        raise FileNotFoundError(errno.ENOENT, "no such file")
    assert sweep.halt.trouble is None


def test_a_stop_file_that_cannot_be_written_stops_no_end(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.stop_file.mkdir()
    with sweep.running():
        sweep.halt.fail("the disk is full")
        with pytest.raises(Ended, match=r"^3$"):
            sweep.after(LAST_S + 1)
    assert "error: the disk is full; all that finished is kept" in capsys.readouterr().err


# --- Ray dies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_of_rays_death_trials_are_told_and_what_trains_nothing_is_killed(sweep: Sweep, name: str) -> None:
    with sweep.running():
        sweep.after(LIST_EVERY_S)
        next(process for process in sweep.processes if process.name() == name).kill()
        sweep.after(0.5)
        assert sweep.halt.ray_died()
        assert sweep.halt.trouble == f"Ray's process {name} has died (killed, or out of memory)"
        assert sweep.stop_file.exists()
        assert not sweep.hands_out
        assert (sweep.worker.alive, sweep.idle.alive, sweep.agent.alive) == (True, False, False)
        sweep.halt.check()  # the trial has its time


def test_after_rays_death_nobody_waits_longer_than_for_the_last_trial(sweep: Sweep) -> None:
    with sweep.running():
        sweep.raylet.kill()
        sweep.after(5)
        sweep.halt.check()
        sweep.worker.kill()
        sweep.after(0.5)
        with pytest.raises(Overdue):
            sweep.halt.check()


def test_trials_that_go_on_after_rays_death_are_ended_when_their_time_is_over(sweep: Sweep) -> None:
    with sweep.running():
        sweep.raylet.kill()
        sweep.after(ASKED_S)
        sweep.halt.check()
        sweep.after(1)
        assert sweep.worker.alive
        with pytest.raises(Overdue):
            sweep.halt.check()


def test_a_driver_whose_ray_is_dead_and_that_does_not_get_away_from_it_ends_itself(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    with sweep.running():
        sweep.raylet.kill()
        sweep.worker.kill()
        with pytest.raises(Ended, match=r"^3$"):
            sweep.after(LAST_S - ASKED_S + 2)
    assert "error: Ray's process raylet has died" in capsys.readouterr().err


def test_ray_that_dies_while_the_sweep_ends_by_request_is_no_trouble(sweep: Sweep) -> None:
    with sweep.running():
        signal.raise_signal(signal.SIGTERM)
        sweep.raylet.kill()
        sweep.after(1)
        assert sweep.halt.ray_died()
        assert sweep.halt.trouble is None


def test_rays_own_end_is_not_its_death(sweep: Sweep) -> None:
    with sweep.running():
        pass
    sweep.raylet.kill()
    sweep.after(1)
    assert not sweep.halt.ray_died()


# --- the head of a cluster ---------------------------------------------------------------------------------------


def test_a_head_that_is_silent_and_comes_back_costs_two_lines(sweep: Sweep) -> None:
    with sweep.running(HEAD):
        sweep.after(60)
        sweep.head_answers = False
        sweep.after(HEAD_SILENT_S + LIST_EVERY_S + 1)
        assert sweep.said == [f"the head of the Ray cluster, {HEAD}, does not answer; waiting 50 s for it"]
        sweep.head_answers = True
        sweep.after(LIST_EVERY_S + 1)
        assert sweep.said[1:] == [f"the head of the Ray cluster, {HEAD}, answers again"]
        sweep.head_answers = False
        sweep.after(HEAD_GONE_S - LIST_EVERY_S)  # the clock counts anew
    assert sweep.halt.trouble is None


def test_a_head_that_is_gone_ends_the_driver(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    with sweep.running(HEAD):
        sweep.head_answers = False
        with pytest.raises(Ended, match=r"^3$"):
            sweep.after(HEAD_GONE_S + LIST_EVERY_S + 1)
    assert f"error: the head of the Ray cluster, {HEAD}, is gone" in capsys.readouterr().err


# --- the guard ---------------------------------------------------------------------------------------------------


def test_the_guard_takes_the_stop_file_away_so_that_the_next_driver_starts(sweep: Sweep) -> None:
    with sweep.halt.guarding():
        sweep.halt.fail("the disk is full")
        assert sweep.stop_file.exists()
    assert not sweep.stop_file.exists()
