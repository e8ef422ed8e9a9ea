"""The memory probe: what a trial takes is measured in a process of its own, and what cannot fit is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from model.errors import ConfigError, UserError
from model.sinks import read_csv
from sweep.memory import Peak, available_memory, check_fit, estimate, is_wanted, most_demanding
from sweep.probe import measure_peak, memory_task
from sweep.resources import Resources
from sweep.run import main
from tests.inline import Inline, run_inline
from tests.sweeping import TINY_TRAINER, tiny_content, tiny_spec
from tests.tiny import tiny_config

process = pytest.mark.process
GIB = 2**30
MIB = 2**20


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({}, False),
        ({"gpu": 1}, False),
        ({"gpu": 0.5}, True),
        ({"gpu": 0.5, "memory_probe": "never"}, False),
        ({"memory_probe": "always"}, True),
    ],
)
def test_a_probe_costs_nothing_unless_trials_share_a_gpu_or_it_is_asked_for(resources: dict[str, Any], wanted: bool):
    assert is_wanted(Resources(**resources)) is wanted


def test_the_config_that_is_probed_has_the_largest_batch_and_model_and_masks_least():
    parameters = {
        "alpha": {"min": 0.1, "max": 0.9},
        "mask_ratio": {"min": 0.5, "max": 0.9},
        "batch_size": {"values": [4, 16, 8]},
        "encoder.depth": {"values": [1, 3, 2]},
    }
    found = most_demanding(tiny_spec(parameters=parameters))
    assert (found.mask_ratio, found.batch_size, found.encoder.depth) == (0.5, 16, 3)


@pytest.mark.parametrize(
    "more",
    [
        {"batch_size": 16},
        {"mask_ratio": 0.5},
        {"encoder": {"width": 64}},
        {"encoder": {"depth": 2}},
        {"decoder": {"depth": 2}},
        {"ema_decay": 0.9},
        {"data": {"image_size": 32}},
    ],
    ids=str,
)
def test_what_needs_more_memory_is_estimated_at_more(more: dict[str, Any]):
    assert estimate(tiny_config(**more)) > estimate(tiny_config())


def test_recomputation_and_one_branch_are_estimated_at_less():
    deep = {"encoder": {"depth": 4}}
    assert estimate(tiny_config(encoder={"depth": 4, "grad_checkpointing": True})) < estimate(tiny_config(**deep))
    assert estimate(tiny_config(mode="static")) < estimate(tiny_config())


# --- what fits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "gib", "words"),
    [
        (
            0.25,
            20,
            ["resources.gpu = 0.25", "4 trials would share", "takes 20 GiB", "only 3 have room", "use gpu: 0.33"],
        ),
        (0.5, 45, ["2 trials would share", "only 1 has room", "use gpu: 1,"]),
        (0.5, 90, ["not even one has room", "lower batch_size"]),
        (1, 90, ["not even one has room", "lower batch_size"]),
    ],
)
def test_a_packing_that_cannot_fit_a_gpu_is_refused_with_one_that_does(gpu: float, gib: int, words: list[str]):
    spec = tiny_spec(resources={"gpu": gpu})
    with pytest.raises(ConfigError) as caught:
        check_fit(spec, Peak(GIB, gib * GIB, 100 * GIB, 80 * GIB), concurrent=4)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fit", [1, 2, 3, 6, 7, 9, 13])
def test_the_share_that_is_proposed_lets_as_many_trials_run_as_fit(fit: int):
    spec, peak = tiny_spec(resources={"gpu": 0.01}), Peak(MIB, int(80 * GIB / (fit * 1.05)) - 1, 100 * GIB, 80 * GIB)
    with pytest.raises(ConfigError) as caught:
        check_fit(spec, peak, concurrent=100)
    proposed = float(str(caught.value).partition("use gpu: ")[2].split(",")[0])
    assert math.floor(1 / proposed + 1e-9) == fit


def test_a_packing_that_fits_is_told_with_its_figures():
    text = check_fit(tiny_spec(resources={"gpu": 0.5}), Peak(2 * GIB, 20 * GIB, 100 * GIB, 80 * GIB), concurrent=4)
    assert "20 GiB of a GPU" in text
    assert "2 at a time share 80 GiB" in text
    assert "4 at a time have 100 GiB" in text


def test_fewer_trials_than_a_gpu_has_room_for_need_less():
    spec, peak = tiny_spec(resources={"gpu": 0.25, "max_concurrent": 2}), Peak(GIB, 30 * GIB, 100 * GIB, 80 * GIB)
    assert "2 at a time share" in check_fit(spec, peak, concurrent=2)


def test_cpu_trials_that_do_not_fit_into_the_machine_are_refused_with_how_many_do():
    with pytest.raises(ConfigError, match=r"8 trials at a time.* only 4 have room; set max_concurrent: 4"):
        check_fit(tiny_spec(), Peak(3 * GIB, 0, 14 * GIB, 0), concurrent=8)


def test_a_config_that_ran_out_of_memory_by_itself_is_refused_in_the_words_of_who_noticed():
    with pytest.raises(ConfigError, match=r"not even one trial fits .*CUDA out of memory; lower batch_size"):
        check_fit(tiny_spec(resources={"gpu": 0.5}), Peak(too_large="CUDA out of memory"), concurrent=2)


# --- measured ---------------------------------------------------------------------------------------------------------


@process
def test_a_larger_model_is_measured_at_more_and_shared_pages_do_not_count():
    small = measure_peak(memory_task(tiny_spec()))
    large_trainer = {**TINY_TRAINER, "encoder": {"width": 1024, "depth": 6, "heads": 8, "patch_size": 4}}
    large = measure_peak(memory_task(tiny_spec(trainer=large_trainer)))
    weights = 6 * 12 * 1024**2 * 4  # bytes; with gradients and two moments four times that
    assert 2 * weights < large.host_bytes - small.host_bytes < 10 * weights
    assert small.host_bytes < 1.5 * GIB
    assert small.gpu_bytes == 0
    assert 0 < small.host_room <= psutil.virtual_memory().total


@process
def test_a_process_is_not_charged_with_the_size_of_the_one_that_started_it():
    ballast = b"x" * GIB
    code = "from sweep.memory import own_memory; print(own_memory(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(ballast)


@process
def test_a_probe_of_a_config_that_cannot_be_trained_says_why():
    task = memory_task(tiny_spec())
    task.configs["demanding"]["data"] |= {"source": "frames", "root": "/nowhere"}
    with pytest.raises(UserError, match=r"memory_probe: the short run .* failed: .*/nowhere"):
        measure_peak(task)


@process
def test_a_process_that_ends_for_want_of_memory_means_that_nothing_fits(tmp_path: Path):
    # a limit on this process's addresses stands for a machine with little memory
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2);"
        "sys.argv = ['sweep.probe']; import runpy; runpy.run_module('sweep.probe', run_name='__main__')"
    )
    spec = tiny_spec(trainer={**TINY_TRAINER, "encoder": {"width": 8192, "depth": 4, "heads": 8, "patch_size": 4}})
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(asdict(memory_task(spec))),
        capture_output=True,
        text=True,
        timeout=200,
    )
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["demanding"]["too_large"], done.stderr


def write(tmp_path: Path, **changes: Any) -> Path:
    spec = tmp_path / "tiny.yaml"
    content = {"run_cap": 2, "resources": {"memory_probe": "always"}, "wandb": {"mode": "disabled"}}
    spec.write_text(yaml.safe_dump(tiny_content(**content | changes)), encoding="utf-8")
    return spec


@process
def test_a_sweep_that_fits_says_so_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_inline(write(tmp_path), tmp_path / "results") == 0
    assert "note: memory: a trial takes" in " ".join(capsys.readouterr().out.split())
    assert len(read_csv(tmp_path / "results/trials/0001/epoch.csv")) == 3


@process
def test_a_sweep_that_cannot_fit_is_refused_before_a_trial_starts_and_its_folder_stays_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # each trial takes more than 200 MiB: twice as many as that leaves room for cannot fit, on a machine of any size
    many = 2 * max(1, available_memory() // (200 * MIB))
    spec = write(tmp_path, run_cap=many)
    assert run_inline(spec, tmp_path / "results", engine=Inline(cpus=many)) == 2
    said = capsys.readouterr().err
    assert "trials at a time, but a trial takes" in said
    assert "set max_concurrent: " in said
    assert "Traceback" not in said
    arguments = [str(spec), "--results", str(tmp_path / "results"), "--set", "run_cap=2"]
    assert main([*arguments, "--set", "resources.memory_probe=never", "--dry-run", "--no-measure"]) == 0
