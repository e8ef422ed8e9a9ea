"""Sweeps on a Ray cluster: real nodes on this machine, on loopback. One is killed, one added, one not fit.

Workers of trials stop themselves at a gate (tests/ray_nodes.py), so that nothing that is done to them comes too late.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.errors import ConfigError
from sweep import cluster, submit
from sweep.run import main
from sweep.wait_for_nodes import main as wait_for_nodes
from tests.faults import SWEEP_S, driver, rows_of, table_of, write_spec
from tests.inline import sweep
from tests.ray_nodes import Gate, RayNodes, wait_for
from tests.sweeping import TINY_TRAINER

pytestmark = pytest.mark.xdist_group("cluster")  # they share one
ROOT = Path(__file__).resolve().parents[1]
# what a trial is given depends on its number alone, so that a disturbed sweep has the rows of an undisturbed one
CONTENT: dict[str, Any] = {
    "method": "random",
    "run_cap": 3,
    "trainer": {**TINY_TRAINER, "epochs": 6},
    "search": {"presets": [], "seed": 3},
}
Rows = dict[str, tuple[bytes, bytes]]
HAS_DASHBOARD = util.find_spec("aiohttp_cors") is not None  # of the extra `cluster`


@pytest.fixture(scope="module")
def client_port() -> int:
    """Where the head's Ray Client listens."""
    return free_port()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def nodes(client_port: int, gate: Gate) -> Iterator[RayNodes]:
    """Three nodes with a core each, and a dashboard where there is one. Tests leave three behind."""
    head: dict[str, Any] = {"ray_client_server_port": client_port}
    if HAS_DASHBOARD:
        head |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
        head |= {"dashboard_agent_listen_port": free_port()}  # else another Ray here may have the agent's port
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with RayNodes(head, [{}, {}], environment={**gate.environment, "PATH": path}) as running:
        assert wait_for_nodes([running.address, "3"]) == 0
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Rows of the sweep where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert sweep(write_spec(folder, **CONTENT), folder / "results").code == 0
    return rows_of(folder / "results")


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses that these processes listen on, as `NAME ADDRESS`."""
    found = set()
    for process in processes:
        try:
            sockets = process.net_connections(kind="tcp")
            found |= {f"{process.name()} {s.laddr.ip}" for s in sockets if s.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def listening_beyond_loopback(processes: list[psutil.Process]) -> set[str]:
    found = listening(processes)
    assert found, "something listens"
    return {name for name in found if name.rpartition(" ")[2] not in LOOPBACK}


# --- a Ray of our own ----------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_ray_of_our_own_listens_on_loopback_only_and_strangers_need_a_token() -> None:
    with cluster.named("local"), cluster.ray_cluster():
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        (gcs,) = [process for process in family if process.name() == "gcs_server"]
        assert "raylet" in {process.name() for process in family}
        assert listening_beyond_loopback(family) == set()
        port = next(s.laddr.port for s in gcs.net_connections(kind="tcp") if s.status == psutil.CONN_LISTEN)
        ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"127.0.0.1:{port}"]
        stranger = os.environ | {"RAY_AUTH_MODE": "disabled", cluster.IN_NO_NETWORK: "0"}
        answer = subprocess.run(ask, env=stranger, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "AuthenticationError" in answer.stderr


# --- a cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
def test_an_added_node_takes_the_trial_of_a_killed_one_and_all_rows_are_those_of_an_undisturbed_sweep(
    tmp_path: Path, nodes: RayNodes, gate: Gate, client_port: int, undisturbed: Rows
) -> None:
    results = tmp_path / "results"
    gate.shut()
    # the cluster is found by its Ray Client, and joined directly
    with driver(write_spec(tmp_path, **CONTENT), results, "--address", f"ray://127.0.0.1:{client_port}") as started:
        started.until(lambda: len(nodes.at_gate()) == 3, "each node has a trial, past its first epoch")
        assert listening_beyond_loopback([*nodes.family(), *started.below()]) == set()
        gate.open()
        nodes.nodes.pop().kill()
        added = nodes.add()
        started.until(lambda: bool(added.trials()), "the added node has a trial: the others have no room")
        # a node's workers are below its raylet, and that one says its id
        (raylet,) = [process for process in added.family() if process.name() == "raylet"]
        assert any(added.about["node_id"] in word for word in raylet.cmdline())
        nodes.let_go()
        assert started.ended(SWEEP_S) == 0, started.printed
        printed = started.printed
    assert f"joined the Ray cluster {nodes.address}: 3 nodes, 3 CPU, 0 GPU" in printed
    assert "Traceback" not in printed
    assert "NOISE" not in printed
    kept = "".join(file.read_text() for file in (results / "logs").glob("ray-*/worker-*"))
    assert "NOISE of a worker, " in kept
    assert "NOISE of a worker to stderr" in kept
    assert [row["state"] for row in table_of(results)] == ["complete"] * 3
    assert rows_of(results) == undisturbed
    assert wait_for_nodes([nodes.address, "3"]) == 0, "the cluster goes on"
    wait_for(lambda: not nodes.trials(), "the sweep's workers have ended")


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
@pytest.mark.needs("mount", "unshare")
def test_a_node_that_is_not_fit_is_named_with_all_its_faults_before_a_trial_starts(
    tmp_path: Path, nodes: RayNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, packages, elsewhere = tmp_path / "shared", tmp_path / "packages", tmp_path / "spec"
    for folder in (shared / "frames/press", packages / "timm-9.9.9.dist-info", elsewhere):
        folder.mkdir(parents=True)
    (packages / "timm-9.9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 9.9.9\n")
    make_frames(shared / "frames")
    data = {**TINY_TRAINER["data"], "source": "frames", "root": str(shared / "frames")}
    data.pop("synthetic")
    spec = write_spec(elsewhere, **CONTENT | {"trainer": {**TINY_TRAINER, "data": data}, "wandb": {"mode": "auto"}})
    hides = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
    unfit = nodes.add(prefix=hides, environment={"PYTHONPATH": str(packages), "WANDB_MODE": "disabled"})
    try:
        assert wait_for_nodes([nodes.address, "4"]) == 0
        capsys.readouterr()
        code = main([str(spec), "--results", str(shared / "results"), "--address", nodes.address])
        printed = capsys.readouterr()
        assert not nodes.trials()
    finally:
        nodes.nodes.remove(unfit)
        unfit.kill()
    assert code == 2, printed.out
    assert f"the results folder {shared / 'results'} is not the same there" in printed.err
    assert f"{shared / 'frames'} does not exist" in printed.err
    assert "timm is 9.9.9 there and " in printed.err
    assert printed.err.count("node ") >= 3
    assert "W&B is disabled there and" in printed.out
    assert "Traceback" not in printed.out + printed.err
    assert [file.name for file in (shared / "results").iterdir() if file.name != ".driver.lock"] == []


def make_frames(root: Path) -> None:
    from PIL import Image

    for sequence in range(6):
        (root / f"s{sequence}").mkdir()
        for index in range(12):
            Image.new("RGB", (16, 16), (20 * sequence, 20 * index, 99)).save(root / f"s{sequence}/{index:03d}.png")
    (root / "press").rmdir()


# --- a job ---------------------------------------------------------------------------------------------------------

# finds what this process runs with, and installs nothing
PYTHON = f"""#!/bin/bash
case "$*" in
  *sys.prefix*) dirname "$(dirname "$0")" ;;
  *"pip install"*) ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
@pytest.mark.skipif(not HAS_DASHBOARD, reason="jobs need ray[default]: pip install -e '.[cluster]'")
def test_a_job_runs_without_a_checkout_is_stopped_in_order_and_ends_with_the_sweeps_exit_code(
    tmp_path: Path, nodes: RayNodes, gate: Gate, undisturbed: Rows
) -> None:
    environment, key = job_environment(tmp_path), "5ecre7" * 6 + "abcd"
    environment["WANDB_API_KEY"] = key
    spec, results = write_spec(tmp_path, **CONTENT), tmp_path / "results"
    (tmp_path / "env.yaml").write_text("env_vars: {FROM_RUNTIME_ENV: arrived}")
    address = f"http://{nodes.nodes[0].about['dashboard']}"
    words = ["bash", str(ROOT / "scripts/submit.sh"), str(spec), "--address", address, "--results", str(results)]
    words += ["--runtime-env", "env.yaml", "--verbose"]
    output = tmp_path / "output"

    def send(*options: str) -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            return subprocess.Popen([*words, *options], cwd=tmp_path, env=environment, stdout=file, stderr=file)

    gate.shut()
    with send() as first:
        wait_for(lambda: first.poll() is not None or len(nodes.at_gate()) == 3, "three trials under way")
        assert first.poll() is None, output.read_text()
        assert key not in "".join(map(words_of, nodes.family()))
        gate.open()
        stop = re.search(r"stop it: +ray (job stop sweep-.*)", output.read_text())
        assert stop is not None
        ray_job_stop = [sys.executable, "-m", "ray.scripts.scripts", *shlex.split(stop[1])]
        with subprocess.Popen(ray_job_stop, env=environment | {"RAY_AUTH_MODE": "token"}) as stopping:
            wait_for(lambda: (results / ".stop").exists(), "the trials were asked to stop")
            nodes.let_go()
        assert stopping.returncode == 0
    printed = output.read_text()
    assert first.returncode == 1, printed
    assert "is STOPPED" in printed
    assert "stopping: trials write their checkpoints" in printed
    assert "NOISE of a worker, arrived" in printed, "the trials have the job's environment"
    assert key not in printed
    assert len(list((results / "trials").glob("*/checkpoint/last.pt"))) == 3
    assert not list((results / "trials").glob("*/summary.json"))
    wait_for(lambda: not nodes.trials(), "the sweep's workers have ended")
    assert wait_for_nodes([nodes.address, "3", "--limit", "0"]) == 0
    assert send().wait() == 2, output.read_text()
    assert "holds this sweep already" in output.read_text()
    assert send("--resume").wait() == 0, output.read_text()
    assert "best trial: 000" in output.read_text()
    assert rows_of(results) == undisturbed
    found = [file for file in results.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]
    assert found == []


def job_environment(folder: Path) -> dict[str, str]:
    """In which scripts/submit.sh finds what this process runs with."""
    (folder / "env/bin").mkdir(parents=True)
    python = folder / "env/bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CONDA_PREFIX"}
    return environment | {
        "VIRTUAL_ENV": str(folder / "env"),
        "PATH": f"{python.parent}:{environment['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def words_of(process: psutil.Process) -> str:
    """The command and the environment of a process."""
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.Error:
        return ""


BAD_JOBS: dict[str, tuple[list[str], str]] = {
    "no cluster": ([], "name its dashboard: --address http://HEAD:8265"),
    "the head's port": (["--address", "head:6379"], "jobs are sent to the cluster's dashboard"),
    "no results": (["--address", "http://h:8265"], "no place for the results is given"),
    "relative results": (["--address", "http://h:8265", "--results", "out"], "--results out is a relative path"),
    "relative data": (
        ["--address", "http://h:8265", "--results", "/r", "--set", "trainer.data.store_dir=frames"],
        "tiny.yaml: trainer.data.store_dir: a relative path",
    ),
    "a bad spec": (
        ["--address", "http://h:8265", "--results", "/r", "--set", "trainer.epoch=3"],
        "did you mean 'trainer.epochs'?",
    ),
    "a secret": (
        ["--address", "http://h:8265", "--results", "/r", "--runtime-env", "env.yaml"],
        "env.yaml: env_vars.WANDB_API_KEY looks like a secret",
    ),
    "nobody there": (["--address", "http://127.0.0.1:9", "--results", "/r"], "did not take the job"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_job_that_cannot_work_is_not_sent(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = BAD_JOBS[case]
    if case == "nobody there" and not HAS_DASHBOARD:
        pytest.skip("jobs need ray[default]")
    monkeypatch.chdir(tmp_path)
    for name in submit.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "env.yaml").write_text("env_vars: {WANDB_API_KEY: abc}")
    write_spec(tmp_path)
    assert submit.main(["tiny.yaml", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head", "must be auto"),
        ("http://head:8265", "use scripts/submit.sh"),
        ("head", "must be auto (the cluster that this machine is in), HOST:PORT"),
        ("head:0", "must be auto"),
        ("head:99999", "must be auto"),
        ("", "must be auto"),
    ],
)
def test_an_address_of_another_form_is_refused_with_what_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, words: str
) -> None:
    results = tmp_path / "results"
    assert (
        main([str(write_spec(tmp_path)), "--results", str(results), "--address", address, "--dry-run", "--no-measure"])
        == 2
    )
    assert words in capsys.readouterr().err
    assert not results.exists()


def test_where_no_cluster_is_the_error_says_so_soon_and_the_folder_stays_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(write_spec(tmp_path)), "--results", str(tmp_path / "results")]
    assert main([*arguments, "--address", "127.0.0.1:9"]) == 2
    assert "nothing can be reached at 127.0.0.1:9 (Connection refused)" in capsys.readouterr().err
    assert main([*arguments, "--dry-run", "--no-measure"]) == 0


@pytest.mark.ray
@pytest.mark.xdist_group("cluster")
def test_a_wrong_token_and_a_wrong_port_are_told_apart(nodes: RayNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(address: str) -> str:
        with cluster.named(address), pytest.raises(ConfigError) as caught, cluster.ray_cluster():
            pass
        return str(caught.value)

    (raylet,) = [process for process in nodes.nodes[0].family() if process.name() == "raylet"]
    port = next(s.laddr.port for s in raylet.net_connections(kind="tcp") if s.status == psutil.CONN_LISTEN)
    assert "a service that is not the head of a Ray cluster answers there" in refusal(f"127.0.0.1:{port}")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert "it wants another token than the one here" in refusal(nodes.address)


FIRST_TOO_SLOW = """
import pathlib, sys
tried = pathlib.Path({tried!r})
tried.write_text(tried.read_text() + "x" if tried.exists() else "x")
sys.exit("RuntimeError: " + {said!r}) if len(tried.read_text()) <= {times} else print("10.0.0.1:6379")
"""


@pytest.mark.process
@pytest.mark.parametrize("why", [cluster.CLIENT_TOO_SLOW, cluster.CLIENT_DIED])
@pytest.mark.parametrize(("times", "found"), [(2, True), (9, False)])
def test_a_busy_head_whose_ray_client_is_not_ready_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, found: bool, why: str
) -> None:
    tried = tmp_path / "tried"
    script = FIRST_TOO_SLOW.format(tried=str(tried), said=f"{why}. See a log.", times=times)
    monkeypatch.setattr(cluster, "ASK_CLIENT", script)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"ray://127.0.0.1:{listening.getsockname()[1]}"
        if found:
            assert cluster._head(address) == ("10.0.0.1", 6379)
        else:
            with pytest.raises(ConfigError, match=f"{address}: .* {why}"):
                cluster._head(address)
    assert tried.read_text() == "xxx"


def test_an_address_holds_for_its_command_and_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "job:6379")
    for given, meant in {"other:1": "other:1", "auto": "job:6379", "local": None, None: "job:6379"}.items():
        with cluster.named(given):
            assert os.environ.get("RAY_ADDRESS") == meant
        assert os.environ["RAY_ADDRESS"] == "job:6379"


def test_a_scheduler_may_start_a_sweep_that_has_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(write_spec(tmp_path)), "--results", str(tmp_path / "results"), "--dry-run", "--no-measure"]
    assert main([*arguments, "--resume-or-start"]) == 0
    assert main([*arguments, "--resume"]) == 2
    assert "start it without --resume" in capsys.readouterr().err
