"""What a dry run predicts: the arithmetic on made-up measurements, and a real measurement of the tiny trainer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sweep.forecast import Forecast, epochs_with_stops, forecast
from sweep.forecast_text import print_forecast
from sweep.plan import SweepPlan, make_plan
from sweep.probe import Measurement, Took, measure, memory_task, read_answer, timing_task, train_a_little
from sweep.run import main
from tests.sweeping import TINY_TRAINER, tiny_spec
from tests.test_run import write_spec

TOOK = Took(
    updates=12, update_s=0.5, start_s=2.0, judge_s=1.0, host_bytes=10**9, csv_bytes=100, wandb_bytes=400, cut=False
)
MEASURED = Measurement(device="cpu", base=TOOK)
TRIAL_S = 2.0 + 3 * (6 * 0.5 + 1.0)  # 3 epochs of 6 updates


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)


def planned(**changes: Any) -> SweepPlan:
    return make_plan(tiny_spec(**changes))


def predicted(tmp_path: Path, measured: Measurement = MEASURED, **changes: Any) -> Forecast:
    return forecast(planned(**changes), measured, tmp_path / "not/there/yet")


def said(tmp_path: Path, measured: Measurement | None = MEASURED, **changes: Any) -> str:
    plan = planned(**changes)
    console = Console(width=500, record=True, quiet=False)
    with console.capture() as captured:
        print_forecast(plan, measured, forecast(plan, measured or Measurement(), tmp_path), console)
    return captured.get()


def test_a_trial_takes_its_updates_its_evaluations_and_its_start(tmp_path: Path) -> None:
    assert predicted(tmp_path).trial_s == pytest.approx(TRIAL_S)


def test_an_evaluation_that_was_not_reached_is_estimated_from_the_updates(tmp_path: Path) -> None:
    took = dataclasses.replace(TOOK, judge_s=None)
    judge_s = 0.5 * 8 / 8 / 3  # 8 held-out clips, 8 clips an update, a third of its work
    assert predicted(tmp_path, Measurement(base=took)).trial_s == pytest.approx(2.0 + 3 * (6 * 0.5 + judge_s))


def test_probes_count_as_often_as_they_are_made(tmp_path: Path) -> None:
    took = dataclasses.replace(TOOK, probe_s=5.0)
    trainer = {**TINY_TRAINER, "probe": {"label": "indenter", "every_epochs": 1}}
    assert predicted(tmp_path, Measurement(base=took), trainer=trainer).trial_s == pytest.approx(TRIAL_S + 15.0)
    trainer = {**TINY_TRAINER, "probe": {"label": "indenter"}}
    assert predicted(tmp_path, Measurement(base=took), trainer=trainer).trial_s == pytest.approx(TRIAL_S + 5.0)


@pytest.mark.parametrize(("cpu", "most", "at_a_time"), [(1, "auto", 4), (2, "auto", 2), (1, 3, 3), (4, 3, 1)])
def test_trials_run_side_by_side_as_resources_allow(tmp_path: Path, cpu: int, most: int | str, at_a_time: int) -> None:
    expected = predicted(tmp_path, resources={"cpu": cpu, "max_concurrent": most}, run_cap=8)
    assert expected.concurrent == at_a_time
    assert expected.search_s is not None
    rounds = -(-8 // at_a_time)
    assert expected.search_s[1] - rounds * TRIAL_S == pytest.approx(10.0)


def test_how_many_a_cluster_runs_at_a_time_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert predicted(tmp_path).search_s is None
    assert "only the cluster knows" in said(tmp_path)
    assert predicted(tmp_path, resources={"max_concurrent": 2}).concurrent == 2


def test_early_stopping_makes_the_time_a_range(tmp_path: Path) -> None:
    stop = {"type": "hyperband", "min_iter": 1, "eta": 3}
    trainer = {**TINY_TRAINER, "epochs": 9}
    plan = planned(early_terminate=stop, trainer=trainer, run_cap=11)
    # 2 presets; of 9 others all train 1 epoch, 3 of them 3 epochs, 1 of these 9
    assert epochs_with_stops(plan) == pytest.approx(2 * 9 + 9 * 1 + 3 * 2 + 1 * 6)
    least, most = forecast(plan, MEASURED, tmp_path).search_s or (0.0, 0.0)
    assert least < most
    assert "as early stopping decides" in said(tmp_path, early_terminate=stop, trainer=trainer, run_cap=11)


def test_a_rule_that_cannot_stop_anything_makes_no_range(tmp_path: Path) -> None:
    plan = planned(early_terminate={"type": "hyperband", "min_iter": 3, "eta": 3})
    assert epochs_with_stops(plan) == 4 * 3
    expected = forecast(plan, MEASURED, tmp_path)
    assert expected.search_s is not None
    assert expected.search_s[0] == expected.search_s[1]


def test_the_confirmation_is_counted(tmp_path: Path) -> None:
    expected = predicted(tmp_path, confirm={"top_k": 2, "seeds": [1, 2, 3]})
    assert expected.confirm_updates == 4 * 3 * 3 * 6  # configs, seeds, epochs, updates
    assert expected.confirm_s == pytest.approx(10.0 + 3 * TRIAL_S)
    assert predicted(tmp_path).confirm_s == 0.0


def test_the_disk_holds_a_checkpoint_and_the_rows_of_each_trial(tmp_path: Path) -> None:
    expected = predicted(tmp_path)
    assert expected.trial_bytes == expected.checkpoint_bytes + 21 * 500
    assert expected.disk_bytes == 4 * expected.trial_bytes + 2 * 4 * expected.checkpoint_bytes
    disabled = predicted(tmp_path, wandb={"mode": "disabled"})
    assert disabled.trial_bytes == disabled.checkpoint_bytes + 21 * 100


def test_too_little_of_anything_is_said(tmp_path: Path) -> None:
    large = dataclasses.replace(TOOK, host_bytes=10**15)
    assert "not enough, lower resources.max_concurrent" in said(tmp_path, Measurement(device="cpu", base=large))
    plan = planned()
    expected = dataclasses.replace(forecast(plan, MEASURED, tmp_path), free_bytes=10)
    console = Console(width=500)
    with console.capture() as captured:
        print_forecast(plan, MEASURED, expected, console)
    assert "10 bytes free: not enough" in captured.get()


def test_rows_are_held_against_what_wandb_suggests(tmp_path: Path) -> None:
    assert "21 a trial (W&B suggests at most 100,000)" in said(tmp_path)
    assert "9 a trial (W&B suggests at most 100,000)" in said(tmp_path, wandb={"log_every": 4})
    many = {**TINY_TRAINER, "epochs": 20_000}
    assert "its charts will be slow; wandb.log_every makes fewer" in said(tmp_path, trainer=many)
    assert "W&B is disabled" in said(tmp_path, wandb={"mode": "disabled"})


def test_what_was_not_measured_is_not_predicted(tmp_path: Path) -> None:
    text = said(tmp_path, Measurement(failed="no GPU here, and a trial asks for one"))
    assert "nothing: no GPU here, and a trial asks for one; time and memory cannot be predicted here" in text
    assert "disk" in text
    text = said(tmp_path, None)
    assert "--no-measure" in text
    assert "a trial about" not in text


def test_the_base_config_and_the_values_that_need_most_are_measured() -> None:
    parameters = {"alpha": {"min": 0.1, "max": 0.9}, "batch_size": {"values": [4, 8, 16]}}
    told: list[Measurement] = []
    train_a_little(timing_task(tiny_spec(parameters=parameters), limit_s=None), told.append)
    measured = told[-1]
    assert (measured.failed, measured.device) == (None, "cpu")
    base, demanding = measured.base, measured.demanding
    assert (base.updates, base.cut) == (12, False)
    assert 0.0 < base.update_s < 30.0
    assert base.judge_s is not None
    assert 50e6 < base.host_bytes < 5e9
    assert 100 < base.csv_bytes < 500 < base.wandb_bytes < 2000
    assert demanding is not None
    assert demanding.updates == 9  # an epoch has 3 updates of 16


@pytest.mark.process
def test_a_measurement_that_takes_too_long_is_cut_off_and_says_so(tmp_path: Path) -> None:
    wide = {**TINY_TRAINER, "encoder": {"width": 1024, "depth": 24, "heads": 16, "patch_size": 4}}
    measured = measure(tiny_spec(trainer=wide), limit_s=0.05)
    assert measured.failed == "there was no time for one update"
    assert "there was no time for one update" in said(tmp_path, measured)


ANSWER = json.dumps(dataclasses.asdict(Measurement(device="cpu", base=TOOK)))


def test_the_last_whole_line_of_the_process_counts_whatever_libraries_print() -> None:
    later = ANSWER.replace('"updates": 12', '"updates": 13')
    found = read_answer(f'3\nnull\n{ANSWER}\n{later}\n{{"loss": 1}}\n{later[:40]}', "", 0)
    assert found == Measurement(device="cpu", base=dataclasses.replace(TOOK, updates=13))


def test_what_a_process_told_before_it_was_ended_is_kept_and_why_it_ended_is_said() -> None:
    killed, crashed = read_answer(ANSWER, "", -9), read_answer(ANSWER, "Traceback\nKeyError: 'x'\n", 1)
    assert (killed.base, killed.too_large) == (TOOK, True)
    assert killed.failed == "the system ended it for want of memory"
    assert (crashed.base, crashed.too_large, crashed.failed) == (TOOK, False, "KeyError: 'x'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_here_is_the_reason() -> None:
    told: list[Measurement] = []
    spec = tiny_spec(resources={"gpu": 1}, trainer={**TINY_TRAINER, "device": "auto"})
    train_a_little(timing_task(spec), told.append)
    assert told == [Measurement(failed="no GPU here, and a trial asks for one")]


def test_memory_alone_is_measured_in_one_short_epoch_of_the_config_that_needs_most() -> None:
    parameters = {"alpha": {"min": 0.1, "max": 0.9}, "batch_size": {"values": [4, 8]}}
    told: list[Measurement] = []
    train_a_little(memory_task(tiny_spec(parameters=parameters)), told.append)
    took = told[-1].demanding
    assert took is not None
    assert (took.updates, took.cut, told[-1].base) == (3, False, Took())
    assert told[-1].host_room > 0


@pytest.mark.process
def test_a_dry_run_predicts_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a loaded machine may take longer than a user should wait
    monkeypatch.setattr("sweep.run.measure", lambda spec: measure(spec, limit_s=240.0))
    arguments = [str(write_spec(tmp_path)), "--results", str(tmp_path / "results"), "--dry-run"]
    assert main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "18 updates a trial, 72 in 4 trials" in printed
    assert "on this machine (cpu, 1 thread): " in printed
    assert "4 at a time: the search about" in printed
    assert "free" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]
