"""A few updates of the real trainer, in a process of its own: what a trial takes, in time and in memory.

`--dry-run` predicts a sweep from them, and `resources.memory_probe` refuses a packing that cannot fit. The process has
a trial's share of the machine, and nothing of what it trains is kept.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from model.config import TrainConfig
from model.errors import UserError
from model.plan import EpochPlan
from sweep.memory import Peak, available_memory, most_demanding, own_memory
from sweep.spec import SweepSpec

LIMIT_S = 20.0  # of all updates of a dry run together: a model for a GPU takes minutes for one on a CPU
BASE_SHARE = 0.6  # of it for the base config
START_LIMIT_S = 180.0  # for imports and opening the data, beside it
ROUNDS, UPDATES = 3, 4  # of a dry run: short epochs with an evaluation each; the first one warms up
MEMORY_LIMIT_S = 900.0  # of the measurement of memory; the first one may have to start a GPU and compile
MEMORY_UPDATES = 3  # the optimiser's state is there from the first on; the allocator has settled after the second
MEMORY_ACCUM = 2  # the second batch of an update needs what a third one would
MEMORY_EVAL_CLIPS = 64  # one batch of the evaluation (model/evaluate.py)
WORKER_BYTES = 300 * 2**20  # of a CPU trial beside its training: Ray's worker, W&B's client and its service
CUDA_CONTEXT_BYTES = 600 * 2**20  # of a process on a GPU, where nvidia-smi does not tell it
PACKAGES = Path(__file__).resolve().parents[1]  # where the process finds this package
NO_ROOM = "the machine has not that much memory"


@dataclass(frozen=True)
class Task:
    """What the process is to do.

    Attributes:
        configs: as plain data: "base", "demanding" or both.
        processes, threads: of a trial.
        needs_gpu: measure nothing without one.
        rounds, updates: short epochs, and updates of each.
        accum_iter, eval_clips: at most; None: as the config has it.
        limit_s: after this time, from the opened device on, the process ends with what it has; None: never.
    """

    configs: dict[str, dict[str, Any]]
    processes: int
    threads: int
    needs_gpu: bool = False
    rounds: int = ROUNDS
    updates: int = UPDATES
    accum_iter: int | None = None
    eval_clips: int | None = None
    limit_s: float | None = None


@dataclass(frozen=True)
class Took:
    """What a few updates of one config took.

    Attributes:
        updates: that were made; 0 where there was no time for one.
        update_s: seconds of each, the median over the rounds but the first.
        start_s: from nothing to a model that trains, with what the first round took longer than the others.
        judge_s: of what follows an epoch; None where there was no time for it.
        probe_s: of the probe at a trial's end.
        host_bytes: of the machine's memory at the peak, all processes of a trial.
        gpu_bytes: of each GPU, the process's own share (CUDA context) included; 0 without one.
        csv_bytes, wandb_bytes: of an update's row in our files and in W&B's.
        cut: there was no time for all rounds.
        failed: why it ended before; `too_large`: for want of memory.
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
    too_large: bool = False


@dataclass(frozen=True)
class Measurement:
    """The process's answer.

    Attributes:
        device: cpu, or the GPU's name; `gpus` are there.
        host_room, gpu_room: bytes that were free for trials.
        base: of the spec's base config.
        demanding: of the one that needs most memory; None where it was not asked for, or there was no time for it.
        failed: why nothing could be measured; `too_large`: the system ended the process for want of memory.
    """

    device: str = ""
    gpus: int = 0
    host_room: int = 0
    gpu_room: int = 0
    base: Took = Took()
    demanding: Took | None = None
    failed: str | None = None
    too_large: bool = False


def timing_task(spec: SweepSpec, limit_s: float | None = LIMIT_S) -> Task:
    """Of the base config and the most demanding one of a spec."""
    base, demanding = spec.space.to_config(spec.trainer, {}), most_demanding(spec)
    configs = {"base": base} if demanding == base else {"base": base, "demanding": demanding}
    return Task(
        {name: config.model_dump(mode="json") for name, config in configs.items()},
        spec.resources.num_processes,
        spec.resources.threads,
        needs_gpu=spec.resources.gpu > 0,
        limit_s=limit_s,
    )


def memory_task(spec: SweepSpec) -> Task:
    """Of the most demanding config of a spec, as little as shows its peak."""
    return Task(
        {"demanding": most_demanding(spec).model_dump(mode="json")},
        spec.resources.num_processes,
        spec.resources.threads,
        rounds=1,
        updates=MEMORY_UPDATES,
        accum_iter=MEMORY_ACCUM,
        eval_clips=MEMORY_EVAL_CLIPS,
    )


def measure(spec: SweepSpec, limit_s: float = LIMIT_S) -> Measurement:
    """For a forecast; takes `limit_s` and a process's start. What fails is told, not raised."""
    try:
        # without a GPU as for the trial; else those that are here
        more_env = {} if spec.resources.gpu else {"CUDA_VISIBLE_DEVICES": ""}
        found = run(timing_task(spec, limit_s), START_LIMIT_S + limit_s, more_env)
    except subprocess.TimeoutExpired:
        return Measurement(failed=f"the data and the model were not ready after {START_LIMIT_S:.0f} s")
    if found.failed is None and not found.base.updates:
        return replace(found, failed=found.base.failed or "there was no time for one update")
    return found


def measure_peak(task: Task) -> Peak:
    """Run the `memory_task` of a spec with the CPUs and GPUs that this process sees.

    Raises:
        UserError: the config cannot be trained at all, or the run failed otherwise.
    """
    try:
        found = run(task, MEMORY_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise UserError(peak_failed(f"it took longer than {MEMORY_LIMIT_S:.0f} s")) from None
    took = found.demanding or Took()
    reason = found.failed or took.failed
    if found.too_large or took.too_large:
        return Peak(too_large=reason)
    if reason is not None:
        raise UserError(peak_failed(reason))
    return Peak(took.host_bytes, took.gpu_bytes, found.host_room, found.gpu_room)


def peak_failed(reason: str) -> str:
    """What the user reads where the measurement of memory failed."""
    return f"resources.memory_probe: the short run that measures a trial's memory failed: {reason}"


def run(task: Task, timeout_s: float, more_env: dict[str, str] | None = None) -> Measurement:
    """The process's answer. Raises subprocess.TimeoutExpired, after which it is gone."""
    found = os.environ.get("PYTHONPATH")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PACKAGES), *([found] if found else [])]),
        "OMP_NUM_THREADS": str(task.threads),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "sweep.probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | (more_env or {}),
    )
    try:
        said, errors = child.communicate(json.dumps(asdict(task)), timeout=timeout_s)
    finally:
        child.kill()  # its helpers end with it
        child.wait()
    return read_answer(said, errors, child.returncode)


def read_answer(said: str, errors: str, code: int) -> Measurement:
    """The last whole line that the process said until it ended, by itself or not; and how it ended."""
    result = Measurement()
    for line in reversed(said.splitlines()):
        try:
            told = json.loads(line)
        except ValueError:
            continue  # a library's own words, or a line that was cut off
        if isinstance(told, dict) and "base" in told:  # a number is JSON, too
            demanding = told["demanding"]
            parts = {"base": Took(**told["base"]), "demanding": Took(**demanding) if demanding else None}
            result = Measurement(**(told | parts))
            break
    if code == -9:  # the kernel's own killer: nobody else ends this process
        return replace(result, failed="the system ended it for want of memory", too_large=True)
    if code != 0:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        return replace(result, failed=" ".join(last.split())[:200])
    return result


# --- in the process of its own ----------------------------------------------------------------------------------------


def train_a_little(task: Task, tell: Callable[[Measurement], None]) -> None:
    """Train each config; tells after each update all that is known, so that whoever ends this process loses little."""
    import torch

    from model.device import pick_device

    torch.set_num_threads(task.threads)
    configs = {name: TrainConfig.model_validate(content) for name, content in task.configs.items()}
    on_gpu = pick_device(next(iter(configs.values()))).type == "cuda"
    if task.needs_gpu and not on_gpu:
        tell(Measurement(failed="no GPU here, and a trial asks for one"))
        return
    used_before = _gpu_used() if on_gpu else None
    answer = Measurement(
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        gpus=torch.cuda.device_count(),
        host_room=available_memory() - own_memory(0),  # of this process only what it is going to take counts
        gpu_room=torch.cuda.mem_get_info()[1] - (used_before or 0) if on_gpu else 0,
    )
    tell(answer)
    began = time.perf_counter()
    for name, config in configs.items():
        share = BASE_SHARE if name == "base" and len(configs) > 1 else 1.0
        last = Took()

        def keep(got: Took, name: str = name) -> None:
            nonlocal last, answer
            last = got
            answer = replace(answer, base=got) if name == "base" else replace(answer, demanding=got)
            tell(answer)

        try:
            until = math.inf if task.limit_s is None else began + share * task.limit_s
            _Rounds(task, config, used_before, keep).run(until)
        except (UserError, MemoryError, RuntimeError) as error:  # the last one is torch's, of memory too
            said = " ".join((str(error) or NO_ROOM).split())[:200]
            too_large = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said
            keep(replace(last, failed=said, too_large=too_large))


class _Rounds:
    """Some short epochs of one config."""

    def __init__(self, task: Task, config: TrainConfig, used_before: int | None, tell: Callable[[Took], None]) -> None:
        from model.device import pick_device

        self._task, self._config, self._tell = task, config, tell
        self._device = pick_device(config).type
        self._used_before = used_before
        self._got = Took()

    def run(self, until: float) -> None:
        import torch

        from model.data.clips import load_clips
        from model.metrics import Level
        from model.team import Team

        task = self._task
        clips = load_clips(self._config.data)
        short = self._shortened(len(clips.train))
        if self._device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        times: list[float] = []  # seconds of an update, and of what follows it, of each round
        judged: list[float] = []
        with Team(task.processes, self._device) as team:
            trainer = team.trainer(short, clips)
            a_round = trainer.plan.updates
            self._got = Took(start_s=time.perf_counter() - began)
            for number in range(task.rounds):
                began = trained = time.perf_counter()
                for event in trainer.run_epoch():
                    now = time.perf_counter()
                    if event.level is Level.EPOCH:
                        judged.append(now - trained)
                        continue
                    trained = now
                    # an event comes when the update after its own was made, too; so these took the time until now
                    made = trainer.update - number * a_round
                    self._keep(
                        updates=trainer.update,
                        update_s=median([*times[1:], (now - began) / made]),
                        csv_bytes=sum(len(repr(value)) + 1 for value in event.values.values()),
                        wandb_bytes=sum(len(name) + len(repr(value)) + 8 for name, value in event.values.items()),
                    )
                times.append((trained - began) / a_round)
                self._keep(judge_s=median(judged[:-1] or judged), cut=number + 1 < task.rounds)
                if time.perf_counter() > until:
                    break
        if not self._got.cut and len(judged) > 1:
            self._got = replace(self._got, probe_s=max(0.0, judged[-1] - median(judged[:-1])))
        # its helpers have ended: only now their memory is told
        self._keep(start_s=self._got.start_s + a_round * max(0.0, times[0] - self._got.update_s))

    def _keep(self, **known: Any) -> None:
        """Tell what is known, and the memory until now."""
        host_bytes = own_memory(self._task.processes - 1) + WORKER_BYTES
        self._got = replace(self._got, host_bytes=host_bytes, gpu_bytes=self._gpu_bytes(), **known)
        self._tell(self._got)

    def _gpu_bytes(self) -> int:
        import torch

        if self._device != "cuda":
            return 0
        context = CUDA_CONTEXT_BYTES
        if self._used_before is not None:
            free, total = torch.cuda.mem_get_info()
            context = max(total - free - torch.cuda.memory_reserved() - self._used_before, 0)
        return torch.cuda.max_memory_reserved() + context

    def _shortened(self, train_clips: int) -> TrainConfig:
        """The task's epochs. Weights to start from are left out: they train as fast, and take no more."""
        task, config = self._task, self._config
        accum = min(config.accum_iter, task.accum_iter or config.accum_iter)
        updates = min(task.updates, EpochPlan.of(config, train_clips).updates)
        data = config.data.model_copy(
            update={
                "clips_per_epoch": updates * accum * config.batch_size,
                "eval_clips": min(config.data.eval_clips, task.eval_clips or config.data.eval_clips),
            }
        )
        encoder = config.encoder.model_copy(update={"pretrained": False})
        changes: dict[str, Any] = {"data": data, "encoder": encoder}
        changes |= {"epochs": task.rounds, "warmup_epochs": 0.0, "accum_iter": accum, "pictures": 0}
        changes["base_lr"] = 1e-6  # harms no weights
        return config.model_copy(update=changes)


def _gpu_used() -> int | None:
    """Bytes that others use of this process's GPU, before it uses it; None where nvidia-smi does not tell."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return int(done.stdout.strip()) * 2**20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def main() -> int:
    """`python -m sweep.probe`: a Task on stdin -> Measurements on stdout, one a line, the last of which counts."""
    task = Task(**json.load(sys.stdin))

    ticking = False

    def tell(answer: Measurement) -> None:
        nonlocal ticking
        print(json.dumps(asdict(answer)), flush=True)
        if answer.device and task.limit_s is not None and not ticking:  # from here on it counts
            ticking = True
            timer = threading.Timer(task.limit_s, os._exit, (0,))
            timer.daemon = True
            timer.start()

    try:
        train_a_little(task, tell)
    except UserError as error:  # of a device that is not there
        tell(Measurement(failed=str(error)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
