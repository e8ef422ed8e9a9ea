"""A sweep as a user starts it, on a real Ray: what it leaves behind is what the same sweep leaves without Ray, and all
commands that read results take it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model import metrics
from model.sinks import read_csv
from sweep import load_results
from sweep.diagnose import main as diagnose
from sweep.doctor.__main__ import main as doctor
from sweep.report.__main__ import main as report
from sweep.rescore import main as rescore
from sweep.tensorboard import main as tensorboard
from tests.faults import Kept, assert_no_leftovers, assert_wandb_has_every_row_once
from tests.inline import sweep
from tests.sweeping import TINY_TRAINER, trial_folders, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("on-ray")]
LIMIT_S = 900  # on a loaded machine
TRIALS = ["0000", "0001", "0002", "0003", "0004", "0005", "c0000", "c0001", "c0002", "c0003"]


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished sweep of 6 trials, one of which diverges and others are stopped early, and its confirmation."""
    folder = tmp_path_factory.mktemp("on-ray")
    spec = write_spec(
        folder,
        run_cap=6,
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3},
        trainer={**TINY_TRAINER, "clip_grad": None},
        search={"presets": [{"alpha": 0.5}, {"alpha": 0.75}, {"alpha": 0.4, "base_lr": 1e30}], "startup_trials": 2},
        parameters={"alpha": {"min": 0.1, "max": 0.9}, "base_lr": {"values": [0.01, 0.03, 0.1, 1e30]}},
        confirm={"top_k": 1, "seeds": [1, 2]},
        resources={"max_concurrent": 1},  # one after the other, so that the same seed gives the same sweep
    )
    command = [sys.executable, "-m", "sweep.run", str(spec), "--results", str(folder / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results", done.stdout


def test_it_is_the_sweep_that_runs_without_ray_to_the_last_bit(on_ray: tuple[Path, str], tmp_path: Path) -> None:
    results = on_ray[0]
    done = sweep(results.parent / "tiny.yaml", tmp_path / "results")
    assert done.code == 0, done.out + done.err
    assert Kept.of(tmp_path / "results") == Kept.of(results)


def test_each_trial_has_all_its_rows_in_wandb_and_nothing_is_left_open(on_ray: tuple[Path, str]) -> None:
    results = on_ray[0]
    names = [folder.name for folder in trial_folders(results)]
    assert names[:6] == TRIALS[:6]
    assert all(name.startswith("c") for name in names[6:])
    sound = [f for f in trial_folders(results) if "diverged" not in (f / "summary.json").read_text()]
    assert sum(len(read_csv(folder / "batch.csv")) for folder in sound) > 0
    assert set(read_csv(results / "trials/0000/batch.csv")[0]) == set(metrics.BATCH_NAMES)
    assert_wandb_has_every_row_once(results)
    assert_no_leftovers(results)


def test_the_terminal_says_what_was_found_and_nothing_of_rays_own(on_ray: tuple[Path, str]) -> None:
    results, printed = on_ray
    for words in ("1/6", "6/6", "equal-weights", "best trial: ", "best.yaml", "confirming trial"):
        assert words in printed
    assert "Traceback" not in printed
    lines = [line for line in printed.replace(str(results), "").splitlines() if "ray" in line.lower()]
    assert all(line.startswith("starting Ray") for line in lines), lines


def test_what_ray_and_its_workers_said_is_in_the_folders_logs(on_ray: tuple[Path, str]) -> None:
    logs = on_ray[0] / "logs"
    assert list(logs.glob("ray-*/raylet.*"))
    assert not (logs / "ray").exists()


def test_every_command_that_reads_results_takes_it(
    on_ray: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = on_ray[0]
    assert doctor([str(results)]) == 0
    assert report([str(results)]) == 0
    assert rescore([str(results)]) == 0
    assert diagnose([str(results)]) in (0, 1)  # 1: it found something
    assert tensorboard([str(results), "--logdir", str(tmp_path / "events")]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert len(load_results(results).trials) == len(trial_folders(results))  # the confirmation's too
    packages = json.loads((results / "provenance.json").read_text())["sessions"][0]["packages"]
    assert packages["ray"]
