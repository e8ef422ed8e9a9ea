"""What a trial gets of the machine: the block `resources` of a spec."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model.fields import Config, PositiveInt


class Resources(Config):
    """Of one trial; the units are Ray's."""

    cpu: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    """CPU cores."""
    gpu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    """GPUs; a fraction shares one, without isolation of its memory."""
    processes: Literal["auto"] | PositiveInt = "auto"
    """Processes that train the trial's model together, each with its share of batch_size; auto: one for each GPU."""
    max_concurrent: Literal["auto"] | PositiveInt = "auto"
    """Trials at the same time; auto: as many as fit."""
    memory_probe: Literal["auto", "always", "never"] = "auto"
    """Measure what one trial takes of the memory before the first one, and refuse what cannot fit (sweep/memory.py);
    auto: where trials share a GPU."""

    @model_validator(mode="after")
    def _a_device_for_each_process(self) -> Self:
        if self.gpu > 1 and self.gpu % 1:
            raise ValueError(
                f"gpu = {self.gpu:g}: a trial has whole GPUs, or a share of one; use {math.floor(self.gpu)} or "
                f"{math.ceil(self.gpu)}, or less than 1"
            )
        if self.processes == "auto":
            return self
        if self.gpu and self.processes != self.gpus_seen:
            raise ValueError(
                f"processes = {self.processes}, but gpu = {self.gpu:g}: each process has a GPU of its own; "
                f"leave processes out, or set gpu to {self.processes}"
            )
        if self.processes > max(1, self.cpu) and not self.gpu:
            raise ValueError(
                f"processes = {self.processes}, but cpu = {self.cpu:g}: each process needs a core; "
                f"set cpu to {self.processes} or more"
            )
        return self

    @property
    def gpus_seen(self) -> int:
        """GPUs that a trial sees: a shared one counts."""
        return math.ceil(self.gpu)

    @property
    def num_processes(self) -> int:
        """Processes of a trial."""
        return max(1, self.gpus_seen) if self.processes == "auto" else self.processes

    @property
    def threads(self) -> int:
        """CPU threads of each process of a trial."""
        return max(1, int(self.cpu / self.num_processes))
