"""Ray nodes on this machine, on loopback only: each is a process of its own, whose descendants are all that it runs.

`with RayNodes(head={"num_cpus": 1}, ...) as nodes` starts a cluster; nodes are added, and killed as by a power cut.
Several nodes share the address 127.0.0.1, as in Ray's own tests; what tells them apart is their id.

`Gate` stops each worker in the middle of its first trial, until `RayNodes.let_go`: a test has all the time it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 240
TRIAL = "Trainable"  # in the title of a worker that has a trial
# of every Python process of the nodes: a worker prints something when it takes its first trial, and stops itself when
# it looks for the third time whether the trial is still its own: that is behind the first epoch
SITE = """
import os, signal, sys
looks = 0
def see(event, arguments):
    global looks
    if event == "import" and arguments[0] == "sweep.trial":
        print("NOISE of a worker,", os.environ.get("FROM_RUNTIME_ENV"))
        print("NOISE of a worker to stderr", file=sys.stderr)
    elif event == "open" and str(arguments[0]).endswith("/.owner") and os.path.exists(os.environ["GATE"]):
        looks += 1
        if looks == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
if any("default_worker" in word for word in sys.orig_argv):
    sys.addaudithook(see)
"""
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for: this machine is in no network
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, f"waited {LIMIT_S} s for {what}"
        time.sleep(0.1)


class Gate:
    """Where workers stop themselves. `environment` is for the nodes."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(SITE)
        self._file = folder / "shut"
        self.environment = {"PYTHONPATH": str(folder), "GATE": str(self._file)}

    def shut(self) -> None:
        self._file.touch()

    def open(self) -> None:
        """For those that come; those that stand there go on by `RayNodes.let_go`."""
        self._file.unlink()


@dataclass
class RayNode:
    """A node that runs: its process, and what it said of itself (`address`, `node_id`, `dashboard`)."""

    process: subprocess.Popen[str]
    about: dict[str, Any]

    def family(self) -> list[psutil.Process]:
        """Its process and all below, workers and their services included."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def trials(self) -> list[psutil.Process]:
        """Workers that have a trial."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):
                if TRIAL in "".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL to all at once: nothing of it says goodbye."""
        family = self.family()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=LIMIT_S)
        self.process.wait(timeout=LIMIT_S)


@dataclass
class RayNodes:
    """A cluster on loopback with token authentication.

    Args:
        head: parameters of the head node, as `ray._private.parameter.RayParams` takes them.
        others: those of the other nodes.
        environment: variables of the nodes' processes beside ours.
    """

    head: dict[str, Any]
    others: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[RayNode] = field(default_factory=list)
    _folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="ray-"))  # short: it is in names of sockets

    def __enter__(self) -> RayNodes:
        try:
            self._start({"head": True, "temp_dir": self._folder, **self.head})
            for other in self.others:
                self.add(**other)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self.nodes[0].about["address"])

    def add(
        self, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None, **parameters: Any
    ) -> RayNode:
        """Start one more node; returns it when it runs.

        Args:
            prefix: a command that runs the rest of its arguments, such as `unshare`.
            environment: its own variables.
        """
        return self._start({"gcs_address": self.address, **parameters}, prefix, environment or {})

    def end(self) -> None:
        """Kill what is left, the head last."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def family(self) -> list[psutil.Process]:
        """All processes of all nodes."""
        return [member for node in self.nodes for member in node.family()]

    def trials(self) -> list[psutil.Process]:
        """Workers of all nodes that have a trial."""
        return [worker for node in self.nodes for worker in node.trials()]

    def at_gate(self) -> list[psutil.Process]:
        """Those of them that have stopped themselves."""
        found = []
        for worker in self.trials():
            with suppress(psutil.Error):
                if worker.status() == psutil.STATUS_STOPPED:
                    found.append(worker)
        return found

    def let_go(self) -> None:
        """Those at the gate go on."""
        for worker in self.at_gate():
            worker.send_signal(signal.SIGCONT)

    def _start(
        self,
        parameters: dict[str, Any],
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> RayNode:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.ray_nodes", json.dumps(parameters)],
            cwd=ROOT,
            env=os.environ | LOOPBACK | self.environment | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert process.stdout is not None
        node = RayNode(process, {})
        self.nodes.append(node)
        for line in process.stdout:
            if line.startswith("{"):
                node.about = json.loads(line)
                return node
        raise RuntimeError(f"the node ended with code {process.wait()}")


def main(text: str) -> None:
    """Be a node until stdin is closed."""
    import ray  # noqa: F401  # sets up what the next ones need
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    given: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": 0,
        "object_store_memory": 80_000_000,
        "min_worker_port": 0,
        "max_worker_port": 0,
        "include_dashboard": False,
        **json.loads(text),
    }
    ensure_token_if_auth_enabled({}, create_token_if_missing=True)
    head = given.pop("head", False)
    if not head:
        given |= {"include_log_monitor": False, "node_manager_port": 0, "dashboard_agent_listen_port": None}
    parameters = RayParams(**given)
    node = Node(parameters, head=head, shutdown_at_exit=True, spawn_reaper=False)
    if head:  # where its jobs look for it; not in Ray's own folder, where others on this machine would find it
        write_ray_address(node.gcs_address, given["temp_dir"])
    about = {"address": node.gcs_address, "node_id": node.node_id, "dashboard": node.webui_url}
    print(json.dumps(about), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
