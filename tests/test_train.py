"""`python -m model.train` as a user runs it: files, refusals, going on, exit codes."""

from __future__ import annotations

import itertools
import json
import math
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from model.checkpoint import load_checkpoint, save_checkpoint
from model.sinks import read_csv
from model.train import load_config, main
from model.trainer import Trainer
from tests.metric_names import BATCH, SUMMARY
from tests.tiny import tiny_config, tiny_content

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return written(tmp_path / "run.yaml")


def written(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(tiny_content(**changes)))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "model.train", *map(str, arguments)]


@contextmanager
def in_update(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Within, `act` is called in the middle of this update of the training in this process; the first is 1."""
    counted = itertools.count(1)
    handle = register_optimizer_step_post_hook(lambda *_: act() if next(counted) == number else None)
    try:
        yield
    finally:
        handle.remove()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What is printed about bad input; fails where the exit code is not 2."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    return printed


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "batch.csv").read_bytes(), (folder / "epoch.csv").read_bytes()


def test_the_command_trains_and_leaves_config_rows_summary_and_checkpoint(tmp_path, config_file, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(config_file), "--set", "epochs=3", "--set", "data.hflip=0"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    out = tmp_path / "runs" / "run"
    assert "6 updates an epoch, 3 epochs, on cpu; mask 0.75 (12 of 16 patches)" in printed.out
    assert [line.split()[1] for line in printed.out.splitlines() if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    rows = read_csv(out / "batch.csv")
    assert [row["batch/iteration"] for row in rows] == list(range(18))
    assert all(tuple(row) == BATCH for row in rows)
    assert [row["epoch"] for row in read_csv(out / "epoch.csv")] == [0, 1, 2]
    assert set(json.loads((out / "summary.json").read_text())) == set(SUMMARY)
    assert load_config(out / "config.yaml", []) == tiny_config(epochs=3, data={"hflip": 0})
    steps = load_checkpoint(out / "checkpoint" / "last.pt")["optimiser"]["state"].values()
    assert {int(state["step"]) for state in steps} == {len(rows)}


@pytest.mark.parametrize(("number", "update"), [(signal.SIGINT, 3), (signal.SIGTERM, 15)])
def test_a_stopped_run_keeps_every_update_and_goes_on_to_the_files_of_one_that_was_not(
    tmp_path, capsys, number, update
):
    config_file = written(tmp_path / "run.yaml", epochs=4)  # of 6 updates
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([str(config_file), "--out", str(whole)]) == 0

    with in_update(update, lambda: signal.raise_signal(number)):
        assert main([str(config_file), "--out", str(parts)]) == 130
    assert "Go on with --resume" in capsys.readouterr().out
    checkpoint = parts / "checkpoint" / "last.pt"
    state = load_checkpoint(checkpoint)
    assert state["update"] >= update
    assert state["epoch"] == len(read_csv(parts / "epoch.csv")) == update // 6
    assert len(read_csv(parts / "batch.csv")) == state["update"] - len(state["in_flight"])
    assert ("summary/best_loss" in json.loads((parts / "summary.json").read_text())) == (update > 6)

    assert main([str(config_file), "--out", str(parts), "--resume", str(checkpoint)]) == 0
    assert tables(parts) == tables(whole)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (parts, whole))
    assert [ours[name] for name in SUMMARY[:2]] == [theirs[name] for name in SUMMARY[:2]]
    model, other = (load_checkpoint(folder / "checkpoint" / "last.pt")["model"] for folder in (parts, whole))
    assert all(torch.equal(model[name], other[name]) for name in model)


@pytest.mark.process
def test_a_process_that_is_interrupted_says_how_to_go_on_and_ends_with_code_130(tmp_path):
    config_file = written(tmp_path / "run.yaml", epochs=1_000_000)
    process = subprocess.Popen(command(config_file, "--out", tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert any(line.startswith("epoch   2/") for line in lines)
        process.send_signal(signal.SIGINT)
        assert "Go on with --resume" in lines.read()
    assert process.returncode == 130


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_gone_on_from(tmp_path, capsys):
    config_file = written(tmp_path / "run.yaml", epochs=3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        assert main([str(config_file), "--out", str(out)]) == 0
    last = parts / "checkpoint" / "last.pt"
    trainer = Trainer(tiny_config(epochs=3))
    list(trainer.run_epoch())
    save_checkpoint(last.with_name("previous.pt"), trainer.state_dict())
    last.write_bytes(last.read_bytes()[:1000])
    capsys.readouterr()
    assert main([str(config_file), "--out", str(parts), "--resume", str(last)]) == 0
    assert f"note: {last}: not a whole checkpoint" in capsys.readouterr().out
    assert tables(parts) == tables(whole)


def test_a_full_disk_is_named_with_the_way_to_go_on(tmp_path, capsys):
    small = {"encoder": {"width": 8}, "decoder": {"width": 8}, "batch_size": 2, "pictures": 0}
    config_file = written(tmp_path / "run.yaml", epochs=500, **small)
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(tmp_path / "first"), "--set", "epochs=1"]) == 0
    checkpoint = (tmp_path / "first" / "checkpoint" / "last.pt").stat().st_size
    # no file of this process may grow beyond: the checkpoint fits, the rows do not for ever
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (checkpoint + 5_000, before[1]))
    try:
        assert main([str(config_file), "--out", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    printed = capsys.readouterr().err
    assert f"error: {out} cannot be written: " in printed
    assert f"Go on with --resume {out / 'checkpoint' / 'last.pt'}" in printed
    assert "Traceback" not in printed


def test_a_finished_run_leaves_one_checkpoint_and_its_pictures(tmp_path, config_file):
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(out)]) == 0
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["last.pt"]
    with Image.open(out / "pictures" / "reconstruction.png") as picture:
        assert min(picture.size) > 100


def test_bad_input_ends_with_code_2_and_one_line_without_a_traceback(tmp_path, capsys):
    message = refusal(capsys, written(tmp_path / "run.yaml", mask_ration=0.5))
    assert len(message.splitlines()) == 1
    assert "run.yaml: unknown key 'mask_ration'; did you mean 'mask_ratio'?" in message


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path, config_file, capsys):
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(out)]) == 0
    before = tables(out)
    capsys.readouterr()
    message = refusal(capsys, config_file, "--out", out, "--set", "seed=1")
    assert "holds a run already; give --resume" in message
    assert tables(out) == before


def test_going_on_with_a_finished_run_changes_nothing(tmp_path, config_file):
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(out)]) == 0
    before = tables(out)
    assert main([str(config_file), "--out", str(out), "--resume", str(out / "checkpoint" / "last.pt")]) == 0
    assert tables(out) == before


def test_a_run_is_gone_on_with_where_its_checkpoint_is_unless_out_is_given(tmp_path, config_file, capsys):
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(out)]) == 0
    checkpoint = out / "checkpoint" / "last.pt"
    before = tables(out)
    assert main([str(out / "config.yaml"), "--resume", str(checkpoint)]) == 0
    assert tables(out) == before
    capsys.readouterr()
    other = tmp_path / "other"
    message = refusal(capsys, config_file, "--out", other, "--resume", checkpoint)
    assert not other.exists()
    assert f"--out {other}: holds no rows of a run" in message


def test_the_checkpoint_of_another_config_is_refused(tmp_path, config_file, capsys):
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(out)]) == 0
    capsys.readouterr()
    checkpoint = out / "checkpoint" / "last.pt"
    message = refusal(capsys, config_file, "--out", out, "--resume", checkpoint, "--set", "seed=1")
    assert "of another config (seed: 0 there, 1 here)" in message


def test_a_diverged_run_keeps_its_rows_and_ends_with_code_2(tmp_path, config_file, capsys):
    out = tmp_path / "out"
    options = ("--set", "base_lr=1e30", "--set", "clip_grad=null", "--set", "warmup_epochs=0")
    message = refusal(capsys, config_file, "--out", out, *options)
    assert message.startswith("error: diverged: loss_static = ")
    assert read_csv(out / "batch.csv")
    assert (out / "summary.json").exists()


def test_an_update_that_breaks_the_weights_never_becomes_the_last_good_checkpoint(
    tmp_path, config_file, capsys, monkeypatch
):
    # the only way to a checkpoint within an epoch that takes less than ten minutes
    monkeypatch.setattr("model.runner.SAVE_EVERY_S", 0.0)  # after each row, while the next update is under way
    options = ("--set", "base_lr=1e9", "--set", "clip_grad=null", "--set", "warmup_epochs=1")
    checkpoint = tmp_path / "out" / "checkpoint" / "last.pt"
    message = refusal(capsys, config_file, "--out", tmp_path / "out", *options)
    assert "diverged" in message
    assert ("the last good checkpoint" in message) == checkpoint.exists()
    for path in checkpoint.parent.glob("*.pt"):
        state = load_checkpoint(path)
        assert all(weight.isfinite().all() for weight in state["model"].values())
        assert all(math.isfinite(value) for update in state["in_flight"] for value in update)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "epochs"], "must be KEY=VALUE"),
        (["--set", "epochs=many"], "epochs = 'many'; must be a valid integer"),
        (["--set", "data.image_size=18"], "use 16 x 16"),
        (["--set", "batch_size=64"], "batch_size = 64 is larger than the 50 training clips"),
        (["--set", "accum_iter=7"], "use accum_iter <= 6"),
        (["--resume", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
    ],
)
def test_each_bad_argument_is_explained_and_leaves_no_run(tmp_path, config_file, capsys, arguments, words):
    out = tmp_path / "out"
    assert words in refusal(capsys, config_file, "--out", out, *arguments)
    assert not out.exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, config_file, capsys):
    (tmp_path / "out").write_text("mine")
    message = refusal(capsys, config_file, "--out", tmp_path / "out")
    assert f"--out {tmp_path / 'out'}: File exists; give a folder that you may write to" in message


def test_a_missing_config_file_gets_the_near_name(config_file, capsys):
    message = refusal(capsys, config_file.with_name("rum.yaml"))
    assert "no such file. did you mean 'run.yaml'?" in message
