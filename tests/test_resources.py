"""What a trial asks of the machine, and how many processes and threads that makes."""

from __future__ import annotations

from typing import Any

import pytest

from model.errors import ConfigError
from sweep.resources import Resources
from tests.specs import fails, make
from tests.sweeping import tiny_spec


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        ({}, 1, 1),
        ({"cpu": 4}, 1, 4),
        ({"cpu": 0.5, "gpu": 0.3}, 1, 1),
        ({"cpu": 8, "gpu": 2}, 2, 4),
        ({"cpu": 1, "gpu": 4}, 4, 1),
        ({"cpu": 4, "processes": 2}, 2, 2),
        ({"cpu": 2, "gpu": 2, "processes": 2}, 2, 1),
    ],
)
def test_each_gpu_has_a_process_and_the_cores_are_shared(resources: dict[str, Any], processes: int, threads: int):
    asked = Resources(**resources)
    assert (asked.num_processes, asked.threads) == (processes, threads)


@pytest.mark.parametrize(
    ("resources", "parts"),
    [
        ({"gpu": 1.5}, ["gpu = 1.5", "use 1 or 2, or less than 1"]),
        ({"gpu": 2, "processes": 3}, ["processes = 3, but gpu = 2", "set gpu to 3"]),
        ({"gpu": 0.5, "processes": 2}, ["processes = 2, but gpu = 0.5", "set gpu to 2"]),
        ({"processes": 2}, ["processes = 2, but cpu = 1", "set cpu to 2 or more"]),
        ({"processes": 0}, ["resources.processes = 0"]),
    ],
)
def test_resources_that_do_not_fit_together_are_refused_with_what_would(tmp_path, resources, parts):
    message = fails(tmp_path, resources=resources)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"trainer": {"batch_size": 9}}, "trainer.batch_size = 9"),
        ({"parameters": {"alpha": {"values": [0.3, 0.5]}, "batch_size": {"value": 9}}}, "batch_size = 9"),
        ({"parameters": {"batch_size": {"min": 8, "max": 400}}}, "parameters.batch_size: the value 9"),
        ({"parameters": {"batch_size": {"values": [8, 9]}}}, "parameters.batch_size: the value 9"),
    ],
)
def test_a_batch_that_the_processes_of_a_trial_cannot_share_is_refused_at_load(tmp_path, content, where):
    message = fails(tmp_path, resources={"gpu": 2}, **content)
    assert where in message
    assert "the batch of all 2 processes" in message
    assert "use 8 or 10" in message


def test_batches_that_can_be_shared_are_searched():
    make(resources={"gpu": 2}, parameters={"batch_size": {"distribution": "q_uniform", "min": 8, "max": 48, "q": 8}})
    with pytest.raises(ConfigError, match="use 6 or 9"):
        tiny_spec(resources={"cpu": 3, "processes": 3})
