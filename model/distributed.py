"""The processes that train one model together: data parallel, each with its share of every micro-batch.

The first process leads. It calls the others to every update, and they wait for its next call meanwhile: it may
evaluate, save or stop between any two updates, for as long as it likes, and nobody waits for it in an exchange of
gradients, which has a time limit. `torchrun` starts the processes of `python -m model.train`, model/team.py those of a
Ray trial.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.config import TrainConfig
from model.errors import ConfigError

NO_LIMIT = timedelta(days=365)  # of the wait for a call; a process that dies closes its connection, which ends the wait


class Call(IntEnum):
    """What the leading process calls the others to."""

    UPDATE = 1
    """Make one gradient update."""
    TRAINER = 2
    """Make a new trainer; in a team only (model/team.py)."""


@dataclass(frozen=True)
class World:
    """This process among those of the run. Rank 0 leads: it reports, evaluates and saves."""

    rank: int = 0
    size: int = 1
    calls: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    """Carries the calls: gloo, on GPUs too, so that a wait costs neither the host nor the device anything."""

    @property
    def leads(self) -> bool:
        """Whether this process reports, evaluates and saves."""
        return self.rank == 0

    def rows(self, config: TrainConfig) -> slice:
        """Its part of a micro-batch. Raises ConfigError where the batch cannot be divided evenly."""
        share = config.batch_share(self.size)
        return slice(self.rank * share, (self.rank + 1) * share)

    def call(self, call: Call) -> None:
        """Of the leading process: call the others. Raises RuntimeError where one has died."""
        if self.size > 1:
            dist.broadcast(torch.tensor([call]), src=0, group=self.calls)

    def called(self) -> Call | None:
        """Of another process: wait for a call; None where the leading process is gone: the run has ended."""
        call = torch.empty(1, dtype=torch.int64)
        try:
            dist.broadcast(call, src=0, group=self.calls)
        except RuntimeError:  # of gloo: the connection was closed
            return None
        return Call(int(call))

    def send(self, content: Any) -> None:
        """Of the leading process: give the others plain data with tensors in it, such as a checkpoint's."""
        if self.size > 1:
            packer = _Packer()
            packer.dump(content)
            dist.broadcast_object_list([packer.buffer.getvalue()], src=0, group=self.calls)
            for tensor in packer.tensors:
                dist.broadcast(_as_bytes(tensor.cpu().contiguous()), src=0, group=self.calls)

    def receive(self) -> Any:
        """Of another process: what the leading one sends; tensors are on the host."""
        packed = [b""]
        dist.broadcast_object_list(packed, src=0, group=self.calls)
        return _Unpacker(packed[0], self.calls).load()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place; on a GPU the host does not wait."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def wrap(self, model: nn.Module, config: TrainConfig) -> nn.Module:
        """`model`, whose gradients are averaged over the processes in the backward pass."""
        if self.size == 1:
            return model
        return DistributedDataParallel(
            model,
            find_unused_parameters=config.mode != "joint",  # a branch that is left out leaves its head unused
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )

    @contextmanager
    def gathering(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients are exchanged at the `last` micro-batch of an update only."""
        if last or not isinstance(model, DistributedDataParallel):
            yield
            return
        with model.no_sync():
            yield


ALONE = World()


class _Packer(pickle.Pickler):
    """Pickles all but the tensors, which are sent one after the other: no second copy of them is in memory."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.tensors: list[Tensor] = []
        super().__init__(self.buffer)

    def persistent_id(self, content: Any) -> tuple[torch.dtype, tuple[int, ...]] | None:
        if not isinstance(content, Tensor):
            return None
        self.tensors.append(content)
        return content.dtype, tuple(content.shape)


class _Unpacker(pickle.Unpickler):
    """Receives each tensor where its place is unpickled: in the order in which they were packed."""

    def __init__(self, packed: bytes, group: dist.ProcessGroup | None) -> None:
        super().__init__(io.BytesIO(packed))
        self._group = group

    def persistent_load(self, described: Any) -> Tensor:
        dtype, shape = described
        tensor = torch.empty(shape, dtype=dtype)
        dist.broadcast(_as_bytes(tensor), src=0, group=self._group)
        return tensor


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@contextmanager
def joined(device_type: str, environment: Mapping[str, str] | None = None) -> Iterator[World]:
    """The processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK); `ALONE` where it did not.

    Raises:
        ConfigError: several processes cannot train on this kind of device.
    """
    found = os.environ if environment is None else environment
    if int(found.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if found.get("LOCAL_WORLD_SIZE") == found["WORLD_SIZE"]:
        stay_on_loopback()
    if device_type == "cuda":
        torch.cuda.set_device(int(found["LOCAL_RANK"]))
    with member(device_type) as world:
        yield world


@contextmanager
def member(device_type: str, rank: int = -1, size: int = -1, store: dist.Store | None = None) -> Iterator[World]:
    """A process of the group: nccl on GPUs, each process on its current one, and gloo on CPUs.

    Args:
        rank, size, store: where the processes meet; as the environment says if absent.

    Raises:
        ConfigError: several processes cannot train on this kind of device.
    """
    if device_type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device_type!r} trains in one process; use cuda or cpu for several")
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", rank=rank, world_size=size, store=store)
    try:
        calls = dist.new_group(backend="gloo", timeout=NO_LIMIT)
        assert isinstance(calls, dist.ProcessGroup)  # it is not where this process is left out of the group
        yield World(dist.get_rank(), dist.get_world_size(), calls)
    finally:
        dist.destroy_process_group()


def stay_on_loopback() -> None:
    """Let the processes of one machine listen on no network; a choice that the user has made stays."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
