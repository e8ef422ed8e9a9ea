"""The processes of a trial with several GPUs, all on one machine: this process leads, helpers train with it.

    with Team(2, pick_device(config).type) as team, team.explaining():
        for event in team.trainer(config, load_clips(config.data)).train():
            print(event.values)

Helpers are fresh interpreters (CUDA does not survive a fork). They end with the team, and at once when this process
dies, however it does: each holds the other end of a pipe. A helper that dies is an error here, not a long wait.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from model.checkpoint import CheckpointError
from model.config import TrainConfig
from model.data.clips import Clips, load_clips
from model.distributed import ALONE, Call, World, member, stay_on_loopback
from model.trainer import Trainer

GRACE_S = 30.0  # until a process that waits for a dead one, or that should have ended, is ended
NOTICE_S = 10.0  # a connection breaks before its process has ended: so long an error is taken for the sign of a death
MOMENT_S = 1.0  # and in this time the end of the pipe has been seen
PACKAGES = Path(__file__).resolve().parents[1]  # where a helper finds this package


class TeamError(RuntimeError):
    """A helper died; says how. The trial can go on from its checkpoint."""


class Team:
    """`size` processes that train models together, one after the other; one process needs no helpers.

    Args:
        device_type: of what they will train on, cpu or cuda. Of the GPUs that this process sees, each process takes
            the one of its rank.

    Attributes:
        world: this process, the leading one, among them.

    Raises:
        ConfigError: several processes cannot train on this kind of device.
        TeamError: a helper died before it was of any use.
    """

    def __init__(self, size: int, device_type: str) -> None:
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        self._closed = threading.Event()
        self._stack = ExitStack()
        self.world = ALONE
        if size > 1:
            try:
                self.world = self._gathered(size, device_type)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def trainer(self, config: TrainConfig, clips: Clips, state: dict[str, Any] | None = None) -> Trainer:
        """A trainer that the helpers follow, instead of any before it; goes on from `state` if given.

        Raises:
            ConfigError: the config does not fit the data, or its batch_size the team.
            CheckpointError: the state does not fit; the team is as good as before.
        """
        config.batch_share(self.world.size)  # before the helpers, whom an error would end
        self.world.call(Call.TRAINER)
        self.world.send((config.model_dump(mode="json"), state))
        trainer = Trainer(config, clips, self.world, fresh=state is None)
        if state is not None:
            trainer.load_state_dict(state)
        return trainer

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Within, an error that a helper's death has caused becomes a TeamError that says so."""
        try:
            yield
        except RuntimeError as error:
            deaths = self._deaths(wait_s=NOTICE_S)
            if not deaths:
                raise
            raise TeamError(deaths) from error

    def close(self) -> None:
        """End the helpers. Safe to call twice."""
        self._stack.close()
        self._closed.set()

    def _gathered(self, size: int, device_type: str) -> World:
        folder = Path(tempfile.mkdtemp(prefix="tactile-team-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._stack.callback(self._end_helpers)
        stay_on_loopback()
        for rank in range(1, size):
            self._start(rank, size, device_type, folder)
        store = dist.FileStore(str(folder / "store"), size)  # a file: no port that others could reach
        for rank in range(1, size):
            while not store.check([_started(rank)]):
                if deaths := self._deaths():
                    raise TeamError(deaths)
                time.sleep(0.02)
        for rank, helper in enumerate(self._helpers, 1):
            threading.Thread(target=self._watch, args=(rank, helper), daemon=True).start()
        return self._stack.enter_context(member(device_type, 0, size, store))

    def _start(self, rank: int, size: int, device_type: str, folder: Path) -> None:
        log = folder / f"{rank}.log"
        found = os.environ.get("PYTHONPATH")
        with log.open("wb") as output:
            helper = subprocess.Popen(
                [sys.executable, "-m", "model.team"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGES), *([found] if found else [])])},
                start_new_session=True,  # signals are for the leading process
            )
        self._helpers.append(helper)
        self._logs.append(log)
        task = {
            "rank": rank,
            "size": size,
            "device_type": device_type,
            "folder": str(folder),
            "threads": torch.get_num_threads(),
        }
        assert helper.stdin is not None
        with suppress(BrokenPipeError):  # it died already, which is noticed soon
            helper.stdin.write(json.dumps(task).encode() + b"\n")
            helper.stdin.flush()

    def _end_helpers(self) -> None:
        for helper in self._helpers:
            assert helper.stdin is not None
            with suppress(BrokenPipeError):
                helper.stdin.close()
        for helper in self._helpers:
            try:
                helper.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()

    def _deaths(self, wait_s: float = 0.0) -> str:
        """Which helpers have died and of what, within so many seconds; empty if none."""
        if not self._helpers or self._closed.is_set():
            return ""
        until = time.monotonic() + wait_s
        while all(helper.poll() is None for helper in self._helpers) and time.monotonic() < until:
            time.sleep(0.05)
        return "; ".join(
            self._death(rank, helper) for rank, helper in enumerate(self._helpers, 1) if helper.poll() is not None
        )

    def _death(self, rank: int, helper: subprocess.Popen[bytes]) -> str:
        code = helper.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = self._logs[rank - 1].read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"process {rank + 1} of the trial's {len(self._helpers) + 1} {how}" + (f": {said[-1]}" if said else "")

    def _watch(self, rank: int, helper: subprocess.Popen[bytes]) -> None:
        """End this process where a helper has died and it does not notice: on a GPU it may wait for that for ever."""
        helper.wait()
        if not self._closed.wait(GRACE_S):
            print(f"{self._death(rank, helper)}; this one waits for it in vain, and ends", file=sys.stderr, flush=True)
            os._exit(1)


def main() -> None:
    """A helper: follows the leading process until that ends the team."""
    task = json.loads(sys.stdin.readline())
    rank, device_type, folder = task["rank"], task["device_type"], Path(task["folder"])
    ending = threading.Thread(target=_end_with_leader, args=(folder,), daemon=True)
    ending.start()
    torch.set_num_threads(task["threads"])
    if device_type == "cuda":
        torch.cuda.set_device(rank)  # of those that the trial sees
    store = dist.FileStore(str(folder / "store"), task["size"])
    store.set(_started(rank), "")
    try:
        with member(device_type, rank, task["size"], store) as world:
            _follow(world)
    finally:
        ending.join(MOMENT_S)  # an error may be the first sign that the leading process is dead


def _follow(world: World) -> None:
    call = world.called()
    while call is Call.TRAINER:
        content, state = world.receive()
        config = TrainConfig.model_validate(content)
        # pretrained weights come from the leading process, as all of a model does when it is wrapped
        trainer = Trainer(config, load_clips(config.data), world, fresh=False)
        if state is not None:
            with suppress(CheckpointError):  # the leading process says so, and makes another
                trainer.load_state_dict(state)
        del state
        call = trainer.follow()
        del trainer  # before there is another, which may fill the GPU


def _end_with_leader(folder: Path) -> None:
    """Wait for the end of the pipe; nothing is said through it."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _started(rank: int) -> str:
    return f"started/{rank}"


if __name__ == "__main__":
    main()
