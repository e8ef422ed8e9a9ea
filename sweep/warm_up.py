"""A few updates of the real trainer, timed: what `--dry-run` predicts a sweep's time and memory from.

They are made in a process of its own, with a trial's share of the machine: of the spec's base config, and of the config
of its space that takes most memory. Nothing of them is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from model.config import TrainConfig
from model.errors import UserError
from model.plan import EpochPlan
from sweep.memory import CUDA_CONTEXT_BYTES, PACKAGES, WORKER_BYTES, most_demanding, own_memory
from sweep.spec import SweepSpec

LIMIT_S = 20.0  # of all updates together: a model for a GPU takes minutes for one on a CPU
BASE_SHARE = 0.6  # of it for the base config
START_LIMIT_S = 180.0  # for imports and opening the data, beside it
ROUNDS, UPDATES_A_ROUND = 3, 4  # short epochs with an evaluation each; the first one warms up


@dataclass(frozen=True)
class WarmUp:
    """What a few updates of one config took.

    Attributes:
        updates: that were made; 0 where there was no time for one.
        update_s: seconds of each, the median over the rounds but the first.
        start_s: from nothing to a model that trains, with what the first round took longer than the others.
        judge_s: of what follows an epoch; None where there was no time for it.
        probe_s: of the probe at a trial's end.
        host_bytes: of the machine's memory at the peak, all processes of a trial.
        gpu_bytes: of each GPU; 0 without one.
        csv_bytes, wandb_bytes: of an update's row in our files and in W&B's.
        cut: there was no time for all rounds.
        failed: why it ended before, such as want of memory.
    """

    updates: int = 0
    update_s: float = 0.0
    start_s: float = 0.0
    judge_s: float | None = None
    probe_s: float = 0.0
    host_bytes: int = 0
    gpu_bytes: int = 0
    csv_bytes: int = 0
    wandb_bytes: int = 0
    cut: bool = True
    failed: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Of a spec's base config and its most demanding one.

    Attributes:
        device: cpu, or the GPU's name; `gpus` are there.
        base: of the base config.
        demanding: None where that is the base config, or there was no time for it.
        failed: why nothing could be measured.
    """

    device: str = ""
    gpus: int = 0
    base: WarmUp = WarmUp()
    demanding: WarmUp | None = None
    failed: str | None = None


def measure(spec: SweepSpec, limit_s: float = LIMIT_S) -> Measurement:
    """Train a little, as a trial would; takes `limit_s` and a process's start. What fails is told, not raised."""
    base, demanding = spec.space.to_config(spec.trainer, {}), most_demanding(spec)
    configs = [base] if demanding == base else [base, demanding]
    task = {
        "configs": [config.model_dump(mode="json") for config in configs],
        "processes": spec.resources.num_processes,
        "threads": spec.resources.threads,
        "gpu": spec.resources.gpu,
        "limit_s": limit_s,
    }
    found = os.environ.get("PYTHONPATH")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PACKAGES), *([found] if found else [])]),
        "OMP_NUM_THREADS": str(spec.resources.threads),
    }
    if not spec.resources.gpu:
        env["CUDA_VISIBLE_DEVICES"] = ""  # as for the trial
    child = subprocess.Popen(
        [sys.executable, "-m", "sweep.warm_up"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        process_group=0,  # Ctrl-C is for this process, which ends that one
    )
    try:
        said, errors = child.communicate(json.dumps(task), timeout=START_LIMIT_S + limit_s)
    except subprocess.TimeoutExpired:
        return Measurement(failed=f"the data and the model were not ready after {START_LIMIT_S:.0f} s")
    finally:
        child.kill()  # its helpers end with it
        child.wait()
    return _read(said, errors, child.returncode)


def _read(said: str, errors: str, code: int) -> Measurement:
    """What the process said until it ended, by itself or not."""
    result = Measurement()
    for line in said.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue  # a library's own words, or a line that was cut off
        if not isinstance(told, dict):
            continue  # a number is JSON, too
        if "failed" in told:
            return replace(result, failed=str(told["failed"]))
        if "device" in told:
            result = replace(result, device=told["device"], gpus=told["gpus"])
        elif "demanding" in told:
            result = replace(result, demanding=WarmUp(**told["demanding"]))
        elif "base" in told:
            result = replace(result, base=WarmUp(**told["base"]))
    if code == -9:
        return replace(result, failed="the system ended it for want of memory")
    if code != 0:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return replace(result, failed=" ".join(last.split())[:200])
    if not result.base.updates:
        return replace(result, failed=result.base.failed or "there was no time for one update")
    return result


# --- in the process of its own ----------------------------------------------------------------------------------------


def _train_a_little(task: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    import torch

    from model.device import pick_device

    torch.set_num_threads(task["threads"])
    configs = [TrainConfig.model_validate(content) for content in task["configs"]]
    device = pick_device(configs[0])
    if task["gpu"] and device.type != "cuda":
        tell({"failed": "no GPU here, and a trial asks for one"})
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    tell({"device": name, "gpus": torch.cuda.device_count()})
    began = time.perf_counter()
    shares = (BASE_SHARE, 1.0) if len(configs) > 1 else (1.0,)
    for key, config, share in zip(("base", "demanding"), configs, shares, strict=False):
        last = WarmUp()

        def keep(got: WarmUp, key: str = key) -> None:
            nonlocal last
            last = got
            tell({key: asdict(got)})

        try:
            _rounds(task, config, began + share * task["limit_s"], keep)
        except (UserError, MemoryError, RuntimeError) as error:  # the last one is torch's, of memory too
            said = str(error) or "the machine has not that much memory"
            keep(replace(last, failed=" ".join(said.split())[:200]))


def _rounds(task: dict[str, Any], config: TrainConfig, until: float, tell: Callable[[WarmUp], None]) -> None:
    """Some short epochs; tells after each update what is known, so that whoever ends this process loses little."""
    import torch

    from model.data.clips import load_clips
    from model.device import pick_device
    from model.metrics import Level
    from model.team import Team

    clips = load_clips(config.data)
    short = _shortened(config, len(clips.train))
    device = pick_device(config).type
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with Team(task["processes"], device) as team:
        trainer = team.trainer(short, clips)
        a_round = trainer.plan.updates
        got = WarmUp(start_s=time.perf_counter() - began)
        times: list[float] = []  # seconds of an update, and of what follows it, of each round
        judged: list[float] = []
        for number in range(ROUNDS):
            began = trained = time.perf_counter()
            for event in trainer.run_epoch():
                now = time.perf_counter()
                if event.level is Level.EPOCH:
                    judged.append(now - trained)
                    continue
                trained = now
                # an event comes when the update after its own was made, too; so these have taken the time until now
                made = trainer.update - number * a_round
                got = replace(
                    got,
                    updates=trainer.update,
                    update_s=median([*times[1:], (now - began) / made]),
                    host_bytes=own_memory(task["processes"] - 1) + WORKER_BYTES,
                    gpu_bytes=torch.cuda.max_memory_reserved() + CUDA_CONTEXT_BYTES if device == "cuda" else 0,
                    csv_bytes=sum(len(repr(value)) + 1 for value in event.values.values()),
                    wandb_bytes=sum(len(name) + len(repr(value)) + 8 for name, value in event.values.items()),
                )
                tell(got)
            times.append((trained - began) / a_round)
            got = replace(got, judge_s=median(judged[:-1] or judged), cut=number + 1 < ROUNDS)
            if time.perf_counter() > until:
                break
    if not got.cut:
        got = replace(got, probe_s=max(0.0, judged[-1] - median(judged[:-1])))
    tell(replace(got, start_s=got.start_s + a_round * max(0.0, times[0] - got.update_s)))


def _shortened(config: TrainConfig, train_clips: int) -> TrainConfig:
    """ROUNDS short epochs with the true evaluation. Weights to start from are left out: they train as fast."""
    updates = min(UPDATES_A_ROUND, EpochPlan.of(config, train_clips).updates)
    data = config.data.model_copy(update={"clips_per_epoch": updates * config.accum_iter * config.batch_size})
    encoder = config.encoder.model_copy(update={"pretrained": False})
    changes = {"data": data, "encoder": encoder, "epochs": ROUNDS, "warmup_epochs": 0.0, "pictures": 0}
    changes["base_lr"] = 1e-6  # harms no weights
    return config.model_copy(update=changes)


def main() -> int:
    """`python -m sweep.warm_up`: a task on stdin -> lines of JSON on stdout, until its time is up."""
    task = json.load(sys.stdin)

    def tell(content: dict[str, Any]) -> None:
        print(json.dumps(content), flush=True)
        if "device" in content:  # from here on it counts
            timer = threading.Timer(task["limit_s"], os._exit, (0,))
            timer.daemon = True
            timer.start()

    try:
        _train_a_little(task, tell)
    except UserError as error:  # of a device that is not there
        tell({"failed": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
