"""A Ray of our own that does not get up in time, as on a machine that others keep busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import ray

from sweep.cluster import START_TRIES, ray_cluster
from sweep.faults import MachineError

SLOW = "The current node timed out during startup. This could happen because the GCS has become overloaded."


@pytest.fixture
def slow_starts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[psutil.Process]]:
    """So many starts of Ray fail, each with a process left; a real Ray cannot be made slow at will."""

    def prepare(number: int) -> list[psutil.Process]:
        left: list[psutil.Process] = []

        def init(**options: Any) -> Any:
            if len(left) == number:
                raise LookupError("the next start")
            process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            left.append(psutil.Process(process.pid))
            raise Exception(SLOW)

        monkeypatch.setattr(ray, "init", init)
        return left

    return prepare


@pytest.mark.process
def test_it_is_started_again_and_nothing_of_the_first_start_is_left(
    slow_starts: Callable[[int], list[psutil.Process]],
) -> None:
    left = slow_starts(START_TRIES - 1)
    with pytest.raises(LookupError, match="the next start"), ray_cluster():
        pass
    assert len(left) == START_TRIES - 1
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left)


@pytest.mark.process
def test_when_it_never_starts_the_machine_is_to_blame(
    slow_starts: Callable[[int], list[psutil.Process]],
) -> None:
    slow_starts(START_TRIES)
    with pytest.raises(MachineError, match="this machine is too busy"), ray_cluster():
        pass
