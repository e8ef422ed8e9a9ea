"""`python -m sweep.trial` as a user or W&B's agent starts it: one trial, its files, its ends, its resumption."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from gate import before_epochs

from model.config import TrainConfig
from model.configfile import load_yaml
from model.errors import ConfigError
from model.sinks import read_csv
from sweep import run
from sweep.report.page import write_report
from sweep.results import ResultsFolder
from sweep.single import Signals, key_of, main
from sweep.spec import SweepSpec, load_spec
from sweep.study import Outcome
from sweep.trial import LOOK_EVERY_S
from sweep.trials_folder import TrialsFolder
from sweep.wandb_client import reset_client
from sweep.warm_start import load_warm_start
from tests.inline import inline_runner
from tests.offline import read_history, read_summary
from tests.sweeping import TINY_TRAINER, tiny_content, trial_folders
from tests.wandb_double import WandbDouble

LIMIT_S = 300  # half a minute where the machine does nothing else
AGENTS = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_API_KEY")


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment of an agent; what the command sets for its own process is taken back."""
    for name in (*AGENTS, "CUDA_VISIBLE_DEVICES", "WANDB_SERVICE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write_spec(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content(**changes)), encoding="utf-8")
    return path


def table(results: Path) -> list[dict[str, str]]:
    with (results / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(trial: Path) -> tuple[bytes, bytes]:
    return (trial / "batch.csv").read_bytes(), (trial / "epoch.csv").read_bytes()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trials by hand: the spec's file and the results folder."""
    folder = tmp_path_factory.mktemp("two")
    spec, results = write_spec(folder), folder / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for alpha in ("0.3", "0.5"):
            assert main([str(spec), "--results", str(results), f"--alpha={alpha}", "--base_lr=0.03"]) == 0
    return spec, results


def test_trials_by_hand_make_a_results_folder_that_every_reader_takes(two: tuple[Path, Path]) -> None:
    spec, results = two
    rows = table(results)
    assert [(row["trial"], row["state"], row["epochs_done"], row["alpha"]) for row in rows] == [
        ("0000", "complete", "3", "0.3"),
        ("0001", "complete", "3", "0.5"),
    ]
    last = read_csv(results / "trials/0000/epoch.csv")[-1]
    assert float(rows[0]["objective/value"]) == last["objective/value"]
    assert "tiny" in write_report(results).read_text(encoding="utf-8")
    content = load_yaml(spec) | {"name": "next", "search": {"warm_start": [str(results)]}}
    warm = load_warm_start([results], SweepSpec.model_validate(content))
    assert sorted(prior.values["alpha"] for prior in warm.prior) == [0.3, 0.5]


def test_best_yaml_is_the_config_of_the_best_trial(two: tuple[Path, Path]) -> None:
    results = two[1]
    best = min(table(results), key=lambda row: float(row["objective/value"]))
    config = TrainConfig.model_validate(load_yaml(results / "best.yaml"))
    assert config == TrainConfig.model_validate(load_yaml(results / "trials" / best["trial"] / "config.yaml"))
    assert "not confirmed" in (results / "best.yaml").read_text(encoding="utf-8")


def test_the_same_values_are_the_same_trial_and_are_not_trained_again(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    spec, results = two
    before = {path: path.read_bytes() for path in results.glob("trials/*/*.csv")}
    assert main([str(spec), "--results", str(results), "base_lr=3e-2", "++alpha=0.30"]) == 0
    assert "it had trained to its end before" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in results.glob("trials/*/*.csv")} == before
    assert [row["state"] for row in table(results)] == ["complete", "complete"]


def test_a_sweep_does_not_mix_its_trials_with_single_ones(two: tuple[Path, Path], tmp_path: Path) -> None:
    spec = load_spec(two[0])
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"python -m sweep\.trial ran; give another"):
            ResultsFolder(two[1]).check(spec, resume)
    of_a_sweep = tmp_path / "sweep"
    of_a_sweep.mkdir()
    (of_a_sweep / "study.journal").touch()
    with pytest.raises(ConfigError, match=r"holds a sweep of python -m sweep\.run; give another folder"):
        TrialsFolder(of_a_sweep, spec).claim("hand-1", spec.trainer)


def test_a_folder_takes_trials_of_one_spec_only(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    spec, results = two
    words = [str(spec), "--results", str(results), "--set", "objective.ratio_weight=0", "--alpha=0.7"]
    assert main(words) == 2
    assert "objective.ratio_weight: 0.5 there, 0.0 here" in capsys.readouterr().err
    assert main([str(spec), "--results", str(results), "--alpha=0.7", "--epochs=1"]) == 2
    assert "trainer.epochs: 3 there, 1 here" in capsys.readouterr().err


def test_what_the_spec_does_not_search_makes_a_folder_of_its_own(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert main([str(spec), "--epochs=1", "--data={'frame_stride': 2}"]) == 0
    (results,) = (tmp_path / "results").iterdir()
    assert results.name == "tiny-trials-data.frame_stride-2-epochs-1"
    assert load_yaml(results / "best.yaml")["data"]["frame_stride"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--alpa=0.3"], "error: unknown parameter 'alpa'; did you mean 'alpha'?"),
        (["--alpha=2"], "error: trial: alpha = 2.0 and no beta"),
        (["--set", "trainr.epochs=2"], "unknown key 'trainr'; did you mean 'trainer'?"),
        (["--mask_ratio=0.01"], "mask_ratio"),
        (["--data.source=frames", "--data.root=nowhere"], "nowhere"),
        (["--set", "resources.gpu=8"], "resources.gpu = 8, but of the GPUs"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_results(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write_spec(tmp_path)), *words]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert len(shown.strip().splitlines()) == 1
    assert not any(tmp_path.glob("results/*/trials/*/batch.csv"))


def test_the_variable_of_the_former_supervisor_is_an_error_that_names_what_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TACTILE_SWEEP_SLOT", "1")
    assert main([str(write_spec(tmp_path)), "--alpha=0.3"]) == 2
    assert "TACTILE_SWEEP_SLOT is no more; give the agent its GPUs itself: CUDA_VISIBLE_DEVICES=0" in (
        capsys.readouterr().err
    )


def test_a_trial_that_diverges_says_why_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path, trainer={**TINY_TRAINER, "clip_grad": None})
    results = tmp_path / "results/tiny-trials"
    assert main([str(spec), "--base_lr=1e30"]) == 1
    assert "diverged in epoch 1" in capsys.readouterr().out
    (row,) = table(results)
    assert row["state"] == "diverged"
    assert "nan" in row["reason"] or "inf" in row["reason"]
    content = read_summary(results)
    assert content["exit_code"] == 1
    assert content["summary"]["objective/value"] != content["summary"]["objective/value"]  # NaN
    assert "nan" in content["summary"]["diverged"] or "inf" in content["summary"]["diverged"]
    assert not (results / "best.yaml").exists()


def test_an_agents_trial_is_refused_offline_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert main([str(write_spec(tmp_path)), "--alpha=0.3"]) == 2
    assert "an agent's trials are online only" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_an_agents_parameter_file_counts_where_the_command_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config-run1.yaml"
    file.write_text("wandb_version: 1\nalpa:\n  value: 0.3\n")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "me/project/sweep1")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    assert main([str(write_spec(tmp_path))]) == 2
    assert "config-run1.yaml: unknown parameter 'alpa'; did you mean 'alpha'?" in capsys.readouterr().err


def forked(body: Callable[[], int], printed: Path) -> int:
    """Run `body` in a forked child to its end; what it prints goes to the file. Returns its exit code, or -signal."""
    reset_client()  # a service is not shared with a fork
    if (child := os.fork()) == 0:
        code = 70
        try:
            with printed.open("w", buffering=1) as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
                sys.stdout, sys.stderr = file, file
                code = body()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on_to_the_same_rows(
    tmp_path: Path, number: signal.Signals
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as under nohup, and so it stays in what is started from here")
    spec = write_spec(tmp_path, trainer={**TINY_TRAINER, "epochs": 6})
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    words = [str(spec), "--alpha=0.3", "--results"]

    def signalled() -> None:
        os.kill(os.getpid(), number)
        time.sleep(LOOK_EVERY_S)  # now the trial looks whether it is to stop

    def body() -> int:
        with before_epochs({3: signalled}):
            return main([*words, str(stopped)])

    assert forked(body, tmp_path / "printed") == -number
    printed = (tmp_path / "printed").read_text()
    assert "with a checkpoint; the same command goes on from there" in printed
    assert "Traceback" not in printed
    assert table(stopped)[0]["state"] == "running"
    assert table(stopped)[0]["epochs_done"] == "3"
    for results in (stopped, whole):
        assert main([*words, str(results)]) == 0
    assert rows_of(stopped / "trials/0000") == rows_of(whole / "trials/0000")
    assert read_history(stopped) == read_history(whole)
    assert table(stopped)[0]["state"] == "complete"


def test_an_agents_run_that_is_preempted_before_it_trains_is_marked_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_spec(tmp_path, wandb={"mode": "auto"}, trainer={**TINY_TRAINER, "epochs": 400})
    with WandbDouble() as double:
        agent = {"WANDB_RUN_ID": "run1", "WANDB_SWEEP_ID": "sweep1", "WANDB_PROJECT": "p", "WANDB_ENTITY": "me"}
        server = {"WANDB_BASE_URL": double.url, "WANDB_API_KEY": "0123456789" * 4, "HOME": str(tmp_path)}
        for name, value in (agent | server).items():
            monkeypatch.setenv(name, value)

        def body() -> int:
            def signalled(place: TrialsFolder, *claimed: Any) -> Any:
                os.kill(os.getpid(), signal.SIGTERM)
                return claim(place, *claimed)

            claim = TrialsFolder.claim
            TrialsFolder.claim = signalled  # type: ignore[method-assign]
            with before_epochs({0: lambda: time.sleep(LOOK_EVERY_S)}):
                return main([str(spec), "--alpha=0.3"])

        assert forked(body, tmp_path / "printed") == -signal.SIGTERM, (tmp_path / "printed").read_text()
        assert double.state("run1") == "preempted"
        assert double.sweep_of("run1") == "sweep1"
    assert "interrupted in epoch 1, with a checkpoint; W&B hands it out again" in (tmp_path / "printed").read_text()


def test_a_terminal_that_is_gone_does_not_end_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_spec(tmp_path)
    read, write = os.pipe()
    os.close(read)
    terminal = os.fdopen(write, "w", buffering=1)
    monkeypatch.setattr("sys.stdout", terminal)
    assert main([str(spec), "--alpha=0.3", "--results", str(tmp_path / "r")]) == 0
    assert sys.stdout is not terminal
    with suppress(BrokenPipeError):  # what was not written
        terminal.close()
    assert table(tmp_path / "r")[0]["state"] == "complete"


def test_a_value_whose_condition_does_not_hold_is_an_error_and_one_that_the_spec_fulfils_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = {"alpha": {"min": 0.1, "max": 0.9}, "mode": {"values": ["joint", "alternating"]}}
    spec = write_spec(tmp_path, parameters=parameters, search={"conditions": {"alpha": {"mode": "joint"}}})
    assert main([str(spec), "--alpha=0.2", "--results", "r"]) == 0
    assert load_yaml(tmp_path / "r/trials/0000/config.yaml")["alpha"] == 0.2
    assert table(tmp_path / "r")[0]["alpha"] == "0.2"
    assert main([str(spec), "--alpha=0.2", "--mode=alternating", "--results", "r"]) == 2
    assert "alpha matters only with mode = 'joint'" in capsys.readouterr().err


def test_a_folder_whose_beginner_was_killed_gets_its_uid(two: tuple[Path, Path], tmp_path: Path) -> None:
    spec = load_spec(two[0])
    folder = TrialsFolder(tmp_path / "results", spec)
    folder.claim("a", spec.trainer)
    uid = folder.uid
    (tmp_path / "results/provenance.json").unlink()
    folder.claim("b", spec.trainer)
    assert folder.uid
    assert folder.uid != uid


def test_a_second_signal_ends_the_process_at_once_and_a_forwarded_one_does_not(tmp_path: Path) -> None:
    signals = Signals()
    signals.training = True
    with signals.caught():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # what Slurm sends to all, and what the agent passes on of it
        assert signals.caught_one == signal.SIGTERM

    def body() -> int:
        signals = Signals()
        signals.training = True
        with signals.caught():
            os.kill(os.getpid(), signal.SIGTERM)
            print("once", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("twice", flush=True)
        return 0

    assert forked(body, tmp_path / "printed") == -signal.SIGINT
    assert (tmp_path / "printed").read_text() == "once\n"


@pytest.mark.process
def test_processes_that_begin_at_once_get_trials_of_their_own(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    results = tmp_path / "results"
    keys = [[f"{process}-{number}" for number in range(5)] for process in range(4)]
    loaded, together = load_spec(spec), multiprocessing.get_context("fork")
    gate = together.Barrier(4)

    def work(own: list[str]) -> None:
        folder = TrialsFolder(results, loaded)
        gate.wait()
        for key in own:
            record = folder.claim(key, loaded.trainer)
            folder.ended(record, loaded.trainer, Outcome.FAILED, reason=key)

    running = [together.Process(target=work, args=(own,)) for own in keys]
    for process in running:
        process.start()
    for process in running:
        process.join(LIMIT_S)
    assert [process.exitcode for process in running] == [0] * 4
    runs = json.loads((results / "runs.json").read_text())
    assert sorted(runs) == sorted(key for own in keys for key in own)
    assert sorted(runs.values()) == [f"{number:04d}" for number in range(20)]
    assert {row["trial"]: row["reason"] for row in table(results)} == {trial: key for key, trial in runs.items()}


def test_a_key_depends_on_every_field_and_on_nothing_else() -> None:
    config = TrainConfig()
    assert key_of(config) == key_of(TrainConfig.model_validate(config.model_dump()))
    assert key_of(config) != key_of(config.model_copy(update={"seed": 1}))


def test_damaged_books_are_named(two: tuple[Path, Path], tmp_path: Path) -> None:
    spec = load_spec(two[0])
    folder = TrialsFolder(tmp_path / "results", spec)
    record = folder.claim("a", spec.trainer)
    (tmp_path / "results/trials.csv").write_text("trial,state\nx,y\n")
    with pytest.raises(ValueError, match=r"trials\.csv: damaged"):
        folder.ended(record, spec.trainer, Outcome.COMPLETE, 1.0, 3)
    (tmp_path / "results/runs.json").write_text("[")
    with pytest.raises(ValueError, match=r"runs\.json: damaged"):
        folder.claim("b", spec.trainer)


def test_a_trial_logs_what_a_trial_of_a_sweep_logs(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, run_cap=2, resources={"max_concurrent": 1})
    swept, alone = tmp_path / "swept", tmp_path / "alone"
    with inline_runner():
        assert run.main([str(spec), "--results", str(swept)]) == 0
    for row in table(swept):
        values = [f"--alpha={row['alpha']}", f"--base_lr={row['base_lr']}"]
        assert main([str(spec), "--results", str(alone), *values]) == 0
    for there, here in zip(trial_folders(swept), trial_folders(alone), strict=True):
        assert rows_of(here) == rows_of(there)
        assert (here / "config.yaml").read_bytes() == (there / "config.yaml").read_bytes()
    records = [sorted(read_history(results), key=lambda row: sorted(row.items())) for results in (swept, alone)]
    assert records[0] == records[1]
    runs = [read_summary(results) for results in (swept, alone)]
    for content in runs:
        content["summary"] = {
            name: value
            for name, value in content["summary"].items()
            if not name.startswith("_") and name not in ("summary/total_time_seconds", "pictures/reconstruction")
        }
    assert runs[0]["summary"].keys() == runs[1]["summary"].keys()
    for content in runs:  # which wandb gives each run itself
        content["config"].pop("_wandb", None)
    assert {key: runs[0][key] for key in ("config", "project", "tags", "exit_code")} == {
        key: runs[1][key] for key in ("config", "project", "tags", "exit_code")
    }
