"""`python -m sweep.trial SPEC --alpha=0.3 ...`: one trial, for a W&B agent or by hand.

    python -m sweep.trial sweeps/alpha_beta.yaml --alpha=0.3 --base_lr=1e-3

It trains what a trial of `python -m sweep.run` with these values trains and logs the same rows. What is not given is
the spec's. W&B's agent says by its environment which run this is; by hand, the same values are the same trial. Started
again, a trial goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from model.config import TrainConfig
from model.configfile import field_value
from model.errors import ConfigError, UserError, one_line
from sweep.arguments import parse_parameters, read_parameter_file
from sweep.devices import devices_of, visible_devices
from sweep.faults import MachineError, storage_trouble
from sweep.halt import MACHINE_FAILED
from sweep.outcome import Outcome
from sweep.ownership import TakenOverError
from sweep.processes import SERVICE
from sweep.spec import SweepSpec, load_spec
from sweep.wandb_mode import resolve_mode, settings_files
from sweep.watchdog import STACKS, take_stacks

if TYPE_CHECKING:
    from sweep.study import Record
    from sweep.trial import TrialRun
    from sweep.trial_job import EpochReport
    from sweep.trials_folder import TrialsFolder

OLD_SLOT = "TACTILE_SWEEP_SLOT"  # said which of several agents on a machine this is
SAME_REQUEST_S = 10.0
SHOW_EVERY_S = 1.0  # epochs may be short

Values = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.trial`, the trial's parameters aside."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.trial",
        usage="python -m sweep.trial SPEC [--set KEY=VALUE] [--results DIR] [--NAME=VALUE ...]",
        description="Train one trial of a sweep: by hand, or for a W&B agent.",
        epilog="example: python -m sweep.trial sweeps/alpha_beta.yaml --alpha=0.3 --base_lr=1e-3. NAME is a field of "
        "the trainer, such as alpha or data.frame_stride; all forms of W&B's ${args} are taken",
        allow_abbrev=False,
    )
    result.add_argument("spec", type=Path, metavar="SPEC", help="sweep file")
    result.add_argument(
        "--set", dest="options", action="append", default=[], metavar="KEY=VALUE", help="set a key of the spec"
    )
    result.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="results folder (default: results/<name>-trials, of an agent's trials results/<name>-<W&B sweep>)",
    )
    return result


@dataclass(frozen=True)
class AgentRun:
    """The W&B run that an agent started this process for."""

    run: str
    sweep: str
    project: str | None
    entity: str | None
    parameters: Path | None

    @classmethod
    def of_environment(cls) -> AgentRun | None:
        """None where no agent started this process."""
        run, sweep = os.environ.get("WANDB_RUN_ID"), os.environ.get("WANDB_SWEEP_ID")
        if not run or not sweep:
            return None
        file = os.environ.get("WANDB_SWEEP_PARAM_PATH")
        settings = settings_files()  # where `wandb agent SWEEP` finds what it was not told
        return cls(
            run=run,
            sweep=sweep.rpartition("/")[2],
            project=os.environ.get("WANDB_PROJECT") or settings.get("project"),
            entity=os.environ.get("WANDB_ENTITY") or settings.get("entity"),
            parameters=Path(file) if file else None,
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    0 the trial ended: it finished, or W&B stopped it, or (for an agent, which gives up after three failures) diverged;
    1 it diverged, or hung (retries.hang_s); 2 bad input; 3 the disk is full. SIGTERM, Ctrl-C and a closed terminal
    leave a checkpoint; the process then dies of the signal.
    """
    options, words = parser().parse_known_args(arguments)
    agent = AgentRun.of_environment()
    # W&B has handed the run out already: it must hear that it was preempted, however early that is
    signals = Signals(training=agent is not None)
    try:
        with signals.caught():
            code = _run(options, words, agent, signals)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MACHINE_FAILED if isinstance(error, MachineError) else 2
    signals.die_of_it()
    return code


def _run(options: argparse.Namespace, words: list[str], agent: AgentRun | None, signals: Signals) -> int:
    spec = load_spec(options.spec, options.options)
    given = parse_parameters(words)
    if agent is not None and agent.parameters is not None and agent.parameters.exists():
        given |= read_parameter_file(agent.parameters)  # whose values have their types
    beyond = {name: value for name, value in given.items() if name not in spec.parameters}
    if beyond and agent is None:  # what is not searched is the spec's: its trials compare with each other alone
        spec = load_spec(options.spec, [*options.options, *(f"trainer.{n}={json.dumps(v)}" for n, v in beyond.items())])
    values = _that_matter(spec, given, agent is None)
    config = spec.space.to_config(spec.trainer, values, where="trial")
    if agent is not None:
        _check_mode(spec)
    _take_share(spec)
    import torch  # not before the values are known to be good

    from sweep.trial import TrialRun
    from sweep.trial_job import TrialJob
    from sweep.trials_folder import TrialsFolder

    torch.set_num_threads(spec.resources.threads)  # as Ray's trials do: the last bits depend on it
    folder = TrialsFolder(options.results or _default_results(spec, agent, beyond), spec)
    record = folder.claim(agent.run if agent is not None else key_of(config), config)
    job = TrialJob(
        trial=record.trial,
        sweep=spec.name,
        sweep_uid=folder.uid,
        results=folder.results.path,
        config=config,
        values=record.values,
        preset=record.preset,
        objective=spec.objective,
        metrics=tuple(metric.name for metric in spec.objectives),
        wandb=spec.wandb,
        project=(agent.project if agent is not None else None) or spec.project,
        entity=(agent.entity if agent is not None else None) or spec.entity,
        wandb_run=agent.run if agent is not None else None,
        wandb_sweep=agent.sweep if agent is not None else None,
        processes=spec.resources.num_processes,
        hang_s=spec.retries.hang_s,
    )
    shown = ", ".join(f"{name} {value}" for name, value in given.items()) or "the spec's own values"
    _say(f"trial {record.trial}: {shown}; {job.folder}")
    if take_stacks(job.folder):
        _say(f"its process before hung, and ended itself (retries.hang_s); where it stood: {job.folder / STACKS}")
    signals.training = True
    try:
        run = TrialRun(job, should_stop=lambda: signals.caught_one is not None, obeys_wandb=True)
        return _train(run, folder, record, spec, agent is not None)
    except TakenOverError as error:
        _say(str(error))
        os._exit(MACHINE_FAILED)  # at an orderly end W&B's client would close the run, which goes on elsewhere
    except Exception as error:
        if (trouble := storage_trouble(error, folder.results.path)) is not None:
            raise MachineError(f"{trouble}; make room, and start it again: it goes on from its checkpoint") from None
        reason = one_line(error)
        folder.ended(record, config, Outcome.FAILED, reason=reason)
        raise


def _train(run: TrialRun, folder: TrialsFolder, record: Record, spec: SweepSpec, agents: bool) -> int:
    """Train to the end and enter it; returns the exit code."""
    mode, reason = resolve_mode(spec.wandb.mode)
    if run.url:
        _say(f"W&B: {run.url}")
    elif mode == "offline":
        _say(f"W&B: offline, {reason}; later: python -m sweep.sync {folder.results.path}")
    metric, config = spec.metric.name, run.job.config
    began, shown_at = run.epochs, -math.inf
    while True:
        report = run.run_epoch()
        if report.interrupted:
            where = "W&B hands it out again" if agents else "the same command goes on from there"
            _say(f"interrupted in epoch {report.epochs + 1}, with a checkpoint; {where}")
            folder.refresh(record)
            return 1
        for text, severity in report.findings:
            _say(f"{severity}: {text}")
        value = report.metrics.get(metric)
        ended = report.finished or report.stopped or report.diverged is not None
        if (ended and report.epochs > began) or time.monotonic() - shown_at > SHOW_EVERY_S:
            shown_at = time.monotonic()
            _say(_line(report, metric, config))
        if report.diverged is not None:
            folder.ended(record, config, Outcome.DIVERGED, None, report.epochs, report.diverged)
            return 0 if agents else 1
        if report.stopped:
            folder.ended(record, config, Outcome.PRUNED, value, report.epochs, "stopped by W&B")
            return 0
        if report.finished:
            folder.ended(record, config, Outcome.COMPLETE, value, report.epochs)
            if report.epochs == began:
                _say("it had trained to its end before")
            return 0


def _say(text: str) -> None:
    """A line on the terminal; one that is gone is no reason to end the trial."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _line(report: EpochReport, metric: str, config: TrainConfig) -> str:
    if report.diverged is not None:
        return f"diverged in epoch {report.epochs + 1}: {report.diverged}"
    number = report.metrics.get(metric)
    shown = "" if number is None else f"  {metric} {number:.6g}"
    if report.stopped:
        return f"stopped by W&B after {report.epochs} of {config.epochs} epochs{shown}"
    return f"epoch {report.epochs} of {config.epochs}{shown}"


def key_of(config: TrainConfig) -> str:
    """By hand: the same config is the same trial."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return "hand-" + hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def _that_matter(spec: SweepSpec, given: Values, by_hand: bool) -> Values:
    """Without values whose conditions (search.conditions) do not hold: W&B's own search draws them all the same.

    By hand, such a value is an error: it would be dropped. Raises ConfigError.
    """
    content = spec.trainer.model_dump(mode="json")
    own = {name: field_value(content, name) for name in spec.space.parameters}
    known = own | spec.space.constants | given
    dropped = [name for name in given if not spec.space.matters(name, known)]
    if dropped and by_hand:
        needed = ", ".join(f"{name} = {value!r}" for name, value in spec.space.needed(dropped[0]).items())
        raise ConfigError(
            f"{dropped[0]} matters only with {needed} (search.conditions); give that too, or leave it out"
        )
    return {name: value for name, value in given.items() if name not in dropped}


def _default_results(spec: SweepSpec, agent: AgentRun | None, beyond: Values) -> Path:
    if agent is not None:
        return Path("results") / f"{spec.name}-{agent.sweep}"
    name = "-".join([spec.name, "trials", *(f"{name}-{value}" for name, value in sorted(beyond.items()))])
    return Path("results") / re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100]


def _check_mode(spec: SweepSpec) -> None:
    mode, reason = resolve_mode(spec.wandb.mode)
    if mode != "online":
        raise ConfigError(
            f"wandb: an agent's trials are online only, but this one would be {mode} ({reason}); "
            "give --set wandb.mode=online, and credentials by wandb login or WANDB_API_KEY"
        )


def _take_share(spec: SweepSpec) -> None:
    """The GPUs and the W&B service that this process is to use; before torch and wandb are imported."""
    if OLD_SLOT in os.environ:
        raise ConfigError(f"{OLD_SLOT} is no more; give the agent its GPUs itself: CUDA_VISIBLE_DEVICES=0")
    if service := os.environ.get(SERVICE):
        os.environ.setdefault("WANDB_SERVICE", service)
    if not spec.resources.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray hides them: resources.gpu = 0 trains on the CPU
        return
    devices_of(0, spec.resources.gpu, visible_devices())  # raises where there are too few


class Signals:
    """SIGTERM, SIGINT, SIGQUIT and SIGHUP, kept until the trial has left a checkpoint. A second one ends it at once.

    SIGTERM again within SAME_REQUEST_S is the same request: an agent passes on what Slurm sent to all its processes.

    Attributes:
        training: there is something to keep; before that, a signal ends the process as usual.
        caught_one: the signal.
    """

    def __init__(self, training: bool = False) -> None:
        self.training = training
        self.caught_one: int | None = None
        self._caught_at = 0.0
        self._before: dict[int, Any] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them within; in the main thread only, as Python wants it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.training and self.caught_one is None:
            self.caught_one, self._caught_at = number, time.monotonic()
            return
        if number == signal.SIGTERM == self.caught_one and time.monotonic() - self._caught_at < SAME_REQUEST_S:
            return
        self.caught_one = number
        self.die_of_it()

    def die_of_it(self) -> None:
        """Where a signal was caught: die of it, so that whoever sent it sees that it was obeyed."""
        if self.caught_one is None:
            return
        with suppress(OSError):
            sys.stdout.flush()
        signal.signal(self.caught_one, signal.SIG_DFL)
        os.kill(os.getpid(), self.caught_one)
