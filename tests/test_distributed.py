"""Several processes train as one would: the same losses, whoever starts, interrupts or kills them."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from tests.inline import Inline, sweep
from tests.sweeping import tiny_content as sweep_content
from tests.sweeping import trial_folders
from tests.tiny import tiny_config, tiny_content
from tests.watching import comparable

ROOT = Path(__file__).resolve().parents[1]
SAME = 1e-5  # between one process and several; they add up in another order
LIMIT_S = 300.0  # nothing takes so long, but the machine may be busy; below the limits of torch.distributed

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


def together(test: Any) -> Any:
    """Of a test that needs what two processes have reported."""
    return pytest.mark.process(pytest.mark.xdist_group("together")(test))


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
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, f"waited {LIMIT_S} s for {what}"
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


@dataclass
class Together:
    """What two processes report; the helper is started once for all of it."""

    of: dict[str, list[Event]]
    """All events of each case."""
    whole: list[Event]
    parted: list[Event]
    """Of a run that was interrupted in its second epoch, and went on."""
    after: list[Event]
    checkpoint: Path
    again: list[Event]
    """Of a sound run after one whose loss became infinite."""


INTERRUPTED = {"epochs": 4, "ema_decay": 0.9, "mode": "alternating"}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Together:
    path = tmp_path_factory.mktemp("two") / "last.pt"
    config = tiny_config(**INTERRUPTED)
    clips = load_clips(config.data)
    with Team(2, "cpu") as team, team.explaining():
        of = {case: list(team.trainer(config_of(case), load_clips(config_of(case).data)).train()) for case in CASES}
        whole = list(team.trainer(config, clips).train())
        part = team.trainer(config, clips)
        events = part.train()
        before = [next(events) for _ in range(9)]  # within the second epoch
        save_checkpoint(path, part.state_dict())
        with pytest.raises(CheckpointError):  # the team is as good as before
            team.trainer(tiny_config(mode="alternating"), clips, load_checkpoint(path))
        after = list(team.trainer(config, clips, load_checkpoint(path)).train())
        with pytest.raises(NonFiniteLossError):  # ends all processes' training, and the team can train again
            list(team.trainer(tiny_config(base_lr=1e30, clip_grad=None), clips).train())
        again = list(team.trainer(tiny_config(), clips).train())
    return Together(of, whole, before + after, after, path, again)


@together
@pytest.mark.parametrize("case", CASES)
def test_two_processes_report_what_one_does(case: str, of_two: Together) -> None:
    assert_same(list(Trainer(config_of(case)).train()), of_two.of[case])


@together
def test_an_interrupted_run_goes_on_to_the_same_rows_on_two_processes_and_on_one(of_two: Together) -> None:
    assert comparable(of_two.parted) == comparable(of_two.whole)
    alone = Trainer(tiny_config(**INTERRUPTED))
    alone.load_state_dict(load_checkpoint(of_two.checkpoint))
    assert_same(list(alone.train()), of_two.after)


@together
def test_after_a_loss_that_is_no_number_the_team_trains_as_before(of_two: Together) -> None:
    assert_same(list(Trainer(tiny_config()).train()), of_two.again)


@pytest.mark.process
def test_what_only_the_leading_process_refuses_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    config = tiny_config(encoder={"pretrained": str(tmp_path / "none.safetensors")})
    with pytest.raises(ConfigError, match=r"none\.safetensors"), Team(2, "cpu") as team, team.explaining():
        team.trainer(config, load_clips(config.data))
    assert helpers_of(psutil.Process()) == []


# --- by torchrun ---


# `python -m model.train`, of which each process prints a digest of its weights after the last update: processes that
# drift apart show in no loss
TELLING = """
import hashlib, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
from model.train import main

def tell(optimiser, *_):
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    digests.append(hashlib.sha256(b"".join(weight.detach().numpy().tobytes() for weight in weights)).hexdigest())

digests = []
register_optimizer_step_post_hook(tell)
code = main()
print(f"digest {digests[-1]}\\n", end="", flush=True)
sys.exit(code)
"""


@pytest.mark.process
def test_a_run_of_one_process_goes_on_by_torchrun_to_the_rows_that_it_would_have_had_and_to_equal_weights(
    tmp_path: Path,
) -> None:
    changes = {"epochs": 3, "mode": "alternating", "ema_decay": 0.9, "accum_iter": 2}
    file, out, config = tmp_path / "run.yaml", tmp_path / "out", tiny_config(**changes)
    file.write_text(yaml.safe_dump(tiny_content(**changes)))
    alone, part, sink = list(Trainer(config).train()), Trainer(config), CsvSink(out)
    for event in itertools.islice(part.train(), 5):  # into the second epoch
        sink.log(event)
    sink.close(0)
    save_checkpoint(out / LAST, part.state_dict())

    script = tmp_path / "telling.py"
    script.write_text(TELLING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", script]
    done = subprocess.run(
        [*map(str, command), str(file), "--resume", str(out / LAST)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("rows in") == 1  # one of them speaks
    batches, epochs = rows_of(out)
    assert_rows_same([event.values for event in alone if event.level is Level.BATCH], batches)
    assert_rows_same([event.values for event in alone if event.level is Level.EPOCH], epochs)
    digests = re.findall(r"digest (\w{64})", done.stdout)
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


@pytest.mark.process
def test_a_helper_that_dies_is_an_error_that_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # TMPDIR is read once only
    with pytest.raises(TeamError, match=r"process 2 of the trial's 2 was killed by signal 9"):
        train_and_lose_the_helper()
    assert list(tmp_path.glob("tactile-team-*")) == []
    assert helpers_of(psutil.Process()) == []


@pytest.mark.process
def test_a_helper_that_cannot_start_is_an_error_that_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # what helpers are started with
    with pytest.raises(TeamError, match=r"process 2 of the trial's 2 ended with exit code 1"):
        Team(2, "cpu")


LEADER = """
import signal, sys
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
                signal.pause()
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


@pytest.mark.process
def test_a_killed_process_leaves_no_helper_and_no_file(leader: Any, tmp_path: Path) -> None:
    process, helper = leader
    process.kill()
    wait_for(lambda: ended(helper), "the helper's end")
    wait_for(lambda: not list(tmp_path.glob("tactile-team-*")), "the removal of its files")


@pytest.mark.process
@pytest.mark.parametrize("leader", [["stuck"]], indirect=True)
def test_a_process_that_cannot_notice_its_helpers_death_ends_too(leader: Any) -> None:
    process, helper = leader
    helper.kill()
    assert process.wait(LIMIT_S) == 1
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


@pytest.mark.process
def test_a_trial_of_two_processes_that_lost_one_goes_on_to_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    one, two, disturbed = (job(tmp_path / name, size) for name, size in (("one", 1), ("two", 2), ("disturbed", 2)))
    trained(TrialRun(one))
    trained(TrialRun(two))
    for rows, others in zip(rows_of(one.folder), rows_of(two.folder), strict=True):
        assert_rows_same(rows, others)

    # in a process of its own: a thread of gloo's may see the broken connection first, and aborts its process
    loser = get_context("spawn").Process(target=lose_a_helper, args=(disturbed,))
    loser.start()
    loser.join(LIMIT_S)
    assert loser.exitcode in (TOLD, -signal.SIGABRT)
    trained(TrialRun(disturbed))
    assert rows_of(disturbed.folder) == rows_of(two.folder)
    assert helpers_of(psutil.Process()) == []


@pytest.mark.process
def test_a_sweep_with_trials_of_two_processes_has_the_rows_of_one_process(tmp_path: Path) -> None:
    tables = {}
    for processes in (1, 2):
        resources = {"cpu": 2, "processes": processes}
        spec, results = tmp_path / f"{processes}.yaml", tmp_path / str(processes)
        spec.write_text(yaml.safe_dump(sweep_content(resources=resources, run_cap=2)), encoding="utf-8")
        ran = sweep(spec, results, engine=Inline(cpus=2))
        assert ran.code == 0, ran.err
        tables[processes] = [rows_of(folder) for folder in trial_folders(results)]
    assert len(tables[2]) == 2
    for alone, shared in zip(tables[1], tables[2], strict=True):
        for rows, others in zip(alone, shared, strict=True):
            assert_rows_same(rows, others)
