"""`python -m sweep.agent` and W&B's own agents: real processes, and a double of the server on loopback."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from agents import KEY, LONG, Place, csv_rows, descendants, ended, place_of, split_rows, trial_of, wait_until
from double_sweeps import grid
from wandb_double import Behaviour, WandbDouble
from wandb_scheduler_double import SchedulerDouble

from sweep import agent
from sweep.spec import load_spec
from sweep.trials_folder import TrialsFolder
from sweep.wandb_config import wandb_sweep_config
from tests.sweeping import tiny_content

# --- the command without a server


@pytest.fixture
def spec_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.yaml in a current folder of its own, without credentials for W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = Path("tiny.yaml")
    path.write_text(yaml.safe_dump(tiny_content(wandb={"mode": "auto"})), encoding="utf-8")
    return path


def test_print_writes_the_sweep_config_to_stdout_and_notes_to_stderr(spec_file, capsys):
    assert agent.main([str(spec_file), "--print", "--set", "run_cap=7"]) == 0
    captured = capsys.readouterr()
    config = yaml.safe_load(captured.out)
    assert config == wandb_sweep_config(load_spec(spec_file, ["run_cap=7"]), spec_file, ["run_cap=7"])
    assert config["run_cap"] == 7
    assert config["command"][-4:] == ["tiny.yaml", "--set", "run_cap=7", "${args}"]
    assert captured.err.startswith("note: ")
    assert "search.presets" in captured.err
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "tiny.yaml"]  # nothing was made, nobody was asked


def test_print_is_what_happens_without_options(spec_file, capsys):
    assert agent.main([str(spec_file)]) == 0
    alone = capsys.readouterr().out
    assert agent.main([str(spec_file), "--print"]) == 0
    assert capsys.readouterr().out == alone


def test_the_printed_config_means_the_same_to_readers_of_other_yaml(tmp_path, capsys):
    texts = ["1e-3", "008", "0x10", "1_000", "+1", "off", "null", "3:20", "2026-01-01", "~", "a: b", "#", " x", "é"]
    printed = agent.config_text({"command": texts})
    assert yaml.safe_load(printed)["command"] == texts
    lines = [line.removeprefix("- ") for line in printed.splitlines()[1:]]
    for text, line in zip(texts[:5], lines, strict=False):  # numbers to other readers
        assert line == f"'{text}'"


@pytest.mark.parametrize("options", [["--create"], ["--count", "2"], ["--create", "--scheduler"]])
def test_without_credentials_it_says_how_to_get_them(spec_file, capsys, options):
    assert agent.main([str(spec_file), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for remedy in ("wandb login", "WANDB_API_KEY", "WANDB_BASE_URL", "python -m sweep.run"):
        assert remedy in error


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_sweeps_exist_online_only_whoever_says_offline(spec_file, capsys, monkeypatch, mode):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert agent.main([str(spec_file), "--create", "--set", f"wandb.mode={mode}"]) == 2
    by_spec = capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", mode)
    assert agent.main([str(spec_file), "--create"]) == 2
    by_environment = capsys.readouterr().err
    assert f"online only, but wandb.mode says {mode}" in by_spec
    assert f"online only, but WANDB_MODE says {mode}" in by_environment
    assert by_spec.count("\n") == by_environment.count("\n") == 1
    assert "python -m sweep.run" in by_spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--create", "--set", "trainer.epochs=-1"], "trainer.epochs = -1"),
        (["--set", "parameters.mask_ration.value=1"], "did you mean 'mask_ratio'"),
        (["--print", "--count", "2"], "--print and --count"),
    ],
)
def test_bad_input_is_an_error_of_a_line_and_prints_no_config(spec_file, capsys, options, words):
    assert agent.main([str(spec_file), *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("options", [["--count", "0"], ["--count", "x"], ["--print", "--create"]])
def test_impossible_options_are_refused(spec_file, capsys, options):
    with pytest.raises(SystemExit) as left:
        agent.main([str(spec_file), *options])
    assert left.value.code == 2
    assert options[0] in capsys.readouterr().err


# --- registering a sweep


@pytest.fixture
def place(tmp_path: Path, frame_stores: Path) -> Iterator[Place]:
    with WandbDouble() as double, place_of(tmp_path, frame_stores, double) as place:
        yield place


def test_create_registers_what_print_shows_and_says_how_to_go_on(place):
    place.write_spec(early_terminate={"type": "hyperband", "min_iter": 2})
    options = ["tiny.yaml", "--set", "trainer.epochs=4", "--set", "project=tactile", "--set", "entity=a team"]
    printed = place.run("-m", "sweep.agent", *options, "--print")
    created = place.run("-m", "sweep.agent", *options, "--create")
    assert created.returncode == 0, created.stderr
    (sweep,) = place.double.sweeps.values()
    shown = yaml.safe_load(printed.stdout)
    registered = sweep.config
    assert shown["parameters"]["alpha"] == {"min": 0.1, "max": 0.9}
    shown["parameters"]["alpha"]["distribution"] = "uniform"  # wandb writes it out
    assert registered == shown
    assert sweep.path == f"a team/tactile/{sweep.id}"
    assert re.search(rf"^sweep +{sweep.id}$", created.stdout, re.M)
    assert re.search(rf"^page +{place.double.url}/a%20team/tactile/sweeps/{sweep.id}$", created.stdout, re.M)
    assert re.search(rf"^agent +wandb agent --forward-signals 'a team/tactile/{sweep.id}'$", created.stdout, re.M)
    assert place.double.unknown == set()
    assert [path.name for path in place.folder.iterdir()] == ["tiny.yaml"]


def test_the_agents_command_leaves_their_number_to_the_machine(place):
    place.write_spec(search={"presets": [], "startup_trials": 9})
    created = place.run("-m", "sweep.agent", "tiny.yaml", "--create")
    (sweep,) = place.double.sweeps.values()
    assert re.search(rf"^agents +python -m sweep.agents {sweep.path}$", created.stdout, re.M)
    assert "startup_trials" not in created.stdout, "W&B's own search does not use it"


def test_a_results_folder_of_another_spec_is_refused_before_anything_is_registered(place):
    spec = load_spec(place.write_spec(trainer={"epochs": 17}))
    TrialsFolder(place.folder / "there", spec).claim("run", spec.trainer)
    place.write_spec()
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--create", "--results", "there")
    assert done.returncode == 2
    assert "holds a sweep of another spec (trainer." in done.stderr
    assert done.stderr.endswith("; give another folder with --results DIR\n")
    (place.folder / "file").touch()
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--create", "--results", "file")
    assert done.returncode == 2
    assert done.stderr == f"error: results: {place.folder}/file is a file; give another folder with --results DIR\n"
    assert place.double.requests == 0


def test_nothing_is_registered_where_the_data_are_not_there(place):
    place.write_spec(trainer={"data": {"source": "frames", "root": "nowhere"}})
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--create")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert place.double.requests == 0


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("refuse_key", "refuses the key"),
        ("error", "out of order"),
        ("rate_limit", "429"),
        ("hang", "no usable answer in 4 s"),
        ("gone", "cannot be reached"),
    ],
)
def test_a_server_that_fails_is_an_error_of_a_line_in_the_stated_time(place, behaviour, words):
    place.write_spec(wandb={"mode": "auto", "init_timeout_s": 4})
    if behaviour == "gone":
        place.double.close()
    else:
        place.double.behaviour = behaviour
    began = time.monotonic()
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--create")
    assert time.monotonic() - began < 4 + 5 + 15  # stated, to end wandb, and to start Python on a busy machine
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"error: wandb: {place.double.url} ")
    assert words in errors[0] or "no usable answer" in errors[0]  # which of the two comes first is a matter of load
    assert KEY not in done.stderr + done.stdout


def test_a_server_that_fails_at_the_sweep_itself_is_an_error_of_a_line(place):
    place.write_spec()
    place.double.behaviour_of["UpsertSweep"] = "error"
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--create")
    assert done.returncode == 2
    assert "out of order" in done.stderr or "no usable answer in 20 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert place.double.sweeps == {}


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WANDB_API_KEY", "too-short", "WANDB_API_KEY invalid"),
        ("WANDB_API_KEY", " ", "whitespace"),
        ("WANDB_BASE_URL", "not a url", "no usable address"),
        ("WANDB_BASE_URL", "http://nowhere.invalid", "cannot be reached"),
    ],
)
def test_a_wrong_key_or_address_is_an_error_of_a_line_that_shows_no_key(place, variable, value, words):
    place.write_spec()
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--create", **{variable: value})
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert words in error
    assert "too-short" not in error
    assert KEY not in error


# --- two agents, four runs

ALPHAS = (0.2, 0.4, 0.6, 0.8)


@dataclass
class Ended:
    """A sweep that has ended, and what was seen of it.

    Attributes:
        command_lines: of all processes that agents and trials were, while they ran.
    """

    place: Place
    sweep_id: str
    codes: list[int]
    command_lines: set[str]

    @property
    def double(self) -> WandbDouble:
        return self.place.double

    @property
    def results(self) -> Path:
        return self.place.results(self.sweep_id)

    @property
    def runs(self) -> list[str]:
        return list(self.double.sweeps[self.sweep_id].runs)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, frame_stores: Path) -> Iterator[Ended]:
    """4 runs of 3 epochs by 2 agents, and a report of them."""
    with WandbDouble() as double, place_of(tmp_path_factory.mktemp("swept"), frame_stores, double) as place:
        double.hand_out(grid(alpha=ALPHAS, base_lr=[0.02]))
        sweep_id = place.create(place.write_spec())
        agents = [place.start_agent(sweep_id, log=f"agent{number}.log") for number in range(2)]
        lines: set[str] = set()

        def all_ended() -> bool:
            for process in agents:
                for pid in [process.pid, *descendants(process.pid)]:
                    with suppress(OSError):  # it has just ended
                        lines.add(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
            return all(process.poll() is not None for process in agents)

        wait_until(all_ended, "both agents have ended", place)
        yield Ended(place, sweep_id, [process.wait() for process in agents], lines)


@pytest.mark.slow
def test_every_run_is_trained_once_and_the_agents_share_them(swept):
    sweep = swept.double.sweeps[swept.sweep_id]
    assert swept.codes == [0, 0], swept.place.output()
    assert Counter(sweep.handed_out) == dict.fromkeys(swept.runs, 1)
    assert swept.double.starts == dict.fromkeys(swept.runs, 1)
    told = [told.told for told in swept.double.agents.values()]
    assert len(told) == 2
    assert all(told)
    assert len(read_csv_texts(swept.results / "trials.csv")) == len(swept.runs) == 4


@pytest.mark.slow
def test_all_rows_of_a_run_arrive_and_equal_those_of_its_csv_files(swept):
    for run_id in swept.runs:
        batches, epochs = split_rows(swept.double.rows(run_id))
        assert (batches, epochs) == csv_rows(trial_of(swept.results, run_id))
        assert (len(batches), len(epochs)) == (18, 3)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_objective_is_logged_once_an_epoch_so_that_hyperband_counts_epochs(swept):
    for run_id in swept.runs:
        assert len(swept.double.logged(run_id, "objective/value")) == 3


@pytest.mark.slow
def test_the_key_is_in_no_file_no_output_and_no_command_line(swept):
    reported = swept.place.run("-m", "sweep.report", str(swept.results))
    assert (swept.results / "report.html").exists(), reported.stdout + reported.stderr
    key = KEY.encode()
    root = swept.place.folder.parent  # the working directory and the home folder
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert [path for path in files if key in path.read_bytes()] == []
    assert KEY not in swept.place.output() + reported.stdout + reported.stderr
    assert [line for line in swept.command_lines if KEY in line] == []
    assert any("sweep.trial" in line for line in swept.command_lines)
    assert [body for body in swept.double.bodies if key in body] == []
    assert swept.double.authorized > 10  # it was used all the same


def read_csv_texts(path: Path) -> list[list[str]]:
    """The rows of a CSV file, without its head."""
    return [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


# --- runs that do not train to their end


def long_sweep(place: Place, alphas: tuple[float, ...] = (0.3,), **changes: Any) -> tuple[str, Path]:
    """A sweep of runs of some seconds; returns its id and its results folder."""
    place.double.hand_out(grid(alpha=alphas))
    parameters = {"alpha": {"min": 0.1, "max": 0.9}}
    spec = place.write_spec(parameters=parameters, **{"trainer": LONG, "search": {}, **changes})
    sweep_id = place.create(spec)
    return sweep_id, place.results(sweep_id)


def epochs_of(place: Place, run_id: str) -> int:
    return len(split_rows(place.double.rows(run_id))[1])


def rows_of(place: Place, run_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return split_rows(place.double.rows(run_id))


@pytest.mark.slow
def test_a_run_that_is_stopped_on_its_page_ends_well_and_is_not_started_again(place):
    sweep_id, results = long_sweep(place)
    process = place.start_agent(sweep_id)
    run_id = f"{sweep_id}-run0"
    wait_until(lambda: epochs_of(place, run_id) > 5, "the run trains", place)
    place.double.stop(run_id)
    assert ended(process, place) == 0
    double, folder = place.double, trial_of(results, run_id)
    assert "stop" in double.agents["agent0"].commands
    assert double.exit_code[run_id] == 0
    assert double.preempting == set()
    assert double.sweeps[sweep_id].handed_out == [run_id]
    assert rows_of(place, run_id) == csv_rows(folder)
    assert 5 < epochs_of(place, run_id) < LONG["epochs"]
    assert (folder / "checkpoint" / "last.pt").exists()
    assert double.summary[run_id]["summary/best_loss"] > 0
    ((_, state, *_),) = read_csv_texts(results / "trials.csv")
    assert state == "pruned"


@pytest.mark.slow
def test_hyperband_stops_a_bad_run_by_its_epochs(place):
    # the second one hardly learns; of two runs at a band, eta = 3 lets the better one go on
    rule = {"type": "hyperband", "min_iter": 8, "eta": 3}
    place.double.hand_out(grid(alpha=[0.3], base_lr=[0.03]) + grid(alpha=[0.3], base_lr=[1e-6]))
    parameters = {"alpha": {"min": 0.1, "max": 0.9}, "base_lr": {"min": 1e-6, "max": 0.1}}
    spec = place.write_spec(parameters=parameters, trainer=LONG, search={}, early_terminate=rule)
    sweep_id = place.create(spec)
    assert ended(place.start_agent(sweep_id), place) == 0
    good, bad = place.double.sweeps[sweep_id].runs
    assert place.double.stopped == {bad}
    assert epochs_of(place, good) == LONG["epochs"]
    assert 8 <= epochs_of(place, bad) < LONG["epochs"]
    assert place.double.exit_code == {good: 0, bad: 0}
    assert [row[1] for row in read_csv_texts(place.results(sweep_id) / "trials.csv")] == ["complete", "pruned"]


@pytest.mark.slow
def test_a_preempted_run_is_handed_out_again_and_ends_as_if_nothing_had_happened(place):
    sweep_id, results = long_sweep(place)
    run_id = f"{sweep_id}-run0"
    first = place.start_agent(sweep_id, "--forward-signals", log="first.log")
    wait_until(lambda: epochs_of(place, run_id) > 5, "the run trains", place)
    first.send_signal(signal.SIGTERM)
    assert ended(first, place) == 0
    double, folder = place.double, trial_of(results, run_id)
    assert double.state(run_id) == "preempted"
    before = epochs_of(place, run_id)
    assert 5 < before < LONG["epochs"]

    assert ended(place.start_agent(sweep_id, log="second.log"), place) == 0
    assert double.agents["agent1"].commands[0] == "resume"
    assert double.starts[run_id] == 2
    assert double.state(run_id) == "finished"
    assert rows_of(place, run_id) == csv_rows(folder)
    assert [row["epoch"] for row in rows_of(place, run_id)[1]] == list(range(LONG["epochs"]))
    (row,) = read_csv_texts(results / "trials.csv")
    assert row[1] == "complete"

    undisturbed = place.run(
        "-m", "sweep.trial", "tiny.yaml", "--alpha=0.3", "--set", "wandb.mode=disabled", "--results", "by_hand"
    )
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert csv_rows(place.folder / "by_hand" / "trials" / "0000") == csv_rows(folder)


# --- a server that fails while a run trains


def fail(double: WandbDouble, behaviour: Behaviour | str) -> None:
    if behaviour == "gone":
        double.close()
    else:
        double.behaviour = behaviour  # type: ignore[assignment]


def mend(double: WandbDouble, behaviour: Behaviour | str) -> None:
    if behaviour == "gone":
        double.reopen()
    else:
        double.behaviour = "answer"


def csv_epochs(folder: Path) -> int:
    return len((folder / "epoch.csv").read_text(encoding="utf-8").splitlines()) - 1


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["error", "rate_limit", "hang", "gone"])
def test_training_goes_on_while_the_server_fails_and_all_rows_arrive_once_it_is_back(place, behaviour):
    # by default wandb may wait a minute before it tries again
    place.environment["WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS"] = "2"
    sweep_id, results = long_sweep(place)
    run_id = f"{sweep_id}-run0"
    process = place.start_agent(sweep_id)
    wait_until(lambda: epochs_of(place, run_id) > 5, "the run trains", place)
    fail(place.double, behaviour)
    folder, arrived = trial_of(results, run_id), epochs_of(place, run_id)
    failed_at = csv_epochs(folder)
    wait_until(lambda: csv_epochs(folder) > failed_at + 30, "training goes on", place)
    assert epochs_of(place, run_id) <= max(arrived, failed_at) + 5  # what was under way
    mend(place.double, behaviour)
    assert ended(process, place) == 0
    assert csv_epochs(folder) == LONG["epochs"]
    assert rows_of(place, run_id) == csv_rows(folder)
    assert place.double.state(run_id) == "finished"
    assert place.double.sweeps[sweep_id].handed_out == [run_id]


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["gone", "refuse_key"])
def test_a_run_that_outlives_the_server_is_whole_on_disk_and_synced_later(place, behaviour):
    sweep_id, results = long_sweep(place)
    run_id = f"{sweep_id}-run0"
    process = place.start_agent(sweep_id)
    wait_until(lambda: epochs_of(place, run_id) > 5, "the run trains", place)
    fail(place.double, behaviour)
    folder = trial_of(results, run_id)
    wait_until(lambda: read_csv_texts(results / "trials.csv")[0][1] == "complete", "the trial ends", place)
    wait_until(lambda: len(descendants(process.pid)) <= 1, "its process ends; wandb's service is the agent's", place)
    assert process.poll() is None  # the agent waits for its server
    mend(place.double, behaviour)
    assert ended(process, place) == 0
    assert csv_epochs(folder) == LONG["epochs"]

    synced = place.run("-m", "sweep.sync", str(results))
    assert synced.returncode == 0, synced.stderr
    assert rows_of(place, run_id) == csv_rows(folder)
    assert place.double.sweep_of(run_id) == sweep_id
    assert place.double.group(run_id) == "tiny"
    assert place.double.state(run_id) == "finished"


# --- an agent that python -m sweep.agent runs


@pytest.mark.slow
def test_count_registers_a_sweep_and_runs_an_agent_for_so_many_trials(place):
    place.write_spec()
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--count", "2", "--results", "here")
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = place.double.sweeps.values()
    assert len(sweep.handed_out) == len(set(sweep.handed_out)) == 2
    assert {place.double.state(run_id) for run_id in sweep.handed_out} == {"finished"}
    assert len(read_csv_texts(place.folder / "here" / "trials.csv")) == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_it_reaches_the_trial_once_and_the_run_waits_for_another_agent(place, number):
    place.double.hand_out(grid(alpha=[0.3, 0.5]))
    spec = place.write_spec(parameters={"alpha": {"min": 0.1, "max": 0.9}}, trainer=LONG, search={})
    process = place.start("-m", "sweep.agent", spec.name, "--create", "--count", "2", log="agent.log")
    wait_until(lambda: place.double.run and epochs_of(place, next(iter(place.double.run))) > 5, "it trains", place)
    children = descendants(process.pid)
    process.send_signal(number)
    assert ended(process, place) == 0  # W&B's agent ends with 0
    (sweep,) = place.double.sweeps.values()
    (run_id,) = sweep.handed_out
    assert place.double.state(run_id) == "preempted"
    assert sweep.queue[0].run_id == run_id
    assert (trial_of(place.results(sweep.id), run_id) / "checkpoint" / "last.pt").exists()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in children), "no process is left", place)
    assert "Traceback" not in place.output()


@pytest.mark.slow
def test_the_exit_code_of_the_agent_is_passed_on(place):
    place.write_spec()
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--count", "1", WANDB_AGENT_KILL_DELAY="not a number")
    assert done.returncode == 1, done.stdout + done.stderr


@pytest.mark.slow
def test_with_scheduler_optuna_suggests_what_the_agent_here_runs(tmp_path, frame_stores):
    with SchedulerDouble() as double, place_of(tmp_path, frame_stores, double) as place:
        place.write_spec()
        done = place.run("-m", "sweep.agent", "tiny.yaml", "--count", "2", "--scheduler")
        assert done.returncode == 0, done.stdout + done.stderr
        (sweep,) = double.sweeps.values()
        assert [values["alpha"] for values in double.queued[:2]] == [0.5, 0.75]  # the presets come first
        assert [double.state(run_id) for run_id in sweep.handed_out] == ["finished", "finished"]
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_agent_whose_scheduler_fails_does_not_wait_for_ever(place):
    place.write_spec()  # this server knows no schedulers, as older ones
    done = place.run("-m", "sweep.agent", "tiny.yaml", "--count", "2", "--scheduler")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: wandb sweep-scheduler has failed" in done.stderr
    assert place.double.sweeps["sweep0"].handed_out == []


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"search": {"warm_start": ["nowhere"]}}, "nowhere"),
        ({"method": "random", "search": {"pbt": {"every_epochs": 1}, "presets": []}}, "search.pbt"),
        ({"program": "train.py"}, "program"),
    ],
)
def test_what_a_scheduler_would_refuse_is_an_error_before_anything_is_registered(
    spec_file, capsys, monkeypatch, block, word
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbDouble() as double:
        monkeypatch.setenv("WANDB_BASE_URL", double.url)
        spec_file.write_text(yaml.safe_dump(tiny_content(wandb={"mode": "auto"}, **block)), encoding="utf-8")
        assert agent.main([str(spec_file), "--create", "--scheduler"]) == 2
        assert double.requests == 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert word in errors[0]
