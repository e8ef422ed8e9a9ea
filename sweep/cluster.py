"""The Ray that a sweep runs on: a cluster that runs already, or one of our own on this machine, on loopback only.

Which one is Ray's variable RAY_ADDRESS, as in `ray job submit`, or `--address`, which sets it for a command.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model.errors import ConfigError
from sweep.faults import MachineError
from sweep.resources import Resources

ADDRESS = "RAY_ADDRESS"  # Ray's own variable
AUTO, LOCAL = "auto", "local"  # Ray's own words for: the cluster that this machine is in, and one of our own
CONNECT_S = 5.0
ANSWER_S = 30.0  # the first answer of a cluster, Ray's import included; Ray itself would wait for minutes
JOIN_S = 120.0
CLIENT_TRIES = 3
# what Ray Client says when the process that it starts for each of its users is not ready in half a minute: a busy head
CLIENT_TOO_SLOW = "Starting Ray client server failed"
CLIENT_DIED = "ZombieProcess"  # the process ended while its start was looked at; seen on a busy machine
START_TRIES, START_S = 3, 30  # a Ray of our own; the seconds are Ray's, which no option changes
START_TOO_SLOW = "timed out during startup"
IN_NO_NETWORK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray keeps to loopback; its default on Windows and macOS
FORMS = (
    "auto (the cluster that this machine is in), HOST:PORT (of its head, usually port 6379), ray://HOST:PORT (of its "
    "Ray Client, usually port 10001) or local"
)
CLIENT = "ray://"
ASK_CLIENT = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False)
task = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().gcs_address)
print(ray.get(task.remote()))
"""


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Attributes:
        id: Ray's.
        name: its host name, with its address where that says more.
        resources: how much it has of each, by Ray's name.
    """

    id: str
    name: str
    resources: dict[str, float]


@dataclass(frozen=True)
class Cluster:
    """What a sweep runs on.

    Attributes:
        address: HOST:PORT of its head; None for a Ray of our own, which is this machine alone.
        logs: Ray's folder of logs on this machine.
        job: Ray's id of this sweep there; None for a Ray of our own.
    """

    nodes: tuple[Node, ...]
    address: str | None
    logs: Path | None = None
    job: str | None = None

    @property
    def summary(self) -> str:
        """How large it is, in words."""
        total = {name: sum(node.resources.get(name, 0.0) for node in self.nodes) for name in ("CPU", "GPU")}
        count = f"{len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        return f"joined the Ray cluster {self.address}: {count}, {total['CPU']:g} CPU, {total['GPU']:g} GPU"


def fits(resources: Resources, node: Mapping[str, float]) -> int:
    """How many trials a node with these resources has room for at a time."""
    wanted = {"CPU": resources.cpu, "GPU": resources.gpu}
    return min(math.floor(node.get(name, 0.0) / asked + 1e-9) for name, asked in wanted.items() if asked > 0)


@contextmanager
def named(address: str | None) -> Iterator[None]:
    """Makes `address` what RAY_ADDRESS says, for a while. Raises ConfigError for one that cannot be one."""
    before = os.environ.get(ADDRESS)
    if address is not None:
        _checked(address, "--address")
    if address == LOCAL:
        os.environ.pop(ADDRESS, None)
    elif address is not None and not (address == AUTO and before):  # a Ray job is told its cluster
        os.environ[ADDRESS] = address
    try:
        yield
    finally:
        os.environ.pop(ADDRESS, None)
        if before is not None:
            os.environ[ADDRESS] = before


@contextmanager
def ray_cluster(verbose: bool = False) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS names, or start a Ray of our own; what was started is ended.

    Args:
        verbose: Ray prints what it and its workers say.

    Raises:
        ConfigError: there is no cluster at that address, or it cannot be joined from here.
    """
    import ray

    given = os.environ.get(ADDRESS) or LOCAL
    _checked(given, ADDRESS)
    with _started_here(verbose) if given == LOCAL else _joined(given, verbose) as (address, logs):
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = tuple(Node(n["NodeID"], _name(n), n["Resources"]) for n in alive)
        job = None if address is None else ray.get_runtime_context().get_job_id()
        yield Cluster(nodes, address, logs, job)


@contextmanager
def _started_here(verbose: bool) -> Iterator[tuple[None, Path]]:
    with on_loopback(), _own_process_group():
        logs = _init(
            verbose,
            address=LOCAL,
            include_dashboard=False,
            object_store_memory=200_000_000,  # trials exchange nothing through it
        )
    try:
        yield None, logs
    finally:
        _shutdown()


@contextmanager
def _joined(given: str, verbose: bool) -> Iterator[tuple[str, Path]]:
    host, port = _head(given)
    use_token()
    loopback = _is_loopback(host) and _only_on_loopback(port)
    _check_connects(given, host, port)
    with on_loopback() if loopback else nullcontext():
        _check_answers(given, f"{host}:{port}")
        _check_joins(given, f"{host}:{port}")
        logs = _init(verbose, **_joining(f"{host}:{port}"))
    try:
        yield f"{host}:{port}", logs
    finally:
        _shutdown()


NOT_A_NODE = (
    "The driver must run on a node of the cluster with the same Python and Ray: log in to one, run "
    "'ray start --address HOST:PORT' here, or send the sweep there with scripts/submit.sh"
)


def _init(verbose: bool, **options: Any) -> Path:
    """Returns Ray's folder of logs on this machine."""
    import ray

    level = logging.INFO if verbose else logging.ERROR
    before = set(psutil.Process().children(recursive=True))
    for _ in range(START_TRIES):
        try:
            context = ray.init(log_to_driver=verbose, logging_level=level, configure_logging=True, **options)
        except Exception as error:
            if START_TOO_SLOW not in str(error):
                raise
            _end(set(psutil.Process().children(recursive=True)) - before)  # Ray leaves them to the end of this process
        else:
            return Path(context.address_info["session_dir"]) / "logs"
    raise MachineError(
        f"Ray did not start in {START_TRIES} times {START_S} s: this machine is too busy, or short of memory; "
        "free some of it"
    )


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(list(processes), timeout=START_S)


def _shutdown() -> None:
    import ray

    ray.shutdown()


def _checked(address: str, origin: str) -> None:
    if address in (AUTO, LOCAL):
        return
    if re.match(r"(?!ray:)\w+://", address):
        raise ConfigError(
            f"{origin} {address}: must be {FORMS}; to send a sweep to a dashboard's address, use scripts/submit.sh"
        )
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", address.removeprefix(CLIENT))
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"{origin} {address!r}: must be {FORMS}")


def _head(given: str) -> tuple[str, int]:
    """Host and port of the head."""
    if given == AUTO:
        from ray._private.services import find_bootstrap_address  # the file that `ray start` leaves

        address = find_bootstrap_address(None)
        if address is None:
            raise ConfigError(
                f"{AUTO}: no Ray cluster was started on this machine with 'ray start'; give the cluster's "
                "HOST:PORT, or leave --address out to run on this machine alone"
            )
    elif given.startswith(CLIENT):
        address = _behind_client(given)
    else:
        address = given
    return _host_and_port(address)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _behind_client(given: str) -> str:
    """HOST:PORT of the head of the cluster whose Ray Client listens at `given`, which is then joined directly.

    Through the client itself, Tune would move the driver, with the study and its journal, into the cluster.
    """
    _check_connects(given, *_host_and_port(given.removeprefix(CLIENT)))
    use_token()
    command = [sys.executable, "-c", ASK_CLIENT, given]
    environment = os.environ | {ADDRESS: ""}
    for _ in range(CLIENT_TRIES):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=JOIN_S, process_group=0, check=False
            )
        except subprocess.TimeoutExpired:
            raise _refused(given, f"Ray Client gave no answer in {JOIN_S:.0f} s", NOT_A_NODE) from None
        if not any(said in done.stderr for said in (CLIENT_TOO_SLOW, CLIENT_DIED)):
            break
    if done.returncode != 0 or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise _refused(given, f"what listens there is no Ray Client that can be used: {last[:200]}", NOT_A_NODE)
    return done.stdout.split()[-1]


def _check_connects(given: str, host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            pass
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error))
        raise _refused(
            given,
            f"nothing can be reached at {host}:{port} ({reason})",
            "On the head, 'ray status' tells whether it runs; 'ray start' told its address, usually with the port 6379",
        ) from None


def _check_answers(given: str, address: str) -> None:
    """A first question in a process of its own: Ray's client waits for minutes, and may end the process it is in."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    environment = os.environ | {ADDRESS: ""}  # else it wins over the option
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_S, process_group=0, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(
            given,
            f"what listens there did not answer as a Ray cluster does in {ANSWER_S:.0f} s",
            "Port 8265 is the dashboard's and 10001 that of Ray Client; the head's own is usually 6379",
        ) from None
    if done.returncode == 0:
        return
    last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    if "AuthenticationError" in last:
        raise _refused(
            given,
            "it wants another token than the one here" if has_token() else "it wants a token, and there is none here",
            "Put the cluster's (on its head: ray get-auth-token) into RAY_AUTH_TOKEN or ~/.ray/auth_token",
        )
    if "Ray version mismatch" in done.stderr:
        versions = re.search(r"cluster has Ray version (\S+) but local Ray version is (\S+)", done.stderr)
        there, here = versions.groups() if versions else ("another", "this one")
        raise _refused(given, f"it has Ray {there}, and here is {here}", "Install the same Ray on both sides")
    if "RpcError" in last:  # the port of a raylet or of Ray Client
        raise _refused(
            given, "a service that is not the head of a Ray cluster answers there", "The head's port is usually 6379"
        )
    raise _refused(given, f"it does not answer: {last[:200]}", "See 'ray status' on its head")


def _check_joins(given: str, address: str) -> None:
    """Join in a process of its own first: on a machine that is no node of the cluster, Ray ends the process."""
    code = f"import ray; ray.init(log_to_driver=False, **{_joining(address)!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=JOIN_S, process_group=0, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(given, f"it could not be joined from here in {JOIN_S:.0f} s", NOT_A_NODE) from None
    if done.returncode < 0 or "raylet" in done.stderr:
        raise _refused(given, "this machine is no node of it", NOT_A_NODE)
    if done.returncode > 0:
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise _refused(given, f"it cannot be joined from here: {last[:200].rstrip('.')}", NOT_A_NODE)


def _joining(address: str) -> dict[str, Any]:
    # whatever the raylets were started with: a trial with gpu: 0 is to see no GPU there, too
    return {"address": address, "runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}}


def _refused(given: str, what: str, how: str) -> ConfigError:
    return ConfigError(f"the Ray cluster {given}: {what}. {how}")


def has_token() -> bool:
    """Whether this machine has a token of Ray: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def use_token() -> None:
    """Show the token that is here: for an explicit address Ray would not, and a cluster with tokens refuse us."""
    from ray._private.authentication import authentication_token_setup as setup

    setup.logger.setLevel(logging.ERROR)  # it warns that it does what it should
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _name(node: dict[str, Any]) -> str:
    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return host if host == address else f"{host} ({address})"


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _only_on_loopback(port: int) -> bool:
    """Whether a cluster on this machine keeps to loopback; Ray takes 127.0.0.1 for this machine's other address."""
    from ray.util import get_node_ip_address

    try:
        with socket.create_connection((get_node_ip_address(), port), timeout=CONNECT_S):
            return False
    except OSError:
        return True


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started within binds to loopback only; without this it turns 127.0.0.1 into the machine's address
    and listens on all of them. The variable is for processes that Ray starts, the constant is what it made of it here.
    """
    from ray._private import ray_constants

    before = os.environ.get(IN_NO_NETWORK), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[IN_NO_NETWORK], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        os.environ.pop(IN_NO_NETWORK)
        if before[0] is not None:
            os.environ[IN_NO_NETWORK] = before[0]


@contextmanager
def _own_process_group() -> Iterator[None]:
    """Processes started within are of another group than ours.

    A SIGTERM to our whole group (`timeout`, `kill -- -PGID`, some schedulers) would end Ray before the trials could
    write their checkpoints. The group is made by a helper, since a group's leader cannot leave it for a new one.
    """
    before = os.getpgrp()
    # cat ends with the pipe, so also where we are killed
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0) as helper:
        try:
            with suppress(OSError):  # a session's leader must stay; then Ray shares its group
                os.setpgid(0, helper.pid)
            yield
        finally:
            with suppress(OSError):
                os.setpgid(0, before)
            helper.kill()
