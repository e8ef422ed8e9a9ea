"""wandb's client in this process: calls with a time limit, its service process, the variables that it reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

import psutil

from sweep.processes import SERVICE_NAME, runs_on

T = TypeVar("T")

GRACE_S = 5.0  # wandb keeps its own time limits; after this much more we stop waiting for it
# Variables (their beginnings) that say which run or sweep this process belongs to. Inherited by Ray's workers, they
# would merge the trials into one run (WANDB_RUN_ID) or make wandb ignore our id and project (WANDB_SWEEP_ID).
_IDENTITY = ("WANDB_RUN", "WANDB_SWEEP", "WANDB_RESUME", "WANDB_FORK", "WANDB_LAUNCH", "WANDB_NAME", "WANDB_MODE")


@contextmanager
def without_inherited_identity() -> Iterator[None]:
    """Hide the variables that tie this process to a run or sweep from wandb, which reads them in setup and init."""
    inherited = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_IDENTITY)}
    # else wandb reports its own errors to the server, with its own time limits, at the end of the process
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        yield
    finally:
        os.environ.update(inherited)


def reset_client(kill: bool = False) -> None:
    """End wandb's service process, and with it this process's run; the next init starts a new one (0.2 s).

    A service that several processes share goes on without this one.

    Args:
        kill: also where it does not end in GRACE_S, since it still tries to reach a server: for runs whose rows it was
            given before, and has written to disk.
    """
    import wandb

    services = [child for child in psutil.Process().children() if runs_on(child) and child.name() == SERVICE_NAME]
    with suppress(Exception):
        bounded(wandb.teardown, GRACE_S)
    for service in services if kill else ():
        with suppress(psutil.Error):
            service.kill()
    os.environ.pop("WANDB_SERVICE", None)  # a service that others share would still hold the run's id


def bounded(call: Callable[[], T], limit_s: float) -> T:
    """`call()` in a thread that is left behind after `limit_s`. Raises what the call raises, or TimeoutError."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # SystemExit too: wandb's teardown exits where its service ended badly
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    threading.Thread(target=work, name="wandb-bounded", daemon=True).start()
    try:
        return future.result(timeout=limit_s)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer in {limit_s:.0f} s") from None
