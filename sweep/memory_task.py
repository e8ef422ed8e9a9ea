"""Measures a trial's memory on a node of Ray's, with the resources of a trial, and checks that the packing fits."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from model.errors import UserError
from sweep.memory import Peak, check_fit
from sweep.probe import measure_peak, memory_task, peak_failed
from sweep.spec import SweepSpec

LOOK_EVERY_S = 0.5


def check_memory(spec: SweepSpec, concurrent: int, stopped: Callable[[], bool]) -> str | None:
    """What a trial takes, and that so many at a time fit on its node: a line; None where the user stops it.

    Raises:
        ConfigError: they do not fit; says what does.
        UserError: the short run failed.
    """
    resources = spec.resources
    share = ray.remote(num_cpus=resources.cpu, num_gpus=resources.gpu, max_retries=0, max_calls=1)
    task = share(measure_peak).remote(memory_task(spec))
    try:
        while not ray.wait([task], timeout=LOOK_EVERY_S)[0]:
            if stopped():
                ray.cancel(task, force=True)
                return None
        peak: Peak = ray.get(task)
    except OutOfMemoryError:
        peak = Peak(too_large="Ray ended it for want of memory")
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except RayError as error:
        raise UserError(peak_failed(" ".join(str(error).split())[:200])) from None
    return check_fit(spec, peak, concurrent)
