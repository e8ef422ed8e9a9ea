"""Several processes train as one would: the same losses, whoever starts, interrupts or kills them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.data.clips import load_clips
from model.distributed import ALONE, World, joined
from model.errors import ConfigError
from model.folder import LAST
from model.metrics import Level
from model.sinks import CsvSink, Event, Row, read_csv
from model.team import Team, TeamError
from model.trainer import NonFiniteLossError, Trainer
from sweep.blocks import WandbSettings
from sweep.trial import TrialRun
from sweep.trial_job import TrialJob
from tests.sweeping import tiny_content as sweep_content
from tests.sweeping import trial_folders
from tests.tiny import tiny_config, tiny_content
from tests.watching import comparable

ROOT = Path(__file__).resolve().parents[1]
SAME = 1e-5  # between one process and several; they add up in another order
SOON_S = 20.0  # a machine may be busy; the time limits of torch.distributed are 10 minutes and more

CASES: dict[str, dict[str, Any]] = {
    "joint": {"clip_grad": 0.1, "accum_iter": 2, "data": {"hflip": 0.5, "vflip": 0.5}},
    "static": {"mode": "static"},
    "dynamic": {"mode": "dynamic", "encoder": {"static_embed": "frame", "grad_checkpointing": True}},
    "alternating": {"mode": "alternating", "accum_iter": 2, "mask_kind": "block"},
    "uncertainty": {"weighting": "uncertainty"},
    "famo": {"weighting": "famo", "accum_iter": 2},
    "sensors": {"encoder": {"sensors": ["digit", "gelsight"]}, "data": {"sensor": "gelsight"}, "ema_decay": 0.9},
    "layer decay": {"layer_decay": 0.8, "norm_pix_loss": True},
}


def config_of(case: str) -> Any:
    return tiny_config(epochs=4, **CASES[case])


def assert_same(one: list[Event], several: list[Event]) -> None:
    """Equal names, and values equal to 1e-5."""
    for (level, row), (other_level, other) in zip(comparable(one), comparable(several), strict=True):
        assert (level, list(row)) == (other_level, list(other))
        assert other == pytest.approx(row, abs=SAME, rel=SAME)


def assert_rows_same(one: list[Row], several: list[Row]) -> None:
    assert len(one) == len(several) > 0
    for row, other in zip(one, several, strict=True):
        assert other == pytest.approx(row, abs=SAME, rel=SAME)


def rows_of(folder: Path) -> tuple[list[Row], list[Row]]:
    return read_csv(folder / "batch.csv"), read_csv(folder / "epoch.csv")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < give_up, f"waited {SOON_S} s for {what}"
        time.sleep(0.02)


def helpers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "model.team" in child.cmdline()]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# --- who does what ---


@given(share=st.integers(1, 50), processes=st.integers(1, 16))
def test_the_processes_shares_are_the_micro_batch(share: int, processes: int) -> None:
    config = tiny_config(batch_size=share * processes)
    clips = list(range(config.batch_size))
    rows = [World(rank, processes).rows(config) for rank in range(processes)]
    assert [clip for part in rows for clip in clips[part]] == clips
    assert {len(clips[part]) for part in rows} == {share}


@given(batch_size=st.integers(1, 200), processes=st.integers(2, 16))
def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_the_nearest_that_can(
    batch_size: int, processes: int
) -> None:
    config = tiny_config(batch_size=batch_size)
    if batch_size % processes == 0:
        assert config.batch_share(processes) * processes == batch_size
        return
    with pytest.raises(ConfigError, match=f"batch_size = {batch_size} is the batch of all {processes}") as caught:
        config.batch_share(processes)
    fits = [int(size) for size in str(caught.value).rpartition("use ")[2].split(" or ")]
    assert all(size > 0 and size % processes == 0 and abs(size - batch_size) < processes for size in fits)


def test_a_process_that_nobody_started_with_others_is_alone() -> None:
    with joined("cpu", {}) as world:
        assert world is ALONE
    with Team(1, "cpu") as team:
        assert team.world is ALONE


def test_a_device_that_trains_in_one_process_only_is_refused() -> None:
    with pytest.raises(ConfigError, match="device = 'mps' trains in one process"), joined("mps", {"WORLD_SIZE": "2"}):
        pass


# --- the same training ---


@pytest.fixture(scope="module")
def of_two() -> dict[str, list[Event]]:
    """What two processes report, of each case; the helper is started once."""
    with Team(2, "cpu") as team, team.explaining():
        return {case: list(team.trainer(config_of(case), load_clips(config_of(case).data)).train()) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_report_what_one_does(case: str, of_two: dict[str, list[Event]]) -> None:
    assert_same(list(Trainer(config_of(case)).train()), of_two[case])


def test_an_interrupted_run_goes_on_to_the_same_rows_on_two_processes_and_on_one(tmp_path: Path) -> None:
    config = tiny_config(epochs=4, ema_decay=0.9, mode="alternating")
    clips = load_clips(config.data)
    path = tmp_path / "last.pt"
    with Team(2, "cpu") as team, team.explaining():
        whole = list(team.trainer(config, clips).train())
        part = team.trainer(config, clips)
        events = part.train()
        before = [next(events) for _ in range(9)]  # within the second epoch
        save_checkpoint(path, part.state_dict())
        with pytest.raises(CheckpointError):  # the team is as good as before
            team.trainer(tiny_config(mode="alternating"), clips, load_checkpoint(path))
        after = list(team.trainer(config, clips, load_checkpoint(path)).train())
    assert comparable(before + after) == comparable(whole)
    alone = Trainer(config, clips)
    alone.load_state_dict(load_checkpoint(path))
    assert_same(list(alone.train()), after)


def test_a_loss_that_is_no_number_ends_all_processes_and_the_team_can_train_again() -> None:
    broken, sound = tiny_config(base_lr=1e30, clip_grad=None), tiny_config()
    with Team(2, "cpu") as team, team.explaining():
        with pytest.raises(NonFiniteLossError):
            list(team.trainer(broken, load_clips(broken.data)).train())
        assert_same(list(Trainer(sound).train()), list(team.trainer(sound, load_clips(sound.data)).train()))


def test_what_only_the_leading_process_refuses_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    config = tiny_config(encoder={"pretrained": str(tmp_path / "none.safetensors")})
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"none\.safetensors"), Team(2, "cpu") as team, team.explaining():
        team.trainer(config, load_clips(config.data))
    assert time.monotonic() - started < SOON_S
    assert helpers_of(psutil.Process()) == []


# --- by torchrun ---


def torchrun(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_by_torchrun_to_the_rows_that_it_would_have_had(tmp_path: Path) -> None:
    file, out, config = tmp_path / "run.yaml", tmp_path / "out", tiny_config(epochs=3)
    file.write_text(yaml.safe_dump(tiny_content(epochs=3)))
    alone, part, sink = list(Trainer(config).train()), Trainer(config), CsvSink(out)
    for event in itertools.islice(part.train(), 9):  # into the second epoch
        sink.log(event)
    sink.close(0)
    save_checkpoint(out / LAST, part.state_dict())

    done = torchrun("-m", "model.train", file, "--resume", out / LAST)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("rows in") == 1  # one of them speaks
    batches, epochs = rows_of(out)
    assert_rows_same([event.values for event in alone if event.level is Level.BATCH], batches)
    assert_rows_same([event.values for event in alone if event.level is Level.EPOCH], epochs)


# every rank prints a digest of its weights: ranks that drift apart show in no loss
WEIGHTS = """
import hashlib, sys
from model.distributed import joined
from model.trainer import Trainer
from tests.tiny import tiny_config

with joined("cpu") as world:
    trainer = Trainer(tiny_config(mode="alternating", ema_decay=0.9, accum_iter=2), world=world)
    list(trainer.train()) if world.leads else trainer.follow()
    digest = hashlib.sha256()
    for model in (trainer.model, trainer.judged):
        for value in model.state_dict().values():
            digest.update(value.numpy().tobytes())
    print("digest", digest.hexdigest(), flush=True)
"""


def test_the_weights_of_all_processes_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    script = tmp_path / "weights.py"
    script.write_text(WEIGHTS)
    done = torchrun(script, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    digests = [word for word in done.stdout.split() if len(word) == 64]
    assert len(digests) == 2
    assert len(set(digests)) == 1


# --- the end of a process ---


def train_and_lose_the_helper() -> None:
    config = tiny_config(epochs=10_000, warmup_epochs=1)
    with Team(2, "cpu") as team, team.explaining():
        [helper] = helpers_of(psutil.Process())
        for number, _ in enumerate(team.trainer(config, load_clips(config.data)).train()):
            if number == 5:
                helper.kill()


def test_a_helper_that_dies_is_an_error_that_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(TeamError, match=r"process 2 of the trial's 2 was killed by signal 9"):
        train_and_lose_the_helper()
    assert time.monotonic() - started < SOON_S
    assert list(tmp_path.glob("tactile-team-*")) == []
    assert helpers_of(psutil.Process()) == []


def test_a_helper_that_cannot_start_is_an_error_that_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(TeamError, match=r"process 2 of the trial's 2 ended with exit code 1"):
        Team(2, "cpu")


LEADER = """
import sys, time
import model.team
from model.data.clips import load_clips
from model.team import Team
from tests.tiny import tiny_config

model.team.GRACE_S = 0.5
config = tiny_config(epochs=100_000, warmup_epochs=1)
with Team(2, "cpu") as team:
    for event in team.trainer(config, load_clips(config.data)).train():
        if event.values.get("epoch") == 1:
            print("trains", flush=True)
            if "stuck" in sys.argv:
                time.sleep(600)
"""


@pytest.fixture
def leader(request: Any, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A leading process that trains, or is stuck after a while, and its helper."""
    arguments = [sys.executable, "-c", LEADER, *getattr(request, "param", ())]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "trains\n"
            [helper] = helpers_of(psutil.Process(process.pid))
            yield process, helper
        finally:
            process.kill()


def test_a_killed_process_leaves_no_helper_and_no_file(leader: Any, tmp_path: Path) -> None:
    process, helper = leader
    process.kill()
    wait_for(lambda: ended(helper), "the helper's end")
    wait_for(lambda: not list(tmp_path.glob("tactile-team-*")), "the removal of its files")


@pytest.mark.parametrize("leader", [["stuck"]], indirect=True)
def test_a_process_that_cannot_notice_its_helpers_death_ends_too(leader: Any) -> None:
    process, helper = leader
    helper.kill()
    assert process.wait(SOON_S) == 1
    assert "process 2 of the trial's 2 was killed by signal 9" in process.stderr.read()


# --- trials ---


def job(results: Path, processes: int) -> TrialJob:
    return TrialJob(
        trial="0000",
        sweep="tiny",
        sweep_uid="abcd1234",
        results=results,
        config=tiny_config(epochs=3, warmup_epochs=1),
        values={},
        wandb=WandbSettings(mode="disabled"),
        project="tests",
        processes=processes,
    )


def trained(run: TrialRun) -> None:
    while not run.run_epoch().finished:
        pass


TOLD = 7  # exit code of a trial that ended with an error that says what happened


def lose_a_helper(of: TrialJob) -> None:
    """Train an epoch and save, then go on without the other process."""
    run = TrialRun(of)
    run.run_epoch()
    run.save(of.folder / LAST)
    [helper] = helpers_of(psutil.Process())
    helper.kill()
    try:
        trained(run)
    except TeamError as error:
        sys.exit(TOLD if "killed by signal 9" in str(error) else 1)


def test_a_trial_of_two_processes_that_lost_one_goes_on_to_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    one, two, disturbed = (job(tmp_path / name, size) for name, size in (("one", 1), ("two", 2), ("disturbed", 2)))
    trained(TrialRun(one))
    trained(TrialRun(two))
    for rows, others in zip(rows_of(one.folder), rows_of(two.folder), strict=True):
        assert_rows_same(rows, others)

    # in a process of its own: a thread of gloo's may see the broken connection first, and aborts its process
    loser = get_context("spawn").Process(target=lose_a_helper, args=(disturbed,))
    loser.start()
    loser.join(120)
    assert loser.exitcode in (TOLD, -signal.SIGABRT)
    trained(TrialRun(disturbed))
    assert rows_of(disturbed.folder) == rows_of(two.folder)
    assert helpers_of(psutil.Process()) == []


@pytest.mark.slow
def test_a_sweep_with_trials_of_two_processes_has_the_rows_of_one_process(tmp_path: Path) -> None:
    tables = {}
    for processes in (1, 2):
        resources = {"cpu": 2, "processes": processes}
        spec, results = tmp_path / f"{processes}.yaml", tmp_path / str(processes)
        spec.write_text(yaml.safe_dump(sweep_content(resources=resources, run_cap=2)), encoding="utf-8")
        command = [sys.executable, "-m", "sweep.run", str(spec), "--results", str(results)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        tables[processes] = [rows_of(folder) for folder in trial_folders(results)]
    assert len(tables[2]) == 2
    for alone, shared in zip(tables[1], tables[2], strict=True):
        for rows, others in zip(alone, shared, strict=True):
            assert_rows_same(rows, others)
