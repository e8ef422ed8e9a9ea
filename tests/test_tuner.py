"""What of Ray's part can be shown without starting Ray; tests/test_run.py runs whole sweeps."""

from __future__ import annotations

from typing import Any

import pytest

from model.errors import ConfigError
from sweep.resources import Resources
from sweep.tuner import max_concurrent


@pytest.mark.parametrize(
    ("resources", "nodes", "most"),
    [
        ({}, [{"CPU": 2.0}], 2),
        ({"cpu": 0.5}, [{"CPU": 2.0}], 4),
        ({"cpu": 2, "max_concurrent": 4}, [{"CPU": 16.0}], 4),
        ({"cpu": 4, "gpu": 0.3}, [{"CPU": 64.0, "GPU": 1.0}], 3),
        ({"cpu": 0.1}, [{"CPU": 0.3}], 3),
        ({"cpu": 6}, [{"CPU": 8.0}, {"CPU": 16.0}], 3),
        ({"gpu": 1}, [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}], 4),
    ],
)
def test_as_many_trials_run_as_fit(resources: dict[str, Any], nodes: list[dict[str, float]], most: int) -> None:
    assert max_concurrent(Resources(**resources), nodes) == most


@pytest.mark.parametrize(
    ("resources", "nodes"), [({"gpu": 1}, [{"CPU": 8.0}]), ({"cpu": 16}, [{"CPU": 8.0}, {"CPU": 8.0}])]
)
def test_resources_that_no_node_has_are_an_error_that_says_what_is_there(
    resources: dict[str, Any], nodes: list[dict[str, float]]
) -> None:
    with pytest.raises(ConfigError, match=r"the largest node that Ray has here offers 8 CPU and 0 GPU"):
        max_concurrent(Resources(**resources), nodes)
