"""`python -m model.train` as a user runs it: files, refusals, going on, exit codes."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from model.checkpoint import load_checkpoint, save_checkpoint
from model.sinks import read_csv
from model.train import load_config, main
from model.trainer import Trainer
from tests.metric_names import BATCH, SUMMARY
from tests.tiny import TINY, tiny_config, tiny_content

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return written(tmp_path / "run.yaml")


def written(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(tiny_content(**changes)))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "model.train", *map(str, arguments)]


def run(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What is printed about bad input; fails where the exit code is not 2."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    return printed


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "batch.csv").read_bytes(), (folder / "epoch.csv").read_bytes()


def test_the_command_trains_and_leaves_config_rows_summary_and_checkpoint(tmp_path, config_file):
    done = run(config_file, "--set", "epochs=3", "--set", "data.hflip=0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "runs" / "run"
    assert "6 updates an epoch, 3 epochs, on cpu; mask 0.75 (12 of 16 patches)" in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    rows = read_csv(out / "batch.csv")
    assert [row["batch/iteration"] for row in rows] == list(range(18))
    assert all(tuple(row) == BATCH for row in rows)
    assert [row["epoch"] for row in read_csv(out / "epoch.csv")] == [0, 1, 2]
    assert set(json.loads((out / "summary.json").read_text())) == set(SUMMARY)
    assert load_config(out / "config.yaml", []) == tiny_config(epochs=3, data={"hflip": 0})
    steps = load_checkpoint(out / "checkpoint" / "last.pt")["optimiser"]["state"].values()
    assert {int(state["step"]) for state in steps} == {len(rows)}


def test_a_run_that_was_interrupted_goes_on_to_the_files_of_one_that_was_not(tmp_path):
    config_file = written(tmp_path / "run.yaml", epochs=60)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([str(config_file), "--out", str(whole)]) == 0

    process = subprocess.Popen(command(config_file, "--out", parts), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert any(line.startswith("epoch   2/60") for line in lines)
        process.send_signal(signal.SIGINT)
        assert "Go on with --resume" in lines.read()
    assert process.returncode == 130
    checkpoint = parts / "checkpoint" / "last.pt"
    epochs_done = load_checkpoint(checkpoint)["epoch"]
    assert 2 <= epochs_done < 60
    assert set(json.loads((parts / "summary.json").read_text())) == set(SUMMARY)  # also when stopped early

    assert main([str(config_file), "--out", str(parts), "--resume", str(checkpoint)]) == 0
    assert tables(parts) == tables(whole)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (parts, whole))
    assert [ours[name] for name in SUMMARY[:2]] == [theirs[name] for name in SUMMARY[:2]]
    model, other = (load_checkpoint(folder / "checkpoint" / "last.pt")["model"] for folder in (parts, whole))
    assert all(torch.equal(model[name], other[name]) for name in model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_within_an_epoch_keeps_every_update_and_goes_on_to_the_same_rows(tmp_path, number):
    config_file = written(tmp_path / "run.yaml", epochs=2, data={"synthetic": {"sequences": 400}}, batch_size=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = subprocess.Popen(command(config_file, "--out", parts), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        while len(read_csv(parts / "batch.csv")) < 20:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.stdout is not None
        assert "Go on with --resume" in process.stdout.read()
    assert process.returncode == 130
    checkpoint = parts / "checkpoint" / "last.pt"
    state = load_checkpoint(checkpoint)
    assert (state["epoch"], len(read_csv(parts / "epoch.csv"))) == (0, 0)
    assert len(read_csv(parts / "batch.csv")) == state["update"] - len(state["in_flight"])

    assert main([str(config_file), "--out", str(parts), "--resume", str(checkpoint)]) == 0
    assert main([str(config_file), "--out", str(whole)]) == 0
    assert tables(parts) == tables(whole)


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


def test_a_full_disk_is_named_with_the_way_to_go_on(tmp_path):
    config_file = written(tmp_path / "run.yaml", epochs=500, batch_size=2, pictures=0)
    out = tmp_path / "out"
    # a file may not grow beyond 560 kB: the checkpoint fits, the rows do not for ever
    limited = f"ulimit -f 560; trap '' XFSZ; exec {shlex.join(command(config_file, '--out', out))}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", limited], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2
    assert f"error: {out} cannot be written: " in done.stderr
    assert f"Go on with --resume {out / 'checkpoint' / 'last.pt'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_leaves_one_checkpoint_and_its_pictures(tmp_path, config_file):
    out = tmp_path / "out"
    assert main([str(config_file), "--out", str(out)]) == 0
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["last.pt"]
    with Image.open(out / "pictures" / "reconstruction.png") as picture:
        assert min(picture.size) > 100


RECIPES = sorted((ROOT / "model" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_its_script_and_trains(tmp_path, recipe):
    script = (ROOT / "scripts" / f"train_{recipe.stem}.sh").read_text()
    assert f"model/recipes/{recipe.stem}.yaml" in script
    tiny = [f"--set={key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in TINY.items()]
    assert main([str(recipe), "--out", str(tmp_path / "out"), *tiny, "--set", "warmup_epochs=1"]) == 0
    modes = {row["batch/mode"] for row in read_csv(tmp_path / "out" / "batch.csv")}
    assert modes == ({0, 1} if "alternating" in recipe.stem else {2})


def test_bad_input_ends_with_code_2_and_one_line_without_a_traceback(tmp_path):
    done = run(written(tmp_path / "run.yaml", mask_ration=0.5))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "run.yaml: unknown key 'mask_ration'; did you mean 'mask_ratio'?" in done.stderr


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
