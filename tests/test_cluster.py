"""Sweeps on a Ray cluster: real nodes on this machine, on loopback. One is killed, one added, one not fit."""

from __future__ import annotations

import os
import shutil
import signal
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
from tests.faults import SWEEP_S, driver, rows_of, write_spec
from tests.ray_nodes import RayNodes
from tests.sweeping import TINY_TRAINER
from tests.test_run import LIMIT_S, sweep, table, wait_for

slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(900)  # the first test of a worker also waits for what all share
ROOT = Path(__file__).resolve().parents[1]
TRIAL = "Trainable"  # in the title of a worker that has a trial
# what a trial is given depends on its number alone, so that a disturbed sweep has the rows of an undisturbed one
CONTENT: dict[str, Any] = {
    "method": "random",
    "run_cap": 3,
    "trainer": {**TINY_TRAINER, "epochs": 40},
    "search": {"presets": [], "seed": 3},
}


@pytest.fixture(scope="module")
def client_port() -> int:
    """Where the head's Ray Client listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def nodes(client_port: int) -> Iterator[RayNodes]:
    """Three nodes with a core each. Tests leave three behind."""
    with RayNodes({"ray_client_server_port": client_port}, [{}, {}]) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """Rows of the sweep on a Ray of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = sweep(write_spec(folder, **CONTENT), folder / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    return rows_of(folder / "results")


def trials_on(nodes: RayNodes) -> list[psutil.Process]:
    """Workers that have a trial."""
    found = []
    for process in nodes.family():
        try:
            if TRIAL in "".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


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


# --- a Ray of our own ----------------------------------------------------------------------------------------------


@slow
def test_nothing_that_a_sweep_starts_listens_beyond_loopback_and_strangers_need_a_token(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **CONTENT | {"run_cap": 1, "trainer": {**TINY_TRAINER, "epochs": 5000}})
    with driver(spec, tmp_path / "results") as started:
        started.until_epoch("0000", 2)
        family = [psutil.Process(started.process.pid), *started.below()]
        found = listening(family)
        (gcs,) = [process for process in family if process.name() == "gcs_server"]
        port = next(s.laddr.port for s in gcs.net_connections(kind="tcp") if s.status == psutil.CONN_LISTEN)
        ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"127.0.0.1:{port}"]
        stranger = os.environ | {"RAY_AUTH_MODE": "disabled", cluster.IN_NO_NETWORK: "0"}
        answer = subprocess.run(ask, env=stranger, capture_output=True, text=True, timeout=60, check=False)
        started.process.send_signal(signal.SIGINT)
        assert started.ended(60) == 130, started.printed
    assert {name.partition(" ")[0] for name in found} >= {"gcs_server", "raylet"}
    assert {name for name in found if name.rpartition(" ")[2] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()
    assert answer.returncode != 0
    assert "AuthenticationError" in answer.stderr


# --- a cluster -----------------------------------------------------------------------------------------------------


@slow
def test_a_node_is_killed_and_one_added_and_the_sweep_ends_with_the_rows_of_an_undisturbed_one(
    tmp_path: Path, nodes: RayNodes, undisturbed: dict[str, tuple[bytes, bytes]]
) -> None:
    results = tmp_path / "results"
    assert wait_for_nodes([nodes.address, "3"]) == 0
    with driver(write_spec(tmp_path, **CONTENT), results, "--address", nodes.address) as started:
        started.until(lambda: len(trials_on(nodes)) >= 2, "two trials run")
        started.until_rows(18)
        busy = [node for node in nodes.nodes[1:] if any(p in node.family() for p in trials_on(nodes))]
        assert busy, "a node beside the head has a trial"
        nodes.nodes.remove(busy[0])
        busy[0].kill()
        nodes.add()
        assert started.ended(SWEEP_S) == 0, started.printed
        printed = started.printed
    assert f"joined the Ray cluster {nodes.address}: 3 nodes, 3 CPU, 0 GPU" in printed
    assert "Traceback" not in printed
    assert [row["state"] for row in table(results)] == ["complete"] * 3
    assert rows_of(results) == undisturbed
    assert wait_for_nodes([nodes.address, "3"]) == 0, "the cluster goes on"
    wait_for(lambda: not trials_on(nodes), "the sweep's workers have ended")


@slow
def test_a_signal_to_the_driver_ends_the_trials_and_leaves_the_cluster(
    tmp_path: Path, nodes: RayNodes, client_port: int, undisturbed: dict[str, tuple[bytes, bytes]]
) -> None:
    results, spec = tmp_path / "results", write_spec(tmp_path, **CONTENT)
    # as a scheduler would start it, each time; the cluster is found by its Ray Client, and joined directly
    again = ["--address", f"ray://127.0.0.1:{client_port}", "--resume-or-start"]
    with driver(spec, results, *again) as started:
        started.until_rows(18)
        started.process.send_signal(signal.SIGTERM)
        assert started.ended(60) == 130, started.printed
        assert "--resume" in started.printed
    wait_for(lambda: not trials_on(nodes), "the sweep's workers have ended")
    assert wait_for_nodes([nodes.address, "3", "--limit", "0"]) == 0
    assert list((results / "trials").glob("*/checkpoint/last.pt")), "a trial left a checkpoint"
    done = sweep(spec, results, *again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(results) == undisturbed


@slow
def test_when_the_head_of_a_cluster_is_gone_the_driver_says_so_and_ends(tmp_path: Path) -> None:
    content = CONTENT | {"run_cap": 1, "trainer": {**TINY_TRAINER, "epochs": 5000}}
    with (
        RayNodes({"num_cpus": 1}) as alone,
        driver(write_spec(tmp_path, **content), tmp_path / "results", "--address", alone.address) as started,
    ):
        started.until_epoch("0000", 2)
        (gcs,) = [process for process in alone.family() if process.name() == "gcs_server"]
        gcs.kill()
        assert started.ended() == 3, started.printed
        printed = started.printed
    assert f"the head of the Ray cluster, {alone.nodes[0].about['address']}, does not answer; waiting 50 s" in printed
    assert "is gone; all that finished is kept; go on with the same command and --resume" in printed
    assert "Traceback" not in printed


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@slow
@pytest.mark.skipif(not may_mount(), reason="a node with other disks needs a mount namespace")
def test_a_node_that_is_not_fit_is_named_with_all_its_faults_before_a_trial_starts(tmp_path: Path) -> None:
    shared, packages, elsewhere = tmp_path / "shared", tmp_path / "packages", tmp_path / "spec"
    for folder in (shared / "frames/press", packages / "timm-9.9.9.dist-info", elsewhere):
        folder.mkdir(parents=True)
    (packages / "timm-9.9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 9.9.9\n")
    make_frames(shared / "frames")
    data = {**TINY_TRAINER["data"], "source": "frames", "root": str(shared / "frames")}
    data.pop("synthetic")
    spec = write_spec(elsewhere, **CONTENT | {"trainer": {**TINY_TRAINER, "data": data}, "wandb": {"mode": "auto"}})
    hides = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
    with RayNodes({"num_cpus": 0}) as nodes:
        nodes.add(prefix=hides, environment={"PYTHONPATH": str(packages), "WANDB_MODE": "disabled"})
        assert wait_for_nodes([nodes.address, "2"]) == 0
        done = sweep(spec, shared / "results", "--address", nodes.address)
        assert not trials_on(nodes)
    assert done.returncode == 2, done.stdout
    assert f"the results folder {shared / 'results'} is not the same there" in done.stderr
    assert f"{shared / 'frames'} does not exist" in done.stderr
    assert "timm is 9.9.9 there and " in done.stderr
    assert done.stderr.count("node ") >= 3
    assert "W&B is disabled there and" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [file.name for file in (shared / "results").iterdir() if file.name != ".driver.lock"] == []


def make_frames(root: Path) -> None:
    from PIL import Image

    for sequence in range(6):
        (root / f"s{sequence}").mkdir()
        for index in range(12):
            Image.new("RGB", (16, 16), (20 * sequence, 20 * index, 99)).save(root / f"s{sequence}/{index:03d}.png")
    (root / "press").rmdir()


# --- a job ---------------------------------------------------------------------------------------------------------

HAS_DASHBOARD = util.find_spec("aiohttp_cors") is not None
# finds what this process runs with, and installs nothing
PYTHON = f"""#!/bin/bash
case "$*" in
  *sys.prefix*) dirname "$(dirname "$0")" ;;
  *"pip install"*) ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@slow
@pytest.mark.skipif(not HAS_DASHBOARD, reason="jobs need ray[default]")
def test_a_job_runs_the_sweep_without_a_checkout_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    (tmp_path / "env/bin").mkdir(parents=True)
    python = tmp_path / "env/bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CONDA_PREFIX"}
    environment |= {"VIRTUAL_ENV": str(tmp_path / "env"), "PATH": f"{python.parent}:{environment['PATH']}"}
    environment |= {"WANDB_API_KEY": "5ecre7" * 6 + "abcd", "PYTHONPATH": str(ROOT)}
    spec, results = write_spec(tmp_path, run_cap=1), tmp_path / "results"
    with socket.create_server(("127.0.0.1", 0)) as free:  # else another Ray here may have the agent's port
        agent = free.getsockname()[1]
    head = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0, "num_cpus": 1}
    head |= {"dashboard_agent_listen_port": agent}
    clean = {"PYTHONPATH": "", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with RayNodes(head, environment=clean) as nodes:
        address = f"http://{nodes.nodes[0].about['dashboard']}"
        submitted = ["bash", str(ROOT / "scripts/submit.sh"), str(spec), "--address", address]
        submitted += ["--results", str(results)]

        def send(*options: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*submitted, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S
            )

        done = send()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "best trial: 0000" in done.stdout
        assert "stop it:   ray job stop sweep-" in done.stdout
        assert [row["state"] for row in table(results)] == ["complete"]
        again = send()
        assert again.returncode == 2, again.stdout + again.stderr
        assert "holds this sweep already" in again.stdout
        assert environment["WANDB_API_KEY"] not in done.stdout + again.stdout
        beyond = {name for name in listening(nodes.family()) if "127.0.0.1" not in name}
        assert beyond == set()


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


@slow
def test_where_no_cluster_is_the_error_says_so_soon_and_the_folder_stays_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(write_spec(tmp_path)), "--results", str(tmp_path / "results")]
    assert main([*arguments, "--address", "127.0.0.1:9"]) == 2
    assert "nothing can be reached at 127.0.0.1:9 (Connection refused)" in capsys.readouterr().err
    assert main([*arguments, "--dry-run", "--no-measure"]) == 0


@slow
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


@pytest.mark.parametrize(("times", "found"), [(2, True), (9, False)])
def test_a_busy_head_whose_ray_client_is_too_slow_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, found: bool
) -> None:
    tried = tmp_path / "tried"
    script = FIRST_TOO_SLOW.format(tried=str(tried), said=f"{cluster.CLIENT_TOO_SLOW}. See a log.", times=times)
    monkeypatch.setattr(cluster, "ASK_CLIENT", script)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"ray://127.0.0.1:{listening.getsockname()[1]}"
        if found:
            assert cluster._head(address) == ("10.0.0.1", 6379)
        else:
            with pytest.raises(ConfigError, match=f"{address}: .* {cluster.CLIENT_TOO_SLOW}"):
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
