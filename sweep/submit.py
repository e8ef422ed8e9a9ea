"""`python -m sweep.submit SPEC`: send a sweep to a Ray cluster as a job, and follow it (scripts/submit.sh).

    python -m sweep.submit sweeps/alpha_beta.yaml --address http://HEAD:8265 --results /shared/results/first

`ray job submit` does the work. This program and the spec are sent along, so the nodes need no checkout; the packages in
pyproject.toml they do need. All options but those below are those of `python -m sweep.run`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

import yaml

from model.configfile import load_yaml
from model.errors import ConfigError, UserError
from sweep.cluster import use_token
from sweep.remote import is_url
from sweep.run_command import parser as run_parser
from sweep.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # where `ray job submit` looks, in this order
SENT = ("model", "sweep", "pyproject.toml")
STOP_S = 40  # what `ray job stop` leaves the sweep for its checkpoints; Ray's own 3 s are too few
NOT_YET = "No available agent to submit job"  # a dashboard's word while its cluster starts
TAKEN_S, PAUSE_S = 90.0, 2.0  # how long it may say so
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # in the name of a variable
OURS = ("working_dir", "excludes")


def parser() -> argparse.ArgumentParser:
    """The command line, without the options of `python -m sweep.run`."""
    result = argparse.ArgumentParser(
        prog="scripts/submit.sh",
        description="Send a sweep to a Ray cluster as a job, and follow it.",
        epilog="example: scripts/submit.sh sweeps/alpha_beta.yaml --address http://head:8265 --results s3://bucket/a. "
        "All other options are those of python -m sweep.run. Ctrl-C ends the following, not the sweep. Exit "
        "code: that of the sweep. WANDB_API_KEY is not sent: nodes have it in their own environment.",
        allow_abbrev=False,
    )
    result.add_argument("spec", type=Path, help="sweep file")
    result.add_argument(
        "--address", metavar="URL", help="the cluster's dashboard, http://HEAD:8265 (default: RAY_ADDRESS)"
    )
    result.add_argument(
        "--runtime-env", type=Path, metavar="FILE", help="YAML file of a Ray runtime environment: pip, env_vars, ..."
    )
    result.add_argument("--no-wait", action="store_true", help="do not follow the sweep")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the sweep's exit code, 2 for bad input, 130 where only the following was ended."""
    options, rest = parser().parse_known_args(arguments)
    try:
        address = _address(options.address)
        entrypoint = _entrypoint(options.spec, rest)
        runtime_env = _runtime_env(options.runtime_env)
        if util.find_spec("aiohttp_cors") is None:
            raise ConfigError("sending jobs needs ray[default]; install it: pip install 'tactile-sweep[cluster]'")
        with tempfile.TemporaryDirectory(prefix="tactile-sweep-") as folder:
            _pack(Path(folder), options.spec)
            return _submit(address, entrypoint, {**runtime_env, "working_dir": folder}, follow=not options.no_wait)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _address(given: str | None) -> str:
    address = given or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if address is None:
        raise ConfigError("no cluster is given; name its dashboard: --address http://HEAD:8265, or RAY_ADDRESS")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"the address {address}: jobs are sent to the cluster's dashboard, usually http://HEAD:8265; 'ray start' "
            "printed it on the head"
        )
    return address


def _entrypoint(spec_file: Path, rest: list[str]) -> str:
    """The job's command. Raises ConfigError for what would not work on another machine."""
    sent = run_parser().parse_args([str(spec_file), *rest])  # exits with 2 where an option is unknown
    spec = load_spec(spec_file, sent.options)
    place = sent.results or spec.results
    if sent.address is not None:
        raise ConfigError("--address names the dashboard of the cluster; a job runs on the cluster that it was sent to")
    if place is None or not (is_url(place) or Path(place).is_absolute()):
        given = "no place for the results is given" if place is None else f"--results {place} is a relative path"
        raise ConfigError(
            f"{given}, and a job's own folder on the cluster is temporary; give an absolute path on a file system that "
            "all nodes share, or s3://bucket/folder, with --results"
        )
    _check_paths(spec_file.absolute(), sent.options, spec.resolved())
    return shlex.join(["python", "-m", "sweep.run", spec_file.name, *rest])


def _check_paths(spec_file: Path, overrides: list[str], here: dict[str, Any]) -> None:
    """A spec that reads otherwise in another folder has relative paths, which mean nothing on the cluster."""
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
        there = load_spec(spec_file, overrides).resolved()
    relative = sorted(_differing(here, there))
    if relative:
        raise ConfigError(
            f"{spec_file.name}: {', '.join(relative)}: a relative path, which the cluster's nodes cannot follow; give "
            "an absolute one"
        )


def _differing(here: Any, there: Any, key: str = "") -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        return [
            name
            for inner in here
            for name in _differing(here[inner], there.get(inner), f"{key}.{inner}" if key else str(inner))
        ]
    return [] if here == there else [key]


def _runtime_env(file: Path | None) -> dict[str, Any]:
    content = {} if file is None else load_yaml(file)
    variables = {} if not isinstance(content, dict) else content.get("env_vars") or {}
    if not isinstance(content, dict) or not isinstance(variables, dict):
        raise ConfigError(f"{file}: must be a mapping, such as pip: [torch], env_vars: {{NAME: value}}")
    if taken := [key for key in OURS if key in content]:
        raise ConfigError(f"{file}: {taken[0]} is made here: this program and the spec; leave it out")
    if secret := [name for name in variables if any(word in name.upper() for word in SECRET)]:
        raise ConfigError(
            f"{file}: env_vars.{secret[0]} looks like a secret, and Ray shows a job's variables to all who see its "
            "dashboard; set it in the environment of the nodes (scripts/cluster/README.md, Secrets)"
        )
    return {**content, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **variables}}


def _pack(folder: Path, spec_file: Path) -> None:
    """Put into a folder what the job needs of here."""
    for name in SENT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(spec_file, folder / spec_file.name)


def _submit(address: str, entrypoint: str, runtime_env: dict[str, Any], follow: bool) -> int:
    job = f"sweep-{secrets.token_hex(4)}"
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job"]
    at = ["--address", address]
    # ours, not the submitter's own: they would be taken for the job's
    use_token()
    environment = {name: value for name, value in os.environ.items() if name not in ADDRESSES}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(runtime_env, file)
        file.flush()
        words = ["submit", *at, "--submission-id", job, "--runtime-env", file.name, "--no-wait"]
        command = [*ray, *words, "--", *shlex.split(entrypoint)]
        give_up = time.monotonic() + TAKEN_S
        while True:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if NOT_YET not in done.stdout + done.stderr or time.monotonic() > give_up:
                break
            time.sleep(PAUSE_S)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].rstrip(".") if lines else "no reason was given"
        raise UserError(
            f"the cluster {address} did not take the job: {reason}. Is it the dashboard's address, does "
            "Ray run there, and is its token here (RAY_AUTH_TOKEN or ~/.ray/auth_token)?"
        )
    hint = (
        f"follow it: ray job logs {job} --address {address} --follow\nstop it:   ray job stop {job} --address {address}"
    )
    print(f"job {job} was sent to {address}\n{hint}", flush=True)
    if not follow:
        return 0
    try:
        return _followed(address, job)
    except KeyboardInterrupt:
        print(f"\nthe sweep goes on without you\n{hint}", file=sys.stderr)
        return 130


def _followed(address: str, job: str) -> int:
    """Print what the job prints, to its end; returns its exit code."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)

    async def print_all() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    asyncio.run(print_all())
    info = client.get_job_info(job)
    if not info.status.is_terminal():
        raise UserError(f"the job {job} can no longer be followed, and is {info.status}; it goes on by itself")
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    print(f"the job {job} is {info.status}: {info.message}", file=sys.stderr)
    return 0 if info.status == JobStatus.SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
