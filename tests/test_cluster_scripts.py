"""The scripts for Kubernetes and Slurm, as far as they go without either: schema, syntax, and a run with stand-ins."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sweep.run_command import parser

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.process  # bash, and stand-ins for Slurm's commands
CLUSTER = ROOT / "scripts/cluster"
LIMIT_S = 240.0


@pytest.mark.parametrize("script", ["scripts/cluster/ray.sbatch", "scripts/cluster/agents.sbatch", "scripts/submit.sh"])
def test_scripts_have_no_syntax_error(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], capture_output=True, check=True).stderr == b""


# --- Kubernetes

QUANTITY = {"type": "string", "pattern": r"^[0-9.]+(m|[KMGTP]i?)?$"}
RESOURCES = {"type": "object", "additionalProperties": QUANTITY}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def thing(required: list[str], **properties: Any) -> dict[str, Any]:
    """A JSON schema of an object that has no other fields than these."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


CONTAINER = thing(
    ["name", "image", "resources"],
    name={"type": "string"},
    image={"type": "string"},
    resources=thing(["limits", "requests"], limits=RESOURCES, requests=RESOURCES),
    env={
        "type": "array",
        "items": thing(
            ["name"],
            name={"type": "string"},
            value={"type": "string"},
            valueFrom=thing(
                ["secretKeyRef"],
                secretKeyRef=thing(
                    ["name", "key"], name={"type": "string"}, key={"type": "string"}, optional={"type": "boolean"}
                ),
            ),
        ),
    },
    lifecycle=thing(
        [], preStop=thing(["exec"], exec=thing(["command"], command={"type": "array", "items": {"type": "string"}}))
    ),
    volumeMounts={
        "type": "array",
        "items": thing(["name", "mountPath"], name={"type": "string"}, mountPath={"type": "string"}),
    },
)
POD = thing(
    ["spec"],
    spec=thing(
        ["containers"],
        terminationGracePeriodSeconds={"type": "integer"},
        containers={"type": "array", "minItems": 1, "items": CONTAINER},
        volumes={
            "type": "array",
            "items": thing(
                ["name", "persistentVolumeClaim"],
                name={"type": "string"},
                persistentVolumeClaim=thing(["claimName"], claimName={"type": "string"}),
            ),
        },
    ),
)
# the part of KubeRay's custom resource (ray.io/v1, RayJobSpec and RayClusterSpec) that the manifest uses
RAY_JOB = thing(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=thing([], generateName={"type": "string", "pattern": "^[a-z][a-z0-9-]*$"}),
    spec=thing(
        ["entrypoint", "rayClusterSpec"],
        entrypoint={"type": "string"},
        backoffLimit={"type": "integer", "minimum": 0},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        runtimeEnvYAML={"type": "string"},
        rayClusterSpec=thing(
            ["headGroupSpec"],
            rayVersion={"type": "string"},
            authOptions=thing([], mode={"enum": ["disabled", "token"]}),
            headGroupSpec=thing(["rayStartParams", "template"], rayStartParams=STRINGS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": thing(
                    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName={"type": "string"},
                    replicas={"type": "integer"},
                    minReplicas={"type": "integer"},
                    maxReplicas={"type": "integer"},
                    rayStartParams=STRINGS,
                    template=POD,
                ),
            },
        ),
    ),
)


@pytest.fixture
def manifest() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))
    return content


def test_the_manifest_has_the_fields_of_a_ray_job_and_no_others(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, RAY_JOB)


def test_the_manifests_command_is_one_of_ours_and_goes_on_after_a_retry(manifest: dict[str, Any]) -> None:
    python, m, module, *rest = shlex.split(manifest["spec"]["entrypoint"])
    assert (python, m, module) == ("python", "-m", "sweep.run")
    options = parser().parse_args(rest)
    assert options.resume_or_start
    assert manifest["spec"]["backoffLimit"] > 0
    assert (ROOT / "sweeps" / options.spec.name).exists()


def test_results_and_frames_lie_on_what_all_pods_share_and_secrets_in_no_job(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    options = parser().parse_args(shlex.split(manifest["spec"]["entrypoint"])[3:])
    for pod in pods:
        (container,) = pod["template"]["spec"]["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        claims = [volume["name"] for volume in pod["template"]["spec"]["volumes"]]
        assert [mounted[name] for name in claims] == ["/shared"]
        assert options.results.startswith("/shared/")
        variables = {variable["name"]: variable for variable in container["env"]}
        assert variables["TACTILE_SWEEP_STORE"]["value"].startswith("/shared/")
        assert "value" not in variables["WANDB_API_KEY"]
    assert "KEY" not in manifest["spec"]["runtimeEnvYAML"]


# --- Slurm

STAND_INS = {
    "srun": 'echo "srun $*" >> "$LOG"; trap "exit 0" TERM; while kill -0 "$PPID"; do sleep 0.1; done',
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" != show ] || printf "node1\\nnode2\\nnode3\\n"',
    "squeue": 'echo "${STATE:-RUNNING}"',
    # sweep.run waits for SIGTERM where it is told to, and then ends as the real one does
    "python": f"""
        echo "python $*" >> "$LOG"
        case "$*" in
          -c*) exec {sys.executable} "$@" ;;
          *sweep.wait_for_nodes*)
            ls -l "$RAY_AUTH_TOKEN_PATH" >> "$LOG"; echo "mode $RAY_AUTH_MODE" >> "$LOG"; exit "${{NODES:-0}}" ;;
          *--dry-run*) exit "${{DRY:-0}}" ;;
        esac
        echo begun >> "$LOG"
        [ -n "${{WAITS:-}}" ] || exit 0
        trap 'echo "driver: TERM" >> "$LOG"; exit 130' TERM
        while kill -0 "$PPID"; do sleep 0.1; done""",
}


class Slurm:
    """A folder in which ray.sbatch runs with stand-ins for Slurm's commands and for Python."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RAY"))}
        environment |= {
            "PATH": f"{self.folder / 'bin'}:{environment['PATH']}",
            "LOG": str(self.log),
            "VIRTUAL_ENV": "/somewhere",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_CPUS_PER_TASK": "8",
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(CLUSTER / "ray.sbatch"), "spec.yaml", *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def run(self, *options: str, **variables: str) -> tuple[int, str]:
        with self.start(*options, **variables) as script:
            printed = script.communicate(timeout=LIMIT_S)[0]
        return script.returncode, printed

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str) -> None:
        give_up = time.monotonic() + LIMIT_S
        while text not in self.logged():
            assert time.monotonic() < give_up, f"no {text!r} in:\n{self.logged()}"
            time.sleep(0.05)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_a_slurm_job_starts_a_head_the_other_nodes_and_the_sweep(slurm: Slurm) -> None:
    code, printed = slurm.run("--results", "/shared/r")
    assert code == 0, printed
    logged = slurm.logged()
    head = "srun --nodes=1 --ntasks=1 --nodelist=node1 --cpus-per-task=8 ray start --head --port=22345"
    others = "srun --nodes=2 --ntasks=2 --exclude=node1 --cpus-per-task=8 ray start --address=node1:22345"
    assert head in logged
    assert others in logged
    assert "python -m sweep.wait_for_nodes node1:22345 3" in logged
    ours = "python -m sweep.run spec.yaml --address node1:22345 --resume-or-start --results /shared/r"
    assert f"{ours}\n" in logged
    for line in logged.splitlines():
        if line.startswith("python -m sweep.run"):
            parser().parse_args(line.split()[3:])
    assert "scontrol requeue" not in logged


def test_its_token_is_for_its_owner_only_on_no_command_line_and_gone_at_the_end(slurm: Slurm) -> None:
    assert slurm.run()[0] == 0
    assert "mode token" in slurm.logged()
    (listed,) = [line for line in slurm.logged().splitlines() if line.startswith("-")]
    assert listed.startswith("-rw-------")
    assert not list(slurm.folder.glob(".ray-token*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_driver_and_the_job_is_queued_again(slurm: Slurm, number: signal.Signals) -> None:
    with slurm.start(WAITS="1") as script:
        slurm.wait_for("begun")
        script.send_signal(number)
        printed = script.communicate(timeout=LIMIT_S)[0]
    assert script.returncode == 130, printed
    assert slurm.logged().count("driver: TERM") == 1
    assert "scontrol requeue 12345" in slurm.logged()
    assert "goes to the queue again" in printed


def test_a_job_that_was_cancelled_is_not_queued_again(slurm: Slurm) -> None:
    with slurm.start(WAITS="1", STATE="CANCELLED") as script:
        slurm.wait_for("begun")
        script.terminate()
        printed = script.communicate(timeout=LIMIT_S)[0]
    assert "is not queued again: the job's state is CANCELLED" in printed
    assert "requeue" not in slurm.logged()


@pytest.mark.parametrize(("variables", "code"), [({"DRY": "2"}, 2), ({"NODES": "2"}, 1)])
def test_a_bad_spec_or_missing_nodes_end_the_job_before_the_sweep(
    slurm: Slurm, variables: dict[str, str], code: int
) -> None:
    assert slurm.run(**variables)[0] == code
    assert "begun" not in slurm.logged()
    assert not list(slurm.folder.glob(".ray-token*"))


def test_without_a_spec_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run(["bash", CLUSTER / "ray.sbatch"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "give the spec: sbatch" in done.stderr
