"""`python -m sweep.agent SPEC`: the same sweep, driven from W&B's page by its agents.

    python -m sweep.agent sweeps/alpha_beta.yaml --print              the W&B sweep config cut out of the spec
    python -m sweep.agent sweeps/alpha_beta.yaml --create             registers it; says how to start agents
    python -m sweep.agent sweeps/alpha_beta.yaml --create --count 4   and runs an agent here, for 4 trials

Each run is one `python -m sweep.trial`, which logs what a trial of `python -m sweep.run` logs. By default W&B's server
searches; with `--scheduler` Optuna does, by the sampler, presets and seed of the spec, in `wandb sweep-scheduler`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.console import Console

from model.bars import decoding
from model.errors import ConfigError, UserError
from sweep.plan import make_plan
from sweep.processes import handling, start, wandb_command, with_own_python
from sweep.spec import SweepSpec, load_spec
from sweep.spec_warnings import warnings_of
from sweep.wandb_config import check_results, is_ours, notes, wandb_sweep_config
from sweep.wandb_server import CreatedSweep, check_online, create_sweep
from sweep.warm_start import WarmStart, load_warm_start

POLL_S = 1.0
END_S = 60.0  # for a scheduler to tell the server, or for an agent's trial to write its checkpoint


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.agent`."""
    result = argparse.ArgumentParser(
        prog="python -m sweep.agent",
        description="Run a sweep by W&B's agents: print its W&B config, or register it there.",
        epilog="example: python -m sweep.agent sweeps/alpha_beta.yaml --create --count 4",
        allow_abbrev=False,
    )
    result.add_argument("spec", type=Path, help="sweep file, in W&B's sweep language and ours")
    result.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the spec, repeatable; the trials get it too",
    )
    result.add_argument(
        "--results", type=Path, metavar="DIR", help="results folder of the trials (default: results/<name>-<sweep id>)"
    )
    what = result.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="print the W&B sweep config (the default)")
    what.add_argument("--create", action="store_true", help="register the sweep with W&B, print its id")
    result.add_argument("--count", type=_count, metavar="N", help="register it, and run an agent here for N trials")
    result.add_argument(
        "--scheduler", action="store_true", help="Optuna searches as in python -m sweep.run, not W&B's server"
    )
    return result


def _count(text: str) -> int:
    try:
        if (number := int(text)) > 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}; must be a whole number of trials, at least 1")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 2 bad input or no server, 130 stopped, or that of the agent."""
    options = parser().parse_args(arguments)
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        if options.print and options.count is not None:
            raise ConfigError("--print and --count: an agent needs a registered sweep; write --create --count N")
        spec = load_spec(options.spec, options.options)
        config = wandb_sweep_config(spec, options.spec, options.options, options.results, options.scheduler)
        if not (options.create or options.count):
            _say_notes(spec, options.scheduler, err)
            sys.stdout.write(config_text(config))
            return 0
        if options.results is not None and is_ours(spec):
            check_results(options.results, spec, "give another folder with --results DIR")
        sweep = _create(spec, config, options.scheduler, out)
        _say_created(sweep, out)
        if options.count is None:
            _say_how_to_start(sweep, spec, options.scheduler, out)
            return 0
        return _run_agent(sweep, options.count, options.scheduler)
    except UserError as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def config_text(config: dict[str, Any]) -> str:
    """A W&B sweep config as YAML; readers of YAML 1.1 and 1.2 understand the same."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # 008 or 1e-3 is text to one reader of YAML and a number to another
    style = "'" if text[:1] in "0123456789+-." and "\n" not in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _say_notes(spec: SweepSpec, scheduler: bool, console: Console) -> None:
    for note in [*warnings_of(spec, "scheduler" if scheduler else "wandb"), *notes(spec, scheduler)]:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def _create(spec: SweepSpec, config: dict[str, Any], scheduler: bool, console: Console) -> CreatedSweep:
    """Check all that a trial would stumble over, then register. Raises UserError."""
    check_online(spec.wandb)
    _say_notes(spec, scheduler, console)
    if is_ours(spec):
        warm = WarmStart()
        if scheduler and spec.search.warm_start:
            warm = load_warm_start(spec.search.warm_start, spec)
        with decoding(console) as progress:
            make_plan(spec, progress, warm)
    return create_sweep(config, spec.entity, spec.project, spec.wandb.init_timeout_s)


def _say_created(sweep: CreatedSweep, console: Console) -> None:
    _say_lines({"sweep": sweep.id, "page": sweep.url}, console)


def _say_how_to_start(sweep: CreatedSweep, spec: SweepSpec, scheduler: bool, console: Console) -> None:
    path = shlex.quote(sweep.path)
    lines = {"agent": f"wandb agent --forward-signals {path}", "agents": f"python -m sweep.agents {path}"}
    if scheduler:
        lines["scheduler"] = shlex.join(["wandb", *_scheduler_words(sweep, spec)])
    _say_lines(lines, console)
    console.print("start agents in this folder, on as many machines as share it or have a copy", soft_wrap=True)
    if scheduler:
        console.print("and one scheduler; its --batch-size is the number of agents", soft_wrap=True)


def _say_lines(lines: Mapping[str, str], console: Console) -> None:
    for name, text in lines.items():
        console.print(f"{name:<10} {text}", markup=False, soft_wrap=True)


def _scheduler_words(sweep: CreatedSweep, spec: SweepSpec | None = None) -> list[str]:
    concurrent = spec.resources.max_concurrent if spec is not None else 1
    # more suggestions than agents would be made without the results of those before them
    size = concurrent if isinstance(concurrent, int) else 1
    return ["sweep-scheduler", "--batch-size", str(size), sweep.path]


def _run_agent(sweep: CreatedSweep, count: int, scheduler: bool) -> int:
    """Run W&B's agent as a child until it ends; signals are passed on. Returns its exit code."""
    with ExitStack() as children:
        driver = children.enter_context(_child(*_scheduler_words(sweep))) if scheduler else None
        agent = children.enter_context(_child("agent", "--count", str(count), "--forward-signals", sweep.path))

        def pass_on(number: int, frame: FrameType | None) -> None:
            with suppress(OSError):
                agent.send_signal(number)

        children.enter_context(handling(pass_on))
        code = _wait(agent, driver)
        if driver is not None:
            _end(driver, signal.SIGINT)
    return code if code >= 0 else 128 - code


def _wait(agent: subprocess.Popen[bytes], driver: subprocess.Popen[bytes] | None) -> int:
    """Wait for the agent, and end it where its scheduler fails. Returns the exit code of the one that ended first."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return agent.wait(POLL_S)
        if driver is not None and driver.poll():
            print("error: wandb sweep-scheduler has failed, see above; the agent is ended", file=sys.stderr)
            _end(agent, signal.SIGTERM)
            return driver.returncode


@contextmanager
def _child(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `wandb` command as a child, killed where we leave before it ended."""
    child = start(wandb_command(*words), with_own_python(dict(os.environ)))
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _end(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(OSError):
        child.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        child.wait(END_S)


if __name__ == "__main__":
    sys.exit(main())
