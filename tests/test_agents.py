"""Several agents on one machine: the real `wandb agent`, against the double of the server; and what restarts them."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from agents import KEY, REPOSITORY, Called, Place, csv_rows, ended, place_of, split_rows, trial_of, wait_until
from double_sweeps import grid
from filelock import FileLock
from wandb_double import WandbDouble

from model.errors import ConfigError
from sweep import agents, devices, single
from sweep.agents import main
from sweep.devices import environments, number_of_agents
from sweep.processes import StopRequests
from sweep.report.page import write_report
from sweep.resources import Resources
from sweep.spec import load_spec
from sweep.trial_command import NamedTrial, named_spec, named_trial
from sweep.trials_folder import TrialsFolder
from sweep.wandb_config import trials_of, wandb_sweep_config
from sweep.wandb_server import sweep_path
from tests.sweeping import TINY_TRAINER, tiny_content

# what a sweep's command may be instead of our trial; a file `<run>.go` ends it
WAITING = """
import os, pathlib, signal, sys, time
mine = pathlib.Path(os.environ["WANDB_RUN_ID"])
def note(number, frame):
    mine.with_suffix(".signal").write_text(str(number))
    if "stubborn" not in sys.argv:
        sys.exit(3)
signal.signal(signal.SIGTERM, note)
place = mine.with_suffix(".new")
place.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "") + " " + os.environ.get("TACTILE_SWEEP_WANDB_SERVICE", ""))
place.rename(mine.with_suffix(".there"))
while not mine.with_suffix(".go").exists():
    time.sleep(0.05)
"""


class Silent(WandbDouble):
    """Does not tell a sweep's config."""

    def on_SweepWithRuns(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {}


@pytest.fixture
def place(tmp_path: Path, frame_stores: Path) -> Iterator[Place]:
    with WandbDouble() as double, place_of(tmp_path, frame_stores, double) as place:
        (place.folder / "waiting.py").write_text(WAITING)
        yield place


def waiting_sweep(place: Place, *words: str, runs: int = 2) -> str:
    """A sweep of runs that wait for their file `<run>.go`."""
    spec = place.write_spec()
    configs = grid(alpha=[(number + 1) / 10 for number in range(runs)])
    return place.register(spec, *configs, command=["${env}", "${interpreter}", "waiting.py", *words])


def launch(place: Place, sweep_id: str, *options: str) -> subprocess.Popen[bytes]:
    return place.start("-m", "sweep.agents", place.double.sweeps[sweep_id].path, *options, log="terminal.log")


def terminal(place: Place) -> str:
    return (place.folder / "terminal.log").read_text(encoding="utf-8")


def mark(place: Place, sweep_id: str, run: int, suffix: str) -> Path:
    """A file by which a run and the test speak with each other."""
    return place.folder / f"{sweep_id}-run{run}.{suffix}"


def wait_for(place: Place, sweep_id: str, suffix: str, *runs: int) -> list[str]:
    """Wait for these marks; returns what they hold."""
    marks = [mark(place, sweep_id, run, suffix) for run in runs]
    wait_until(lambda: all(path.exists() for path in marks), f"runs {runs}: {suffix}", place)
    return [path.read_text() for path in marks]


def of_kind(place: Place, *words: str) -> list[psutil.Process]:
    """Processes of the place with these words in their command."""
    return [process for process in place.family() if set(words) <= set(process.cmdline())]


def services_started(place: Place) -> list[str]:
    return [command for command in place.started_commands() if "wandb-core" in command]


# --- a sweep to its end: 3 runs, 2 agents

ALPHAS = (0.2, 0.4, 0.6)


def of_the_sweep(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the fixture `swept`, which is made once."""
    marked: Callable[..., None] = pytest.mark.process(pytest.mark.xdist_group("swept by agents")(test))
    return marked


class Swept:
    """A sweep that two agents have run."""

    def __init__(self, place: Place, sweep_id: str, code: int) -> None:
        self.place, self.double, self.sweep_id, self.code = place, place.double, sweep_id, code
        self.results = place.results(sweep_id)
        self.runs = list(place.double.sweeps[sweep_id].runs)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    folder = tmp_path_factory.mktemp("swept")
    with WandbDouble() as double, place_of(folder, folder / "store", double) as place:
        place.environment["GATE"] = "1"
        spec = place.write_spec(resources={"cpu": 0.25, "max_concurrent": 2})
        sweep_id = place.register(spec, *grid(alpha=ALPHAS, base_lr=[0.02]))
        process = launch(place, sweep_id)
        wait_for(place, sweep_id, "there", 0, 1)  # both agents have a trial under way
        for run in range(3):
            mark(place, sweep_id, run, "go").touch()
        yield Swept(place, sweep_id, ended(process, place))


@of_the_sweep
@pytest.mark.process
def test_the_agents_share_the_runs_and_each_is_trained_once(swept):
    shown = terminal(swept.place)
    assert swept.code == 0, swept.place.output()
    sweep = swept.double.sweeps[swept.sweep_id]
    assert Counter(sweep.handed_out) == swept.double.starts == dict.fromkeys(swept.runs, 1)
    assert [bool(agent.told) for agent in swept.double.agents.values()] == [True, True]
    assert len(read_csv_texts(swept.results / "trials.csv")) == len(swept.runs) == 3
    results = f"results/tiny-{swept.sweep_id}"
    assert shown.startswith(f"sweep {sweep.path}: 2 agents, logs in results/agents-{swept.sweep_id}\n")
    assert shown.count("ended (code 0)") == 2
    assert shown.endswith(f"trials: {results}; report: python -m sweep.report {results}\n")


@of_the_sweep
@pytest.mark.process
def test_agents_and_trials_share_one_service_and_one_frame_store_and_leave_nothing_running(swept):
    # one to ask for the sweep's config, which ends then, and the shared one
    assert ["--detached" in command for command in services_started(swept.place)] == [False, True]
    (store,) = [path for path in (swept.place.folder.parent / "store").iterdir() if path.is_dir()]
    assert not store.name.endswith(".building")
    assert swept.place.family() == []


@of_the_sweep
@pytest.mark.process
def test_all_rows_of_a_run_arrive_and_equal_those_of_its_csv_files(swept):
    for run_id in swept.runs:
        batches, epochs = split_rows(swept.double.rows(run_id))
        assert (batches, epochs) == csv_rows(trial_of(swept.results, run_id))
        assert (len(batches), len(epochs)) == (18, 3)


@of_the_sweep
@pytest.mark.process
def test_the_page_shows_group_sweep_parameters_summary_and_state_of_each_run(swept):
    double, sweep = swept.double, swept.double.sweeps[swept.sweep_id]
    assert [double.config(run_id)["alpha"] for run_id in swept.runs] == list(ALPHAS)
    for run_id in swept.runs:
        last = split_rows(double.rows(run_id))[1][-1]
        assert double.sweep_of(run_id) == swept.sweep_id
        assert double.group(run_id) == "tiny"
        assert double.state(run_id) == "finished"
        assert double.summary[run_id]["objective/value"] == last["objective/value"]
        assert double.summary[run_id]["summary/best_loss"] > 0
    assert sweep.config["metric"] == {"name": "objective/value", "goal": "minimize"}
    assert double.unknown == set()


@of_the_sweep
@pytest.mark.process
def test_the_objective_is_logged_once_an_epoch_so_that_hyperband_counts_epochs(swept):
    for run_id in swept.runs:
        assert len(swept.double.logged(run_id, "objective/value")) == 3


@of_the_sweep
@pytest.mark.process
def test_the_key_is_in_no_file_no_output_and_no_command_line(swept):
    write_report(swept.results)
    key = KEY.encode()
    root = swept.place.folder.parent  # the working directory, the home folder, the commands that were started
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if key in path.read_bytes()] == []
    assert any("sweep.trial" in line for line in swept.place.started_commands())
    assert [body for body in swept.double.bodies if key in body] == []
    assert swept.double.authorized > 10  # it was used all the same


def read_csv_texts(path: Path) -> list[list[str]]:
    """The rows of a CSV file, without its head."""
    return [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


# --- signals, agents that die or give up


@pytest.mark.process
def test_sigterm_leaves_a_checkpoint_and_the_next_agents_go_on_as_if_nothing_had_happened(place):
    place.environment["GATE"] = "3"
    spec = place.write_spec(trainer={**TINY_TRAINER, "epochs": 6})
    sweep_id = place.register(spec, {"alpha": 0.3, "base_lr": 0.02})
    process = launch(place, sweep_id, "-n", "1")
    wait_for(place, sweep_id, "there", 0)
    os.killpg(process.pid, signal.SIGTERM)  # as a terminal does: to all of the group
    assert ended(process, place) == 130, place.output()
    double, run_id = place.double, f"{sweep_id}-run0"
    assert double.state(run_id) == "preempted"
    folder = trial_of(place.results(sweep_id), run_id)
    assert (folder / "checkpoint" / "last.pt").exists()
    assert 3 <= len(csv_rows(folder)[1]) < 6
    assert place.family() == []

    del place.environment["GATE"]
    assert ended(launch(place, sweep_id, "-n", "1"), place) == 0, place.output()
    assert double.agents["agent1"].commands[0] == "resume"
    assert double.starts[run_id] == 2
    assert double.state(run_id) == "finished"
    assert split_rows(double.rows(run_id)) == csv_rows(folder)
    assert [row["epoch"] for row in csv_rows(folder)[1]] == list(range(6))
    ((_, state, *_),) = read_csv_texts(place.results(sweep_id) / "trials.csv")
    assert state == "complete"
    words = ["--alpha=0.3", "--base_lr=0.02", "--set", "wandb.mode=disabled", "--results", "by_hand"]
    assert place.call(single.main, "tiny.yaml", *words).code == 0
    assert csv_rows(place.folder / "by_hand" / "trials" / "0000") == csv_rows(folder)


@pytest.mark.process
def test_each_agent_has_gpus_of_its_own_and_a_second_signal_kills_runs_that_do_not_end(place):
    spec = place.write_spec("gpus", resources={"gpu": 1})
    sweep_id = waiting_sweep(place, "stubborn")
    place.environment["CUDA_VISIBLE_DEVICES"] = "4,7"
    process = launch(place, sweep_id, "-n", "2", "--spec", spec.name)
    said = wait_for(place, sweep_id, "there", 0, 1)
    assert sorted(text.split()[0] for text in said) == ["4", "7"]
    assert len({text.split()[1] for text in said}) == 1, "the service that they share"
    process.terminate()
    wait_for(place, sweep_id, "signal", 0, 1)
    assert len(of_kind(place, "waiting.py")) == 2
    process.send_signal(signal.SIGINT)
    assert ended(process, place) == 130
    assert place.family() == []


def test_sigterm_that_comes_twice_within_seconds_is_one_request(monkeypatch):
    clock: list[float] = []
    monkeypatch.setattr("time.monotonic", lambda: clock[-1])
    requests = StopRequests()
    for now, number, count in (
        (100.0, signal.SIGTERM, 1),
        (109.0, signal.SIGTERM, 1),  # Slurm's, and what a script passes on of it
        (109.5, signal.SIGINT, 2),
        (111.0, signal.SIGTERM, 3),
    ):
        clock.append(now)
        requests.note(number, None)
        assert requests.count == count


@pytest.mark.process
def test_the_run_of_a_killed_agent_is_asked_to_end_and_the_other_agents_go_on(place):
    sweep_id = waiting_sweep(place)
    process = launch(place, sweep_id, "-n", "2")
    wait_for(place, sweep_id, "there", 0, 1)
    run_of = {agent.commands[0]: agent for agent in place.double.agents.values()}
    assert list(run_of) == ["run"]
    victim, *_ = of_kind(place, "agent", "--forward-signals")
    victim.kill()
    wait_until(lambda: list(place.folder.glob("*.signal")), "its run gets SIGTERM", place)
    (asked,) = place.folder.glob("*.signal")
    assert asked.read_text() == str(int(signal.SIGTERM))
    for run in range(2):
        mark(place, sweep_id, run, "go").touch()
    assert ended(process, place) == 3, place.output()
    shown = terminal(place)
    assert re.search(r"agent \d: ended \(killed by signal 9; see results/agents-\S+\.log\)", shown)
    assert re.search(r"agent \d: ended \(code 0\)", shown)
    assert place.family() == []


@pytest.mark.process
def test_when_the_command_itself_is_killed_agents_and_runs_end(place):
    sweep_id = waiting_sweep(place)
    process = launch(place, sweep_id, "-n", "1")
    wait_for(place, sweep_id, "there", 0)
    process.kill()
    wait_for(place, sweep_id, "signal", 0)
    wait_until(lambda: of_kind(place, "waiting.py") + of_kind(place, "wandb") == [], "all have ended", place)
    # the service ends when nobody has come back for some time
    assert ["--idle-timeout 2m" in command for command in services_started(place)] == [False, True]


@pytest.mark.process
def test_without_a_shared_service_the_agents_run_all_the_same(place):
    (place.folder.parent / "full").touch()
    sweep_id = waiting_sweep(place, runs=1)
    mark(place, sweep_id, 0, "go").touch()
    process = launch(place, sweep_id, "-n", "1", "--count", "1")
    assert ended(process, place) == 0, place.output()
    assert "note: no shared W&B service (" in terminal(place)
    assert "no room for it); each trial starts its own\n" in terminal(place)
    assert mark(place, sweep_id, 0, "there").read_text().split() == []


@pytest.mark.process
def test_an_agent_ends_after_count_runs(place):
    sweep_id = waiting_sweep(place, runs=9)
    for run in range(2):
        mark(place, sweep_id, run, "go").touch()
    assert ended(launch(place, sweep_id, "-n", "1", "--count", "2"), place) == 0, place.output()
    assert place.double.sweeps[sweep_id].handed_out == [f"{sweep_id}-run{run}" for run in range(2)]


@pytest.mark.process
def test_an_agent_whose_runs_all_fail_gives_up_and_the_reason_is_shown(place):
    sweep_id = place.register(place.write_spec())
    place.double.sweeps[sweep_id].config["command"].insert(-1, "--mask_ration=0.5")
    assert ended(launch(place, sweep_id, "-n", "1"), place) == 1, place.output()
    shown = terminal(place)
    assert "did you mean 'mask_ratio'" in shown
    assert "Detected 3 failed runs" in shown
    assert f"see results/agents-{sweep_id}/agent-0.log" in shown
    assert shown.count("started") == 1


@pytest.mark.process
def test_agents_of_a_service_that_died_end_and_are_to_be_started_again(place):
    sweep_id = waiting_sweep(place)
    process = launch(place, sweep_id, "-n", "1")
    wait_for(place, sweep_id, "there", 0)
    (service,) = [member for member in place.family() if member.name() == "wandb-core"]
    service.kill()
    mark(place, sweep_id, 0, "go").touch()
    assert ended(process, place) == 3, place.output()
    assert place.family() == []


# --- what the server says before


@pytest.mark.parametrize("name", ["me/p/nosuch", "nosuch"])
def test_a_sweep_that_the_server_does_not_know_is_one_line_and_exit_code_2(place, name):
    done = place.call(main, name, "-n", "1")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: {name}: W&B has no such sweep, or not for your key; give ENTITY/PROJECT/SWEEP as the sweep's page "
        "shows it\n"
    )


def refused(place: Place, sweep_id: str, *options: str) -> Called:
    """What the command says to something that it refuses before an agent is started."""
    done = place.call(main, place.double.sweeps[sweep_id].path, *options)
    assert done.err.count("\n") == 1
    assert KEY not in done.out + done.err
    assert place.double.agents == {}
    return done


@pytest.mark.parametrize("behaviour", ["refuse_key", "no config"])
def test_a_server_that_does_not_tell_the_sweep_is_to_be_asked_again(tmp_path, frame_stores, behaviour):
    with (
        Silent() if behaviour == "no config" else WandbDouble() as double,
        place_of(tmp_path, frame_stores, double) as place,
    ):
        sweep_id = place.register(place.write_spec())
        double.behaviour = "refuse_key" if behaviour == "refuse_key" else "answer"
        done = refused(place, sweep_id, "-n", "2")
    assert done.code == 3
    assert done.err.startswith(f"error: me/p/{sweep_id}: W&B's server ")
    assert done.err.endswith("; try again\n")


def test_a_spec_that_is_not_here_or_was_changed_is_an_error_before_an_agent_loses_runs_on_it(place):
    spec = place.write_spec()
    sweep_id = place.register(spec)
    TrialsFolder(place.results(sweep_id), load_spec(spec)).claim("run", load_spec(spec).trainer)
    place.write_spec(trainer={**TINY_TRAINER, "epochs": 17})
    changed = refused(place, sweep_id, "-n", "2")
    assert changed.code == 2
    assert "holds a sweep of another spec (trainer.epochs: " in changed.err
    assert changed.err.endswith(
        "; restore tiny.yaml as it was, or make a new sweep: python -m sweep.agent tiny.yaml --create\n"
    )
    spec.rename(place.folder / "elsewhere.yaml")
    missing = refused(place, sweep_id, "-n", "2", "--spec", "elsewhere.yaml")
    assert missing.code == 2
    assert missing.err.startswith("error: tiny.yaml: no such file here, but the sweep's command names it; start ")


# --- systemd

UNIT = REPOSITORY / "scripts/cluster/tactile-agents@.service"


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(UNIT.read_text(encoding="utf-8"))
    return parsed


def test_the_unit_starts_our_script_and_starts_it_again_where_that_may_help():
    service = unit()["Service"]
    script = shlex.split(service["ExecStart"])
    assert script[:3] == ["/usr/bin/env", "bash", "scripts/agents.sh"]
    assert agents.parser().parse_args(script[3:]).sweep == "%I"
    assert service["Restart"] == "on-failure"
    # neither where runs fail, nor for bad input, nor after a stop; 3, and a kill, are left
    assert service["RestartPreventExitStatus"].split() == ["1", "2", "130"]
    assert service["KillMode"] == "mixed", "the signal reaches a trial once"
    assert float(service["TimeoutStopSec"]) > agents.GRACE_S + agents.SERVICE_STOP_S


@pytest.mark.process
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (Debian's package systemd)")
def test_systemd_understands_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("%h/tactile-sweep", str(REPOSITORY)))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


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
ENDS = """#!/bin/bash
exit "$CODE"
"""


def commands(folder: Path, **texts: str) -> str:
    """A PATH whose first folder has these scripts."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}"


@pytest.fixture
def slurm(place, tmp_path) -> dict[str, str]:
    """The environment of a task of a job array, with stand-ins for Slurm's commands; what they are asked is kept."""
    path = commands(tmp_path / "bin", srun=SRUN, scontrol=SAYS, squeue=SAYS)
    place.environment |= {
        "PATH": path + place.environment["PATH"],
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


def asked(environment: dict[str, str]) -> list[str]:
    return Path(environment["ASKED"]).read_text().splitlines()


@pytest.mark.process
@pytest.mark.parametrize("script", [SBATCH, REPOSITORY / "scripts" / "agents.sh"])
def test_scripts_are_valid_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


def test_the_job_says_that_it_may_be_queued_again_and_wants_sigterm_before_its_end():
    options = re.findall(r"^#SBATCH (.*)$", SBATCH.read_text(), re.MULTILINE)
    assert "--requeue" in options
    (signal_option,) = [option for option in options if option.startswith("--signal")]
    number, seconds = re.fullmatch(r"--signal=B:(\w+)@(\d+)", signal_option).groups()  # type: ignore[union-attr]
    assert number == "TERM"
    assert float(seconds) >= agents.GRACE_S + agents.SERVICE_STOP_S


@pytest.mark.process
def test_sigterm_to_a_slurm_task_reaches_the_run_and_the_task_is_queued_again(place, slurm):
    sweep_id = waiting_sweep(place)
    task = start_task(place, slurm, f"me/p/{sweep_id}")
    wait_for(place, sweep_id, "there", 0)
    task.terminate()  # to the script alone, as --signal=B: does
    assert ended(task, place) == 130, place.output()
    assert mark(place, sweep_id, 0, "signal").read_text() == str(int(signal.SIGTERM))
    assert asked(slurm) == ["squeue --noheader --jobs 4243 --format %T", "scontrol requeue 4243"]
    assert (place.folder / "results" / f"agents-{sweep_id}" / "task-1" / "agent-0.log").exists()
    assert place.family() == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "state", "restarts", "queued_again"),
    [
        (0, "RUNNING", 0, False),  # the sweep has ended
        (1, "RUNNING", 0, False),  # the runs fail
        (2, "RUNNING", 0, False),
        (3, "RUNNING", 0, True),
        (3, "RUNNING", 20, False),
        (137, "RUNNING", 0, True),
        (130, "RUNNING", 40, True),  # the step alone got the signal: a preemption
        (130, "COMPLETING", 0, False),  # scancel
    ],
)
def test_a_slurm_task_is_queued_again_where_that_may_help(place, slurm, tmp_path, code, state, restarts, queued_again):
    path = commands(tmp_path / "agents", python=ENDS) + slurm["PATH"]
    environment = {"PATH": path, "CODE": str(code), "STATE": state, "SLURM_RESTART_COUNT": str(restarts)}
    assert ended(start_task(place, slurm | environment, "me/p/abc"), place) == code
    assert ("scontrol requeue 4243" in asked(slurm)) == queued_again


@pytest.mark.process
def test_a_slurm_task_without_a_sweep_or_with_a_wrong_one_fails(place, slurm):
    for sweep, message in {"": "give the sweep", "a//b": "error: sweep 'a//b'"}.items():
        task = start_task(place, slurm, sweep)
        assert ended(task, place) > 0
        assert message in (place.folder / "task.log").read_text()
        assert asked(slurm) == []


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
    "no agent": (["a/b", "-n", "0"], {}, "-n 0: must be a whole number from 1 to 512"),
    "too many agents": (["a/b", "-n", "4000"], {}, "-n 4000: must be a whole number from 1 to 512"),
    "a part": (["a/b", "-n", "1.5"], {}, "-n 1.5: must be"),
    "no run": (["a/b", "--count", "0"], {}, "--count 0: must be a whole number from 1"),
    "no sweep": (["a//b"], {}, "sweep 'a//b': must be"),
    "no credentials": (["a/b"], {"WANDB_API_KEY": ""}, "no credentials for"),
    "offline": (["a/b"], {"WANDB_MODE": "offline"}, "W&B's sweeps exist online only, but WANDB_MODE says offline"),
    "no spec": (["a/b", "--spec", "nosuch.yaml"], {}, "nosuch.yaml"),
    "no server": (["a/b", "-n", "1"], {}, "W&B's server did not give it"),
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
    assert main(words) == (3 if case == "no server" else 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert KEY not in err


def test_agents_that_write_to_the_same_logs_are_refused_and_a_folder_that_cannot_be_made_too(place):
    sweep_id = waiting_sweep(place)
    with FileLock(place.folder / ".lock"):
        done = refused(place, sweep_id, "-n", "1", "--logs", str(place.folder))
    assert done.code == 2
    assert "agents of this sweep are running already" in done.err
    done = refused(place, sweep_id, "-n", "1", "--logs", "/dev/null/x")
    assert done.code == 2
    assert "choose another folder with --logs" in done.err


def shares(num: int | None, resources: Resources | None) -> list[str | None]:
    """The GPUs of each agent."""
    return [environ.get("CUDA_VISIBLE_DEVICES") for environ in environments(num, resources)]


def test_auto_is_as_many_as_fit_and_more_are_noted(monkeypatch, capsys):
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert shares(None, Resources(cpu=3)) == ["", ""]
    assert shares(None, Resources(cpu=1, gpu=0.5)) == ["0", "1", "0", "1"]
    assert capsys.readouterr().out == ""
    assert shares(3, Resources(cpu=3)) == ["", "", ""]
    assert "note: 3 agents, but 2 fit: a trial asks for 3 CPU and 0 GPU" in capsys.readouterr().out
    assert shares(None, None) == ["0,1"]
    assert "note: one agent, since the resources of a trial are not known" in capsys.readouterr().out
    assert shares(2, None) == ["0,1", "0,1"]


def test_agents_start_trials_with_this_python_and_no_service_of_somebody_else(monkeypatch):
    monkeypatch.setenv("WANDB_SERVICE", "somebody's")
    (environ,) = environments(1, Resources())
    assert environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert "WANDB_SERVICE" not in environ


def test_what_cannot_run_here_is_an_error(monkeypatch):
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    with pytest.raises(ConfigError, match="so none fits"):
        number_of_agents(None, Resources(cpu=9), [])
    assert number_of_agents(1, Resources(cpu=9), []) == 1
    with pytest.raises(ConfigError, match=r"resources.gpu = 2, but of the GPUs only 0 can be seen here"):
        number_of_agents(1, Resources(gpu=2), ["0"])


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
