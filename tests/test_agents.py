"""Several agents on one machine: the real `wandb agent`, supervised, against the double of the server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from agents import KEY, LONG, REPOSITORY, Place, ended, place_of, trial_of, wait_until
from double_sweeps import grid
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from wandb_double import WandbDouble

from model.errors import ConfigError
from model.sinks import read_csv
from sweep import agents, shared_service, supervisor
from sweep.agent_log import LogReader
from sweep.agents import main, number_of_agents, sweep_path, trials_of
from sweep.resources import Resources
from sweep.spec import load_spec
from sweep.supervisor import Place as AgentPlace
from sweep.supervisor import Supervisor
from sweep.trial_command import NamedTrial, named_spec, named_trial
from sweep.trials_folder import TrialsFolder
from sweep.wandb_config import wandb_sweep_config
from tests.sweeping import tiny_content

# W&B's agents wait 5 s between two heartbeats; nothing else of them is changed
FAST = """
import sys
if "wandb" in sys.orig_argv and "agent" in sys.orig_argv:
    from wandb.wandb_agent import Agent
    Agent.POLL_INTERVAL = 0.3
"""
# what a sweep's command may be instead of our trial; a file `<run>.go` ends it
WAITING = """
import os, pathlib, signal, sys, time
mine = pathlib.Path(os.environ["WANDB_RUN_ID"])
def note(number, frame):
    mine.with_suffix(".signal").write_text(str(number))
    if "stubborn" not in sys.argv:
        sys.exit(3)
signal.signal(signal.SIGTERM, note)
mine.with_suffix(".slot").write_text(os.environ["TACTILE_SWEEP_SLOT"])
while not mine.with_suffix(".go").exists():
    time.sleep(0.05)
"""


class Silent(WandbDouble):
    """Does not tell a sweep's config the first time that it is asked for it."""

    asked = 0

    def on_SweepWithRuns(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return {} if self.asked == 1 else super().on_SweepWithRuns(variables)


@pytest.fixture
def place(tmp_path: Path, frame_stores: Path) -> Iterator[Place]:
    """A folder with quick agents; whatever uses the double's address at the end is killed."""
    with WandbDouble() as double, place_of(tmp_path, frame_stores, double) as place:
        (tmp_path / "fast").mkdir()
        (tmp_path / "fast" / "sitecustomize.py").write_text(FAST)
        place.environment["PYTHONPATH"] = f"{tmp_path / 'fast'}{os.pathsep}{REPOSITORY}"
        (place.folder / "waiting.py").write_text(WAITING)
        try:
            yield place
        finally:
            for process in family(place):
                with suppress(psutil.Error):
                    process.kill()


def family(place: Place) -> list[psutil.Process]:
    """All processes of a test, however they lost their parents: they have its server in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or ended
            if process.environ().get("WANDB_BASE_URL") == place.double.url:
                found.append(process)
    return found


def of_kind(place: Place, *words: str) -> list[psutil.Process]:
    """The family's members with these words in their command."""
    found = []
    for process in family(place):
        with suppress(psutil.Error):
            if all(word in process.cmdline() for word in words):
                found.append(process)
    return found


def services(place: Place) -> list[psutil.Process]:
    found = []
    for process in family(place):
        with suppress(psutil.Error):
            if process.name() == "wandb-core":
                found.append(process)
    return found


def register(place: Place, spec: Path) -> str:
    """A sweep of our trial, nothing checked or decoded before; returns its id."""
    return registered(place, wandb_sweep_config(load_spec(spec), Path(spec.name)))


def registered(place: Place, config: dict[str, Any]) -> str:
    answer = place.double.on_UpsertSweep({"config": yaml.safe_dump(config)})
    sweep_id: str = answer["upsertSweep"]["sweep"]["name"]
    return sweep_id


def waiting_sweep(place: Place, *words: str, runs: int = 2) -> str:
    """A sweep of runs that wait for their file `<run>.go`."""
    place.double.hand_out(grid(alpha=[(number + 1) / 10 for number in range(runs)]))
    command = ["${env}", "${interpreter}", "waiting.py", *words]
    return registered(place, {"method": "grid", "parameters": {"alpha": {"values": [0.5]}}, "command": command})


def supervise(place: Place, sweep_id: str, *options: str) -> subprocess.Popen[bytes]:
    return place.start("-m", "sweep.agents", place.double.sweeps[sweep_id].path, *options, log="terminal.log")


def terminal(place: Place) -> str:
    return (place.folder / "terminal.log").read_text(encoding="utf-8")


def logs(place: Place, sweep_id: str) -> list[Path]:
    return sorted((place.folder / "results" / f"agents-{sweep_id}").glob("agent-*.log"))


def trains(place: Place, sweep_id: str, run_id: str) -> Callable[[], bool]:
    """Whether the run's trial has trained an epoch."""

    def seen() -> bool:
        return len(place.double.logged(run_id, "objective/value")) > 0

    return seen


# --- agents, runs, a killed agent, a stop


@pytest.mark.slow
def test_two_agents_share_four_runs_one_service_and_one_store(place, tmp_path):
    place.environment["TACTILE_SWEEP_STORE"] = str(tmp_path / "store")
    trainer = tiny_content()["trainer"]
    # some seconds to make
    data = {
        **trainer["data"],
        "image_size": 48,
        "clips_per_epoch": 16,
        "synthetic": {"sequences": 80, "frames": 16},
    }
    spec = place.write_spec(trainer={**trainer, "data": data}, resources={"cpu": 0.25, "max_concurrent": 2})
    sweep_id = register(place, spec)
    process = supervise(place, sweep_id)
    building: set[int] = set()
    built: set[int] = set()
    most_services = 0
    arguments: set[str] = set()

    def all_is_over() -> bool:
        nonlocal most_services
        for path in (tmp_path / "store").glob("*/frames.npy"):
            (building if path.parent.name.endswith(".building") else built).add(path.stat().st_ino)
        for member in family(place):
            with suppress(psutil.Error):  # it has just ended
                arguments.update(member.cmdline())
        most_services = max(most_services, len(services(place)))
        return process.poll() is not None

    wait_until(all_is_over, "the agents have ended", place)
    shown = terminal(place)
    assert process.returncode == 0, shown
    sweep = place.double.sweeps[sweep_id]
    assert [place.double.state(run_id) for run_id in sweep.runs] == ["finished"] * 4
    assert sorted(sweep.handed_out) == sorted(sweep.runs)
    assert {place.double.sweep_of(run_id) for run_id in sweep.runs} == {sweep_id}

    assert len(place.double.agents) == 2
    assert all(agent.told for agent in place.double.agents.values()), "each had a share of the runs"
    for run_id in sweep.runs:
        assert f"run {run_id} began: alpha 0." in shown
        assert f"run {run_id} ended\n" in shown
    results = f"results/tiny-{sweep_id}"
    assert shown.endswith(
        f"all agents have ended, after 4 runs\ntrials: {results}; report: python -m sweep.report {results}\n"
    )

    assert most_services == 1
    assert len(building) == 1, "two trials that start together make one store"
    assert building == built
    assert family(place) == []

    assert KEY not in shown
    assert not any(KEY in argument for argument in arguments)
    for path in place.folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert [path.name for path in logs(place, sweep_id)] == ["agent-0.log", "agent-1.log"]


@pytest.mark.slow
def test_a_killed_agent_is_replaced_and_its_run_goes_on_from_a_checkpoint(place):
    place.double.hand_out(grid(alpha=[0.3], base_lr=[0.02]))
    sweep_id = register(place, place.write_spec(trainer=LONG))
    process = supervise(place, sweep_id, "-n", "1")
    run_id = f"{sweep_id}-run0"
    wait_until(trains(place, sweep_id, run_id), "the trial trains", place)
    (agent,) = of_kind(place, "agent", "--forward-signals")
    agent.kill()
    assert ended(process, place) == 0, place.output()
    assert place.double.sweeps[sweep_id].handed_out == [run_id, run_id], "W&B heard of the preemption"
    assert place.double.starts[run_id] == 2
    assert place.double.state(run_id) == "finished"
    rows = read_csv(trial_of(place.results(sweep_id), run_id) / "epoch.csv")
    assert [row["epoch"] for row in rows] == list(range(LONG["epochs"]))
    shown = terminal(place)
    assert "agent 0: died (killed by signal 9); it is started again in 2 s" in shown
    assert "agent 0: started again" in shown
    assert "interrupted in epoch" in logs(place, sweep_id)[0].read_text()
    assert family(place) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_checkpoints_and_no_process(place, number):
    place.double.hand_out(grid(alpha=[0.3, 0.6], base_lr=[0.02]))
    sweep_id = register(place, place.write_spec(trainer={**LONG, "epochs": 1000}))
    process = supervise(place, sweep_id, "-n", "2")
    runs = [f"{sweep_id}-run{index}" for index in range(2)]
    for run_id in runs:
        wait_until(trains(place, sweep_id, run_id), "both trials train", place)
    assert len(services(place)) == 1
    os.killpg(process.pid, number)  # as a terminal does: to all of the group
    assert ended(process, place) == 130, place.output()
    assert [place.double.state(run_id) for run_id in runs] == ["preempted"] * 2
    for run_id in runs:
        assert (trial_of(place.results(sweep_id), run_id) / "checkpoint" / "last.pt").exists()
    assert family(place) == []
    assert "\nstopped after 0 runs\n" in terminal(place)


@pytest.mark.slow
def test_when_the_supervisor_is_killed_the_trials_leave_checkpoints_and_end(place):
    place.double.hand_out(grid(alpha=[0.3], base_lr=[0.02]))
    sweep_id = register(place, place.write_spec(trainer={**LONG, "epochs": 1000}))
    process = supervise(place, sweep_id, "-n", "1")
    run_id = f"{sweep_id}-run0"
    wait_until(trains(place, sweep_id, run_id), "the trial trains", place)
    process.kill()
    wait_until(lambda: of_kind(place, "sweep.trial") + of_kind(place, "wandb") == [], "all have ended", place)
    assert place.double.state(run_id) == "preempted"
    (service,) = services(place)  # it ends when nobody has come back for some time
    assert service.cmdline()[-2:] == ["--idle-timeout", shared_service.SERVICE_IDLE]


@pytest.mark.slow
def test_a_second_signal_kills_a_trial_that_does_not_end(place):
    sweep_id = waiting_sweep(place, "stubborn")
    process = supervise(place, sweep_id, "-n", "2")
    marks = [place.folder / f"{sweep_id}-run{index}.slot" for index in range(2)]
    wait_until(lambda: all(mark.exists() for mark in marks), "both runs have begun", place)
    assert sorted(mark.read_text() for mark in marks) == ["0", "1"]
    process.terminate()
    wait_until(lambda: all(mark.with_suffix(".signal").exists() for mark in marks), "it was passed on", place)
    process.terminate()  # Slurm may send SIGTERM twice: this is no second request
    time.sleep(4 * supervisor.POLL_S)
    assert process.poll() is None
    assert len(of_kind(place, "waiting.py")) == 2
    process.send_signal(signal.SIGINT)
    assert ended(process, place, limit_s=20) == 130
    assert family(place) == []


@pytest.mark.slow
def test_agents_of_a_service_that_died_get_another_one(place):
    sweep_id = waiting_sweep(place)
    (place.folder / f"{sweep_id}-run1.go").touch()
    process = supervise(place, sweep_id, "-n", "1")
    first = place.folder / f"{sweep_id}-run0.slot"
    wait_until(first.exists, "the first run has begun", place)
    (service,) = services(place)
    service.kill()
    wait_until(lambda: "another one is started" in terminal(place), "it is noticed", place)
    wait_until(lambda: [new for new in services(place) if new != service], "there is another one", place)
    first.with_suffix(".go").touch()
    assert ended(process, place) == 0, place.output()
    assert place.double.sweeps[sweep_id].handed_out == list(place.double.sweeps[sweep_id].runs)
    assert family(place) == []


@pytest.mark.slow
def test_without_a_shared_service_each_trial_starts_its_own(place, tmp_path):
    place.double.hand_out(grid(alpha=[0.3], base_lr=[0.02]))
    sweep_id = register(place, place.write_spec())
    (tmp_path / "fast" / "sitecustomize.py").write_text(
        FAST + 'if "core" in sys.orig_argv and "start" in sys.orig_argv: sys.exit("no room for it")\n'
    )
    process = supervise(place, sweep_id, "-n", "1")
    assert ended(process, place) == 0, place.output()
    assert "note: no shared W&B service (SystemExit: no room for it); each trial starts its own" in terminal(place)
    assert place.double.state(f"{sweep_id}-run0") == "finished"
    assert family(place) == []


@pytest.mark.slow
def test_an_agent_ends_after_count_runs_and_one_that_was_killed_after_the_rest_of_them(place):
    sweep_id = waiting_sweep(place, runs=9)
    for index in (0, 2, 3):
        (place.folder / f"{sweep_id}-run{index}.go").touch()
    process = supervise(place, sweep_id, "-n", "1", "--count", "3")
    second = place.folder / f"{sweep_id}-run1.slot"
    wait_until(second.exists, "the second run has begun", place)
    (agent,) = of_kind(place, "agent", "--forward-signals")
    agent.kill()
    assert ended(process, place) == 0, place.output()
    assert second.with_suffix(".signal").read_text() == str(int(signal.SIGTERM)), "its run was not left alone"
    assert place.double.sweeps[sweep_id].handed_out == [f"{sweep_id}-run{index}" for index in range(4)]
    assert terminal(place).endswith("all agents have ended, after 3 runs\n")


@pytest.mark.slow
def test_an_agent_whose_runs_all_fail_is_not_started_again_and_the_reason_is_shown(place):
    sweep_id = register(place, place.write_spec())
    place.double.sweeps[sweep_id].config["command"].insert(-1, "--mask_ration=0.5")
    process = supervise(place, sweep_id, "-n", "1")
    assert ended(process, place) == 1, place.output()
    shown = terminal(place)
    assert "did you mean 'mask_ratio'" in shown
    assert "Detected 3 failed runs" in shown
    assert f"see results/agents-{sweep_id}/agent-0.log" in shown
    assert shown.count("started") == 1
    assert "1 did not end well" in shown


@pytest.mark.parametrize("name", ["me/p/nosuch", "nosuch"])
def test_a_sweep_that_the_server_does_not_know_is_one_line_and_exit_code_2(place, name):
    process = place.start("-m", "sweep.agents", name, "-n", "1", log="terminal.log")
    assert ended(process, place) == 2
    assert re.fullmatch(rf"error: {name}: W&B has no such sweep.*\n", terminal(place))
    assert not (place.folder / "results").exists()


@pytest.mark.slow
def test_a_server_that_does_not_tell_the_config_is_a_note_where_the_number_is_given(place, tmp_path, frame_stores):
    (tmp_path / "silent").mkdir()
    with Silent() as double, place_of(tmp_path / "silent", frame_stores, double) as place:
        (place.folder / "waiting.py").write_text(WAITING)
        sweep_id = waiting_sweep(place, runs=1)
        path = double.sweeps[sweep_id].path
        refused = place.run("-m", "sweep.agents", path)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {path}: W&B's server gave an answer without its config; try again")
        assert refused.stderr.count("\n") == 1
        double.asked = 0
        (place.folder / f"{sweep_id}-run0.go").touch()
        process = supervise(place, sweep_id, "-n", "1")
        assert ended(process, place) == 0, place.output()
        assert f"note: {path}: W&B's server gave an answer without its config; the agents are" in terminal(place)
        assert double.sweeps[sweep_id].handed_out == [f"{sweep_id}-run0"]


@pytest.mark.slow
def test_an_agent_that_the_server_does_not_take_is_one_try_and_says_why(place):
    sweep_id = waiting_sweep(place)
    place.double.behaviour_of["CreateAgent"] = "refuse_key"
    process = supervise(place, sweep_id, "-n", "1")
    assert ended(process, place) == 1
    shown = terminal(place)
    assert re.search(r"agent 0: ended \(code 1: .*401", shown)
    assert shown.count("started") == 1


def test_a_spec_that_is_not_here_or_was_changed_is_an_error_before_an_agent_loses_runs_on_it(place):
    spec = place.write_spec()
    sweep_id = register(place, spec)
    path = place.double.sweeps[sweep_id].path
    TrialsFolder(place.results(sweep_id), load_spec(spec)).claim("run", load_spec(spec).trainer)
    place.write_spec(trainer={**tiny_content()["trainer"], "epochs": 17})
    changed = place.run("-m", "sweep.agents", path, "-n", "2")
    assert changed.returncode == 2
    assert "holds a sweep of another spec (trainer.epochs: " in changed.stderr
    assert changed.stderr.endswith(
        "; restore tiny.yaml as it was, or make a new sweep: python -m sweep.agent tiny.yaml --create\n"
    )
    spec.rename(place.folder / "elsewhere.yaml")
    missing = place.run("-m", "sweep.agents", path, "-n", "2", "--spec", "elsewhere.yaml")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: tiny.yaml: no such file here, but the sweep's command names it; start ")
    assert missing.stderr.count("\n") == changed.stderr.count("\n") == 1
    assert place.double.agents == {}


def test_an_agent_that_keeps_dying_is_given_up_after_the_stated_number_of_restarts(monkeypatch, tmp_path, capsys):
    dying = tmp_path / "dying.py"
    log = "2026-01-01 00:00:00,0 - wandb.wandb_agent - INFO - Running runs: []"
    dying.write_text(f"import sys; print({log!r}); print('Error: no memory'); sys.exit(1)")
    monkeypatch.setattr(supervisor, "WANDB", [sys.executable, str(dying)])
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.01)
    assert Supervisor("s", 1, tmp_path, dict(os.environ)).run() == 1
    shown = capsys.readouterr().out
    assert shown.count("agent 0: started") == supervisor.MAX_RESTARTS + 1
    assert "died (code 1: Error: no memory), 4 times in 10 minutes, and is not started again" in shown


@given(st.lists(st.floats(0.01, 500), min_size=5, max_size=30))
def test_no_agent_is_started_again_more_often_than_allowed_in_any_window(tmp_path_factory, gaps):
    place = AgentPlace(0, tmp_path_factory.getbasetemp())
    now, starts = 0.0, []
    for gap in gaps:
        now += gap
        start_at = place.next_start(now)
        if start_at is None:
            window = [start for start in starts if now - start < supervisor.RESTART_WINDOW_S]
            assert len(window) == supervisor.MAX_RESTARTS
        else:
            starts.append(now)
            assert start_at > now
    for first in starts:
        assert sum(first <= start < first + supervisor.RESTART_WINDOW_S for start in starts) <= supervisor.MAX_RESTARTS


# --- Slurm

SBATCH = REPOSITORY / "scripts" / "cluster" / "agents.sbatch"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SAYS = """#!/bin/bash
echo "$(basename "$0") $*" >> "$ASKED"
echo "$STATE"
"""


@pytest.fixture
def slurm(place, tmp_path) -> dict[str, str]:
    """The environment of a task of a job array, with stand-ins for Slurm's commands; what they are asked is kept."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SAYS, "squeue": SAYS}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    place.environment |= {
        "PATH": f"{folder}{os.pathsep}{place.environment['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "SLURM_SUBMIT_DIR": str(place.folder),
        "SLURM_JOB_ID": "4243",
        "SLURM_ARRAY_JOB_ID": "4242",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "ASKED": str(tmp_path / "asked"),
        "STATE": "RUNNING",
    }
    (tmp_path / "asked").touch()
    return place.environment


def start_task(place: Place, environment: dict[str, str], sweep: str) -> subprocess.Popen[bytes]:
    """As Slurm does, from a copy of the script elsewhere."""
    copied = place.folder.parent / "slurm_script"
    copied.write_bytes(SBATCH.read_bytes())
    with (place.folder / "task.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(copied), sweep],
            cwd=place.folder.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    place.started.append(process)
    return process


@pytest.mark.parametrize("script", [SBATCH, REPOSITORY / "scripts" / "agents.sh"])
def test_scripts_are_valid_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


def test_the_job_says_that_it_may_be_queued_again_and_wants_sigterm_before_its_end():
    options = re.findall(r"^#SBATCH (.*)$", SBATCH.read_text(), re.MULTILINE)
    assert "--requeue" in options
    (signal_option,) = [option for option in options if option.startswith("--signal")]
    number, seconds = re.fullmatch(r"--signal=B:(\w+)@(\d+)", signal_option).groups()  # type: ignore[union-attr]
    assert number == "TERM"
    assert float(seconds) >= supervisor.GRACE_S + shared_service.SERVICE_STOP_S


@pytest.mark.slow
@pytest.mark.parametrize(("state", "queued_again"), [("RUNNING", True), ("COMPLETING", False)])
def test_sigterm_to_a_slurm_task_reaches_the_trial_and_the_task_is_queued_again_unless_cancelled(
    place, slurm, state, queued_again
):
    sweep_id = waiting_sweep(place)
    task = start_task(place, slurm | {"STATE": state}, f"me/p/{sweep_id}")
    mark = place.folder / f"{sweep_id}-run0.slot"
    wait_until(mark.exists, "the run has begun", place)
    task.terminate()  # to the script alone, as --signal=B: does
    assert ended(task, place) == 130, place.output()
    assert mark.with_suffix(".signal").read_text() == str(int(signal.SIGTERM))
    asked = Path(slurm["ASKED"]).read_text().splitlines()
    assert asked[0] == "squeue --noheader --jobs 4243 --format %T"
    assert asked[1:] == (["scontrol requeue 4243"] if queued_again else [])
    assert (place.folder / "results" / f"agents-{sweep_id}" / "task-1" / "agent-0.log").exists()
    assert family(place) == []


@pytest.mark.slow
def test_a_slurm_task_whose_step_alone_got_sigterm_is_queued_again(place, slurm):
    sweep_id = waiting_sweep(place)
    task = start_task(place, slurm, f"me/p/{sweep_id}")
    wait_until((place.folder / f"{sweep_id}-run0.slot").exists, "the run has begun", place)
    (supervisor,) = of_kind(place, "sweep.agents")
    supervisor.terminate()
    assert ended(task, place) == 130, place.output()
    assert "scontrol requeue 4243" in Path(slurm["ASKED"]).read_text()


@pytest.mark.slow
def test_a_slurm_task_ends_with_its_sweep(place, slurm):
    sweep_id = waiting_sweep(place, runs=1)
    (place.folder / f"{sweep_id}-run0.go").touch()
    task = start_task(place, slurm, f"me/p/{sweep_id}")
    assert ended(task, place) == 0, place.output()
    assert Path(slurm["ASKED"]).read_text() == ""


def test_a_slurm_task_without_a_sweep_or_with_a_wrong_one_fails(place, slurm):
    for sweep, message in {"": "give the sweep", "a//b": "error: sweep 'a//b'"}.items():
        task = start_task(place, slurm, sweep)
        assert ended(task, place) > 0
        assert message in (place.folder / "task.log").read_text()
        assert Path(slurm["ASKED"]).read_text() == ""


# --- what is asked for


@pytest.mark.parametrize("text", ["abcd1234", "tactile/abcd1234", "me/tactile/abcd1234", "my team/my project/a-b_c"])
def test_a_sweep_is_named_as_wandb_names_it(text):
    assert sweep_path(text) == text


@pytest.mark.parametrize("text", ["", "/", "a//b", "a/b/c/d", "--count", "a b", "a/b/", "x;y", "me/p/a?b"])
def test_another_form_of_a_sweep_is_refused(text):
    with pytest.raises(ConfigError, match="must be SWEEP, PROJECT/SWEEP or ENTITY/PROJECT/SWEEP"):
        sweep_path(text)


def test_a_web_address_is_refused_with_what_was_meant():
    with pytest.raises(ConfigError, match=r"did you mean me/tactile/abcd1234\?"):
        sweep_path("https://wandb.ai/me/tactile/sweeps/abcd1234?nw=x")


NOBODY = "http://127.0.0.1:9"  # nobody listens there
BAD: dict[str, tuple[list[str], dict[str, str], str]] = {
    "no agent": (["a/b", "-n", "0"], {}, "-n 0: must be a whole number from 1 on"),
    "too many agents": (["a/b", "-n", "4000"], {}, "-n 4000: must be at most 512"),
    "a part": (["a/b", "-n", "1.5"], {}, "-n 1.5: must be"),
    "no run": (["a/b", "--count", "0"], {}, "--count 0: must be a whole number from 1 on"),
    "no sweep": (["a//b"], {}, "sweep 'a//b': must be"),
    "no credentials": (["a/b"], {"WANDB_API_KEY": ""}, "no credentials for"),
    "offline": (["a/b"], {"WANDB_MODE": "offline"}, "W&B's sweeps exist online only, but WANDB_MODE says offline"),
    "no spec": (["a/b", "--spec", "nosuch.yaml"], {}, "nosuch.yaml"),
    "no folder": (["a/b", "-n", "1", "--logs", "/dev/null/x"], {}, "choose another folder with --logs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, monkeypatch, tmp_path, capsys):
    words, environ, message = BAD[case]
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": NOBODY, **environ}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" or re.fullmatch(r"note: a/b: W&B's server did not give it: .*; the agents are started .*\n", out)
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert KEY not in err


def test_a_second_supervisor_of_the_same_logs_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with FileLock(tmp_path / ".lock"):
        assert main(["a/b", "-n", "1", "--logs", str(tmp_path)]) == 2
    assert "agents of this sweep are running already" in capsys.readouterr().err


def test_auto_is_as_many_as_fit_and_more_are_noted(monkeypatch, capsys):
    monkeypatch.setattr(agents, "usable_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert number_of_agents("auto", Resources(cpu=3)) == 2
    assert number_of_agents("auto", Resources(cpu=1, gpu=0.5)) == 4
    assert capsys.readouterr().out == ""
    assert number_of_agents("7", Resources(cpu=3)) == 7
    assert "note: 7 agents, but 2 fit: a trial asks for 3 CPU and 0 GPU" in capsys.readouterr().out
    assert number_of_agents("auto", None) == 1
    assert number_of_agents("5", None) == 5


def test_what_cannot_run_here_is_an_error(monkeypatch):
    monkeypatch.setattr(agents, "usable_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match="so none fits"):
        number_of_agents("auto", Resources(cpu=9))
    assert number_of_agents("1", Resources(cpu=9)) == 1
    with pytest.raises(ConfigError, match=r"resources.gpu = 2, but of the GPUs only 0 can be seen here"):
        number_of_agents("1", Resources(gpu=2))


def test_trials_are_those_of_the_spec_in_the_sweeps_command_with_its_overrides(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = Path("tiny.yaml")
    spec.write_text(yaml.safe_dump(tiny_content(resources={"cpu": 2})))
    overrides = ["resources.gpu=0.5", "run_cap=3"]
    config = wandb_sweep_config(load_spec(spec, overrides), spec, overrides, Path("elsewhere"))
    trials = trials_of(config, "abcd1234")
    assert trials is not None
    assert trials.spec.resources == Resources(cpu=2, gpu=0.5)
    assert trials.results == Path("elsewhere")
    plain = trials_of(wandb_sweep_config(load_spec(spec), spec), "abcd1234")
    assert plain is not None
    assert plain.results == Path("results/tiny-abcd1234")
    for foreign in (["${env}", "python", "train.py", "${args}"], ["python", "-m", "sweep.trial"], None):
        assert trials_of({"command": foreign, "program": "train.py"}, "abcd1234") is None
    with pytest.raises(ConfigError, match=r"nosuch\.yaml: no such file here"):
        trials_of({"command": ["python", "-m", "sweep.trial", "nosuch.yaml", "${args}"]}, "abcd1234")


@pytest.mark.parametrize("words", [["--set", "a=1", "--results", "out"], ["--set=a=1", "--results=out"]])
@pytest.mark.parametrize("first", [True, False])
def test_options_of_a_command_are_read_in_both_forms_and_wherever_they_stand(words, first):
    rest = [*words, "s.yaml"] if first else ["s.yaml", *words]
    config = {"command": ["${env}", "python", "-m", "sweep.trial", *rest, "${args}"]}
    assert named_trial(config) == NamedTrial(Path("s.yaml"), ["a=1"], Path("out"))
    assert named_spec(config) == (Path("s.yaml"), ["a=1"])


# --- the log of an agent

AGENTS_WORDS = "2026-11-23 01:49:03,544 - wandb.wandb_agent - INFO - "
LOG = f"""wandb: Starting wandb agent
{AGENTS_WORDS}Running runs: []
{AGENTS_WORDS}Agent received command: run
{AGENTS_WORDS}Agent starting run with config:
\talpha: 0.2512345678
\tbase_lr: 1.23456789e-05
\tbatch_size: 12345678
\tmode: joint
{AGENTS_WORDS}About to run command: /usr/bin/env python -m sweep.trial spec.yaml --alpha=0.25
error: spec.yaml: no such file
{AGENTS_WORDS}Running runs: ['ab12']
wandb: ERROR Find detailed error logs at: debug-cli.log
wandb.sdk.lib.asyncio_manager.AlreadyJoinedError: Cannot schedule tasks after join().
{AGENTS_WORDS}Cleaning up finished run: ab12
"""
NEWS = [
    "run ab12 began: alpha 0.251235, base_lr 1.23457e-05, batch_size 12345678, mode joint",
    "run ab12 ended (error: spec.yaml: no such file)",
]


@given(st.lists(st.integers(0, len(LOG)), max_size=6))
def test_the_log_tells_the_same_in_whatever_pieces_it_arrives(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("log") / "agent-0.log"
    path.write_text(LOG)  # of an earlier session: not news
    reader = LogReader(path)
    news = []
    ends = [*sorted(cuts), len(LOG)]
    for start, end in zip([0, *ends], ends, strict=False):
        with path.open("a") as file:
            file.write(LOG[start:end])
        news += reader.news()
    assert news == NEWS
    assert reader.runs_ended == 1
    assert reader.heard
    assert not reader.gave_up


@pytest.mark.parametrize(
    "line",
    [
        f"{AGENTS_WORDS}Detected 3 failed runs in the first 60 seconds, shutting down.",
        "wandb: ERROR Sweep was deleted or agent was not found.",
    ],
)
def test_an_agent_that_gave_up_is_told_from_one_that_crashed(tmp_path, line):
    reader = LogReader(tmp_path / "agent-0.log")
    (tmp_path / "agent-0.log").write_bytes(b"\xff\xfe not text\n" + line.encode() + b"\n")
    assert len(reader.news()) == 1
    assert reader.gave_up
