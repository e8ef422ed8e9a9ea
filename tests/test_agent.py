"""`python -m sweep.agent`, and what happens to runs of W&B's agents: with a double of the server on loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from agents import KEY, Place, csv_rows, ended, place_of, split_rows, trial_of, wait_until
from double_sweeps import grid
from gate import before_epochs
from wandb_double import Behaviour, WandbDouble
from wandb_scheduler_double import SchedulerDouble

from sweep import agent, single, sync
from sweep.spec import load_spec
from sweep.trials_folder import TrialsFolder
from sweep.wandb_config import wandb_sweep_config
from tests.sweeping import TINY_TRAINER, tiny_content

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
    printed = place.call(agent.main, *options, "--print")
    created = place.call(agent.main, *options, "--create")
    assert created.code == 0, created.err
    (sweep,) = place.double.sweeps.values()
    shown = yaml.safe_load(printed.out)
    registered = sweep.config
    assert shown["parameters"]["alpha"] == {"min": 0.1, "max": 0.9}
    shown["parameters"]["alpha"]["distribution"] = "uniform"  # wandb writes it out
    assert registered == shown
    assert sweep.path == f"a team/tactile/{sweep.id}"
    assert re.search(rf"^sweep +{sweep.id}$", created.out, re.M)
    assert re.search(rf"^page +{place.double.url}/a%20team/tactile/sweeps/{sweep.id}$", created.out, re.M)
    assert re.search(rf"^agent +wandb agent --forward-signals 'a team/tactile/{sweep.id}'$", created.out, re.M)
    assert place.double.unknown == set()
    assert [path.name for path in place.folder.iterdir()] == ["tiny.yaml"]


def test_the_agents_command_leaves_their_number_to_the_machine(place):
    place.write_spec(search={"presets": [], "startup_trials": 9})
    created = place.call(agent.main, "tiny.yaml", "--create")
    (sweep,) = place.double.sweeps.values()
    assert re.search(rf"^agents +python -m sweep.agents {sweep.path}$", created.out, re.M)
    assert "startup_trials" not in created.out, "W&B's own search does not use it"


def test_a_results_folder_of_another_spec_is_refused_before_anything_is_registered(place):
    spec = load_spec(place.write_spec(trainer={"epochs": 17}))
    TrialsFolder(place.folder / "there", spec).claim("run", spec.trainer)
    place.write_spec()
    done = place.call(agent.main, "tiny.yaml", "--create", "--results", "there")
    assert done.code == 2
    assert "holds a sweep of another spec (trainer." in done.err
    assert done.err.endswith("; give another folder with --results DIR\n")
    (place.folder / "file").touch()
    done = place.call(agent.main, "tiny.yaml", "--create", "--results", "file")
    assert done.code == 2
    assert done.err == f"error: results: {place.folder}/file is a file; give another folder with --results DIR\n"
    assert place.double.requests == 0


def test_nothing_is_registered_where_the_data_are_not_there(place):
    place.write_spec(trainer={"data": {"source": "frames", "root": "nowhere"}})
    done = place.call(agent.main, "tiny.yaml", "--create")
    assert done.code == 2
    assert "nowhere" in done.err
    assert "Traceback" not in done.err
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
def test_a_server_that_fails_is_an_error_of_a_line(place, behaviour, words):
    place.write_spec(wandb={"mode": "auto", "init_timeout_s": 4})
    if behaviour == "gone":
        place.double.close()
    else:
        place.double.behaviour = behaviour
    done = place.call(agent.main, "tiny.yaml", "--create")
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1, done.err
    assert errors[0].startswith(f"error: wandb: {place.double.url} ")
    assert words in errors[0] or "no usable answer" in errors[0]  # which of the two comes first is a matter of load
    assert KEY not in done.err + done.out


def test_a_server_that_fails_at_the_sweep_itself_is_an_error_of_a_line(place):
    place.write_spec()
    place.double.behaviour_of["UpsertSweep"] = "error"
    done = place.call(agent.main, "tiny.yaml", "--create")
    assert done.code == 2
    assert "out of order" in done.err or "no usable answer in 20 s" in done.err
    assert "Traceback" not in done.err
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
    done = place.call(agent.main, "tiny.yaml", "--create", **{variable: value})
    assert done.code == 2
    (error,) = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert words in error
    assert "too-short" not in error
    assert KEY not in error


# --- runs that W&B ends


def states(results: Path) -> list[str]:
    """Of the trials, as trials.csv has them."""
    return [line.split(",")[1] for line in (results / "trials.csv").read_text(encoding="utf-8").splitlines()[1:]]


def epochs_of(place: Place, run_id: str) -> int:
    return len(split_rows(place.double.rows(run_id))[1])


@pytest.mark.process
def test_runs_that_are_stopped_by_hyperband_or_on_their_page_end_well_and_are_not_started_again(place):
    place.environment["GATE"] = "4"
    # the second one hardly learns; of two runs at a band, eta = 3 lets the better one go on
    rule = {"type": "hyperband", "min_iter": 4, "eta": 3}
    spec = place.write_spec(trainer={**TINY_TRAINER, "epochs": 6, "warmup_epochs": 0}, early_terminate=rule)
    lrs = [{"alpha": 0.3, "base_lr": lr} for lr in (0.03, 1e-6, 0.03)]
    sweep_id = place.register(spec, *lrs, parameters={"alpha": {"value": 0.3}, "base_lr": {"min": 1e-6, "max": 0.1}})
    (place.folder / f"{sweep_id}-run0.go").touch()
    process = place.start_agent(sweep_id)
    double = place.double
    good, bad, on_page = double.sweeps[sweep_id].runs
    # what is before the gate arrives, and the double stops the bad one by it
    wait_until(lambda: (place.folder / f"{on_page}.there").exists(), "the third run has begun", place)
    assert double.stopped == {bad}
    wait_until(lambda: epochs_of(place, on_page) == 4, "its rows are there", place)
    double.stop(on_page)
    assert ended(process, place) == 0
    assert double.agents["agent0"].commands.count("stop") >= 2
    assert double.exit_code == {good: 0, bad: 0, on_page: 0}
    assert double.preempting == set()
    assert double.sweeps[sweep_id].handed_out == [good, bad, on_page]
    results = place.results(sweep_id)
    assert states(results) == ["complete", "pruned", "pruned"]
    assert epochs_of(place, good) == 6
    for run_id in (bad, on_page):
        folder = trial_of(results, run_id)
        assert split_rows(double.rows(run_id)) == csv_rows(folder)
        assert 4 <= epochs_of(place, run_id) < 6
        assert (folder / "checkpoint" / "last.pt").exists()
        assert double.summary[run_id]["summary/best_loss"] > 0


# --- a server that fails while a run trains: the trial as its agent starts it, in this process


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


def run_of(place: Place) -> tuple[str, dict[str, str]]:
    """A run of a sweep of 8 epochs: its id, and the environment in which an agent starts its trial."""
    sweep_id = place.register(place.write_spec(trainer={**TINY_TRAINER, "epochs": 8}), {"alpha": 0.3, "base_lr": 0.02})
    run_id = f"{sweep_id}-run0"
    agents = {"WANDB_SWEEP_ID": sweep_id, "WANDB_PROJECT": "p", "WANDB_ENTITY": "me"}
    return run_id, {"WANDB_RUN_ID": run_id, **agents}


@pytest.mark.parametrize("behaviour", ["error", "rate_limit", "hang", "gone"])
def test_training_goes_on_while_the_server_fails_and_all_rows_arrive_once_it_is_back(place, behaviour):
    # by default wandb may wait a minute before it tries again
    place.environment["WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS"] = "2"
    run_id, environment = run_of(place)

    def fails() -> None:
        wait_until(lambda: epochs_of(place, run_id) == 3, "the rows of three epochs", place)
        fail(place.double, behaviour)

    def is_back() -> None:
        assert epochs_of(place, run_id) == 3
        mend(place.double, behaviour)

    with before_epochs({3: fails, 7: is_back}):
        done = place.call(single.main, "tiny.yaml", "--alpha=0.3", "--base_lr=0.02", **environment)
    assert done.code == 0
    assert epochs_of(place, run_id) == 8
    folder = trial_of(place.results(environment["WANDB_SWEEP_ID"]), run_id)
    assert split_rows(place.double.rows(run_id)) == csv_rows(folder)
    assert place.double.state(run_id) == "finished"


@pytest.mark.parametrize("behaviour", ["gone", "refuse_key"])
def test_a_run_that_outlives_the_server_is_whole_on_disk_and_synced_later(place, behaviour):
    run_id, environment = run_of(place)

    # before the first epoch: what the diagnosis says of it is an alert, which W&B's client tries again and again
    with before_epochs({0: lambda: fail(place.double, behaviour)}):
        done = place.call(single.main, "tiny.yaml", "--alpha=0.3", "--base_lr=0.02", **environment)
    assert done.code == 0
    left = [child.name() for child in psutil.Process().children(recursive=True)]
    assert [name for name in left if "wandb" in name] == [], "W&B's service is left"
    results = place.results(environment["WANDB_SWEEP_ID"])
    assert states(results) == ["complete"]
    mend(place.double, behaviour)
    synced = place.call(sync.main, results)
    assert synced.code == 0, synced.err
    assert split_rows(place.double.rows(run_id)) == csv_rows(trial_of(results, run_id))
    assert epochs_of(place, run_id) == 8
    assert place.double.sweep_of(run_id) == environment["WANDB_SWEEP_ID"]
    assert place.double.group(run_id) == "tiny"
    assert place.double.state(run_id) == "finished"


# --- an agent that python -m sweep.agent runs


def start_command(place: Place, spec: Path, *options: str) -> subprocess.Popen[bytes]:
    return place.start("-m", "sweep.agent", spec.name, "--create", *options, log="agent.log")


@pytest.mark.process
def test_ctrl_c_reaches_the_trial_once_and_the_run_waits_for_another_agent(place):
    place.environment["GATE"] = "2"
    place.double.hand_out(grid(alpha=[0.3, 0.5]))
    spec = place.write_spec(parameters={"alpha": {"min": 0.1, "max": 0.9}}, search={})
    process = start_command(place, spec, "--count", "2")
    wait_until(lambda: list(place.folder.glob("*.there")), "it trains", place)
    process.send_signal(signal.SIGINT)
    assert ended(process, place) == 0  # W&B's agent ends with 0
    (sweep,) = place.double.sweeps.values()
    (run_id,) = sweep.handed_out
    assert place.double.state(run_id) == "preempted"
    assert sweep.queue[0].run_id == run_id
    assert (trial_of(place.results(sweep.id), run_id) / "checkpoint" / "last.pt").exists()
    assert place.family() == []
    assert "Traceback" not in place.output()


@pytest.mark.process
def test_the_exit_code_of_the_agent_is_passed_on(place):
    place.write_spec()
    done = place.call(agent.main, "tiny.yaml", "--count", "1", WANDB_AGENT_KILL_DELAY="not a number")
    assert done.code == 1


@pytest.mark.process
def test_with_scheduler_optuna_suggests_what_the_agent_here_runs(tmp_path, frame_stores):
    with SchedulerDouble() as double, place_of(tmp_path, frame_stores, double) as place:
        place.write_spec()
        done = place.call(agent.main, "tiny.yaml", "--count", "2", "--scheduler", "--results", "here")
        assert done.code == 0, done.out + done.err
        (sweep,) = double.sweeps.values()
        assert [values["alpha"] for values in double.queued[:2]] == [0.5, 0.75]  # the presets come first
        assert len(sweep.handed_out) == len(set(sweep.handed_out)) == 2
        assert [double.state(run_id) for run_id in sweep.handed_out] == ["finished", "finished"]
        assert states(place.folder / "here") == ["complete", "complete"]


@pytest.mark.process
def test_an_agent_whose_scheduler_fails_does_not_wait_for_ever(place):
    place.write_spec()  # this server knows no schedulers, as older ones
    done = place.call(agent.main, "tiny.yaml", "--count", "2", "--scheduler")
    assert done.code == 1, done.out + done.err
    assert "error: wandb sweep-scheduler has failed" in done.err
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
