"""`python -m sweep.agents SWEEP -n 4`: several W&B agents on one machine, and an eye on them.

    scripts/agents.sh me/tactile/abcd1234 -n 4

Starts real `wandb agent --forward-signals` processes for one sweep. They share one W&B service; each has a place (slot)
of its own, by which its trials choose their GPU, and a log file. An agent that dies is started again; the trial that it
leaves behind is asked to end first, with a checkpoint. Ctrl-C or SIGTERM does so for all; whatever ends this process,
it leaves none behind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from model.errors import ConfigError, UserError
from sweep.blocks import WandbSettings
from sweep.family import output_of
from sweep.resources import Resources
from sweep.slots import agents_that_fit, devices_of, usable_cores, visible_devices
from sweep.spec import SweepSpec, load_spec
from sweep.supervisor import Supervisor
from sweep.trial_command import named_trial
from sweep.wandb_config import check_results
from sweep.wandb_server import check_online

MAX_AGENTS = 512  # more is a slip of the finger
SERVER_LIMIT_S = 60.0  # for the server to tell the sweep's config

_SWEEP = re.compile(r"([^/:;,#?'\\%]+/){0,2}(?!-)[\w-]+")


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.agents`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.agents",
        description="Run several W&B agents of one sweep on this machine.",
        epilog="example: scripts/agents.sh me/tactile/abcd1234 -n 4",
    )
    result.add_argument("sweep", metavar="SWEEP", help="id of the W&B sweep: [[ENTITY/]PROJECT/]SWEEP")
    result.add_argument(
        "-n", "--num", default="auto", metavar="N", help="agents; auto (default): as many as fit the spec's resources"
    )
    result.add_argument("--count", metavar="N", help="each agent ends after N runs (default: when the sweep ends)")
    result.add_argument(
        "--spec", type=Path, help="sweep file, for its resources (default: the one in the sweep's command)"
    )
    result.add_argument("--logs", type=Path, metavar="DIR", help="log files (default: results/agents-<sweep>)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 all agents ended well, 1 one did not, 2 bad input, 130 stopped."""
    options = parser().parse_args(arguments)
    try:
        sweep = sweep_path(options.sweep)
        count = None if options.count is None else _positive(options.count, "--count")
        check_online(WandbSettings())
        asked = _asked_number(options.num)
        given = None if options.spec is None else load_spec(options.spec)
        config = _config_on_server(sweep, needed=given is None and asked is None)
        trials = trials_of(config, sweep.rpartition("/")[2])
        spec = given or (None if trials is None else trials.spec)
        num = number_of_agents(options.num, None if spec is None else spec.resources)
        folder = options.logs or Path("results") / f"agents-{sweep.rpartition('/')[2]}"
        with _alone(folder):
            code = Supervisor(sweep, num, folder, _environment(), count).run()
        if trials is not None and trials.results.exists():
            print(f"trials: {trials.results}; report: python -m sweep.report {shlex.quote(str(trials.results))}")
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before there were agents
        return 130


def sweep_path(text: str) -> str:
    """A sweep's id as `wandb agent` takes it. Raises ConfigError for another form, with a guess for a web address."""
    if _SWEEP.fullmatch(text):
        return text
    guess = ""
    if address := re.search(r"//[^/]+/([^/]+)/([^/]+)/sweeps/([\w-]+)", text):
        guess = f"; did you mean {'/'.join(address.groups())}?"
    raise ConfigError(f"sweep {text!r}: must be SWEEP, PROJECT/SWEEP or ENTITY/PROJECT/SWEEP, as W&B shows it{guess}")


def number_of_agents(asked: str, resources: Resources | None) -> int:
    """How many agents to start; says so where that is more than fit.

    Args:
        asked: a number, or auto: as many as fit, or one where nothing is known of what a trial needs.

    Raises:
        ConfigError: no number above 0; not even one trial has room; too few GPUs for any.
    """
    num = _asked_number(asked)
    if resources is None:
        if num is None:
            print("note: one agent, since the resources of a trial are not known; give -n, or --spec", flush=True)
        return num or 1
    devices = visible_devices() if resources.gpu else []
    devices_of(0, resources.gpu, devices)  # a trial would fail
    cores = usable_cores()
    fit = agents_that_fit(resources, cores, len(devices))
    wanted = f"a trial asks for {resources.cpu:g} CPU and {resources.gpu:g} GPU of {cores} and {len(devices)}"
    if resources.max_concurrent != "auto":
        wanted += f", max_concurrent is {resources.max_concurrent}"
    if num is None:
        if fit == 0:
            raise ConfigError(f"resources: {wanted}, so none fits; set resources to less, or give -n")
        return fit
    if num > fit:
        print(f"note: {num} agents, but {fit} fit: {wanted}; they will share", flush=True)
    return num


def _asked_number(text: str) -> int | None:
    """What -n says; None for auto."""
    num = None if text == "auto" else _positive(text, "-n")
    if num is not None and num > MAX_AGENTS:
        raise ConfigError(f"-n {num}: must be at most {MAX_AGENTS}")
    return num


def _positive(text: str, option: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or int(text) == 0:
        raise ConfigError(f"{option} {text}: must be a whole number from 1 on")
    return int(text)


def _config_on_server(sweep: str, needed: bool) -> dict[str, Any]:
    """The W&B config of a sweep; empty, with a note, where the server did not tell it and it is not `needed`.

    Raises UserError: the server has no such sweep; or it did not tell its config, which is needed.
    """
    # in a process of its own: wandb would leave threads and a service in this one
    command = [sys.executable, "-c", "from sweep.agents import print_config; print_config()", sweep]
    try:
        done = output_of(command, dict(os.environ), SERVER_LIMIT_S)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        answer = {"error": f"{sweep}: W&B's server gave no answer in {SERVER_LIMIT_S:.0f} s"}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        answer = {"error": f"{sweep}: W&B's server did not tell its config"}
    if "config" in answer:
        return dict(answer["config"])
    if answer.get("missing"):
        raise UserError(answer["error"])
    if needed:
        raise UserError(f"{answer['error']}; try again, or give -n or --spec")
    print(f"note: {answer['error']}; the agents are started all the same", flush=True)
    return {}


def print_config() -> None:
    """What `_config_on_server` runs: a line of JSON with the config of the sweep `sys.argv[1]`, or with an error."""
    from sweep.wandb_runs import NoSuchSweepError, config_of

    try:
        answer: dict[str, Any] = {"config": config_of(sys.argv[1])}
    except UserError as error:
        answer = {"error": str(error), "missing": isinstance(error, NoSuchSweepError)}
    print(json.dumps(answer, default=str))


@dataclass(frozen=True)
class Trials:
    """The trials that a W&B sweep's command starts here: their spec, and their results folder."""

    spec: SweepSpec
    results: Path


def trials_of(config: Mapping[str, Any], sweep_id: str) -> Trials | None:
    """What the command of a W&B sweep starts here, checked before an agent loses runs on it; None for other programs.

    Raises:
        ConfigError: the spec is not here or cannot be read; it is another than that of the trials in the folder.
    """
    named = named_trial(config)
    if named is None:
        return None
    if not named.spec.exists():
        raise ConfigError(
            f"{named.spec}: no such file here, but the sweep's command names it; start agents in the folder where the "
            "sweep was created, or in a copy of it"
        )
    spec = load_spec(named.spec, named.overrides)
    results = named.results_folder(spec.name, sweep_id)
    anew = shlex.join(["python", "-m", "sweep.agent", str(named.spec), "--create"])
    check_results(results, spec, f"restore {named.spec} as it was, or make a new sweep: {anew}")
    return Trials(spec, results)


def _environment() -> dict[str, str]:
    """What all agents get."""
    environ = dict(os.environ)
    environ.pop("WANDB_SERVICE", None)  # of whomever; ours is set below
    # the agent starts its trials by the name `python`
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    if devices := visible_devices():  # asked for once, not by every trial
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return environ


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The only supervisor that writes its logs there."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: agents of this sweep are running already and write their logs there; end them, or give another "
            "folder with --logs DIR"
        ) from None
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}; choose another folder with --logs DIR") from None
    try:
        yield
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
