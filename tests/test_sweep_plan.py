"""The plan is what will run, and is refused before anything runs where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from model.errors import ConfigError, DataError
from sweep.plan import make_plan, preset_name
from tests.sweeping import TINY_TRAINER, tiny_spec


def test_counts_are_those_that_a_trial_will_have() -> None:
    plan = make_plan(tiny_spec())
    assert (plan.sequences, plan.train_clips, plan.held_out_clips) == (12, 50, 8)
    assert plan.epoch.updates == 6
    assert plan.rows_per_trial == 3 * (6 + 1)
    assert plan.skipped == ()


def test_presets_come_first_filled_from_the_trainer() -> None:
    plan = make_plan(tiny_spec())
    assert plan.first == (
        ("equal-weights", {"alpha": 0.5, "base_lr": 0.03}),
        ("balanced-weights", {"alpha": 0.75, "base_lr": 0.03}),
    )


def test_a_grid_is_every_point_once_and_the_presets_among_them_first() -> None:
    parameters = {"alpha": {"values": [0.25, 0.5, 0.75]}, "mask_ratio": {"values": [0.5, 0.75]}}
    plan = make_plan(tiny_spec(method="grid", parameters=parameters, run_cap=None, search={}))
    assert [name for name, _ in plan.first[:3]] == ["equal-weights", "balanced-weights", None]
    assert len(plan.first) == 6
    assert len({tuple(values.items()) for _, values in plan.first}) == 6


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ({"alpha": 0.5}, "equal-weights"),
        ({"alpha": 0.75, "base_lr": 0.1}, "balanced-weights"),
        ({"alpha": 2, "beta": 2}, "preset-7"),
        ({"base_lr": 0.1}, "preset-7"),
    ],
)
def test_presets_have_names(preset: dict[str, Any], name: str) -> None:
    assert preset_name(preset, 7) == name


def test_two_presets_of_the_same_weights_have_names_of_their_own() -> None:
    presets = [{"alpha": 0.5}, {"alpha": 0.5, "base_lr": 0.1}]
    plan = make_plan(tiny_spec(search={"presets": presets, "startup_trials": 2}))
    assert [name for name, _ in plan.first] == ["equal-weights", "equal-weights-1"]


def test_searched_values_that_do_not_fit_the_data_are_found_before_anything_runs() -> None:
    parameters = {"batch_size": {"values": [8, 512]}}
    with pytest.raises(ConfigError, match=r"parameters\.batch_size = 512 is larger than the 50 training clips"):
        make_plan(tiny_spec(parameters=parameters))
    parameters = {"data.frame_stride": {"values": [1, 3]}}
    with pytest.raises(DataError, match="a clip spans 10 frames"):
        make_plan(tiny_spec(parameters=parameters))


def test_an_unknown_timm_name_is_found_before_anything_runs() -> None:
    trainer = {**TINY_TRAINER, "encoder": {"name": "vit_tinny_patch16_224"}}
    trainer["data"] = {**TINY_TRAINER["data"], "image_size": 32}
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224"):
        make_plan(tiny_spec(trainer=trainer))
