"""Which GPUs each of several agents uses, and how many agents have room."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from sweep import devices as devices_module
from sweep.devices import agents_that_fit, devices_of, usable_cores, visible_devices
from sweep.resources import Resources

SHARES = st.one_of(
    st.integers(1, 12).map(lambda parts: 1 / parts),  # 1/3 and 1/7 are not exact
    st.floats(0.01, 1.0, allow_nan=False),
)
MACHINES = st.integers(1, 9).map(lambda count: [str(index) for index in range(count)])


def used(num_agents: int, gpu: float, devices: list[str]) -> Counter[str]:
    """Trials on each device when agents 0 to num_agents - 1 run one each."""
    return Counter(device for slot in range(num_agents) for device in devices_of(slot, gpu, devices))


@given(st.integers(0, 99), MACHINES)
def test_a_trial_without_a_gpu_gets_none(slot, devices):
    assert devices_of(slot, 0, devices) == []
    assert devices_of(slot, 0, []) == []


@given(st.integers(0, 99), SHARES, MACHINES)
def test_a_share_is_of_one_device(slot, gpu, devices):
    (device,) = devices_of(slot, gpu, devices)
    assert device in devices


@given(SHARES, MACHINES)
def test_no_device_is_overbooked_while_the_agents_fit(gpu, devices):
    fit = agents_that_fit(Resources(gpu=gpu), cores=10**6, gpus=len(devices))
    trials = used(fit, gpu, devices)
    assert set(trials) == set(devices), "an idle device beside shared ones"
    assert max(trials.values()) * Fraction(gpu) <= 1 + Fraction(1, 10**8)


@given(SHARES, MACHINES, st.integers(0, 40))
def test_agents_beyond_what_fits_are_spread_evenly(gpu, devices, num_agents):
    trials = [used(num_agents, gpu, devices)[device] for device in devices]
    assert max(trials) - min(trials) <= 1


@given(MACHINES, st.data())
def test_trials_of_whole_gpus_share_none_while_they_fit(devices, data):
    gpu = data.draw(st.integers(1, len(devices)))
    fit = agents_that_fit(Resources(gpu=gpu), cores=10**6, gpus=len(devices))
    assert fit == len(devices) // gpu
    trials = used(fit, gpu, devices)
    assert trials.total() == fit * gpu
    assert set(trials.values()) == {1}
    assert devices_of(fit, gpu, devices) == devices_of(0, gpu, devices), "the next one starts again at the first"


@given(st.integers(0, 99), MACHINES, st.integers(1, 5))
def test_more_gpus_than_there_are_is_an_error_that_says_how_many_there_are(slot, devices, beyond):
    with pytest.raises(ConfigError, match=f"resources.gpu to {len(devices)} or less"):
        devices_of(slot, len(devices) + beyond, devices)


def test_a_share_of_no_gpu_is_an_error():
    with pytest.raises(ConfigError, match=r"resources.gpu = 0.5, but of the GPUs none can be seen here"):
        devices_of(0, 0.5, [])


@pytest.mark.parametrize("gpu", [-1, 1.5, math.nan, math.inf])
def test_an_amount_that_no_trial_can_have_is_an_error(gpu):
    with pytest.raises(ConfigError, match="must be 0, a share of one GPU"):
        devices_of(0, gpu, ["0", "1"])


@pytest.mark.parametrize(
    ("resources", "cores", "gpus", "fit"),
    [
        (Resources(), 8, 0, 8),
        (Resources(cpu=3), 8, 0, 2),
        (Resources(cpu=0.1), 1, 0, 10),  # 1 / 0.1 may not become 9
        (Resources(cpu=16), 8, 0, 0),
        (Resources(gpu=1), 8, 0, 0),
        (Resources(gpu=1), 8, 2, 2),
        (Resources(cpu=4, gpu=0.5), 8, 4, 2),
        (Resources(gpu=0.6), 8, 4, 4),  # 4 x 0.4 of GPUs are no room
        (Resources(cpu=2, gpu=2, max_concurrent=1), 8, 4, 1),
        (Resources(max_concurrent=20), 8, 4, 8),
    ],
)
def test_agents_that_fit_are_limited_by_cores_gpus_and_the_spec(resources, cores, gpus, fit):
    assert agents_that_fit(resources, cores, gpus) == fit


@pytest.mark.parametrize(
    ("given_names", "seen"),
    [
        ("0,2", ["0", "2"]),
        (" 3 , 1", ["3", "1"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("GPU-8932f937-d72c-4106-c12f,MIG-c7384736/1/2", ["GPU-8932f937-d72c-4106-c12f", "MIG-c7384736/1/2"]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(given_names, seen):
    assert visible_devices({"CUDA_VISIBLE_DEVICES": given_names}) == seen


def test_without_the_variable_the_gpus_of_the_machine_are_counted(monkeypatch, tmp_path):
    command = tmp_path / "nvidia-smi"
    listing = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)"
    command.write_text(f"#!/bin/sh\n[ $1 = -L ] || exit 3\necho '{listing}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_devices({}) == ["0", "1"]
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert isinstance(visible_devices({}), list)  # a driver that fails is no crash


def test_a_containers_share_of_the_cores_counts(monkeypatch, tmp_path):
    there = usable_cores()
    assert there >= 1
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(devices_module, "_CGROUP_CPU", limit)
    for text, cores in {"50000 100000": 1, "max 100000": there, f"{10**9} 1000": there, "gibberish": there}.items():
        limit.write_text(text)
        assert usable_cores() == cores
