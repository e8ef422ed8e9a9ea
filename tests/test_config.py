"""TrainConfig: what is refused and in which words, and what it derives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model.config import TrainConfig, round_to_patches
from model.configfile import validated
from model.errors import ConfigError
from tests.tiny import tiny_config, tiny_content


def refusal(**changes: Any) -> str:
    """What is said about a config; fails where it is accepted."""
    with pytest.raises(ConfigError) as caught:
        validated(TrainConfig, tiny_content(**changes), "run.yaml")
    return str(caught.value)


def test_the_defaults_are_a_config():
    config = TrainConfig()
    assert config.weights == (0.5, 0.5)
    assert config.grid == (6, 6)


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        tiny_config().epochs = 3


def test_a_config_survives_being_written_and_read():
    config = tiny_config(data={"image_size": [16, 24]}, encoder={"patch_size": 8}, beta=0.9, clip_grad=None)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("epochs", 0, "greater than 0"),
        ("epochs", 2.5, "integer"),
        ("batch_size", -8, "greater than 0"),
        ("accum_iter", 0, "greater than 0"),
        ("mask_ratio", 1.0, "less than 1"),
        ("mask_ratio", 0, "greater than 0"),
        ("base_lr", -0.001, "greater than 0"),
        ("base_lr", math.inf, "finite"),
        ("base_lr", "fast", "valid number"),
        ("weight_decay", -1, "greater than or equal to 0"),
        ("clip_grad", 0, "greater than 0"),
        ("alpha", -0.1, "greater than or equal to 0"),
        ("alpha", math.nan, "finite"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**31, "less than 2147483648"),
        ("device", "tpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("precision", "fp8", "'auto', 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_a_value_out_of_range_says_the_key_the_value_and_the_rule(key, value, rule):
    message = refusal(**{key: value})
    assert message.startswith(f"run.yaml: {key} = {value!r}; must be")
    assert rule in message


def test_a_nested_value_out_of_range_is_named_with_its_path():
    assert refusal(data={"hflip": 1.5}).startswith("run.yaml: data.hflip = 1.5; must be less than or equal to 1")


def test_every_fault_has_its_line():
    lines = refusal(epochs=0, data={"hflip": 2}).splitlines()
    assert [line.partition(" = ")[0] for line in lines] == ["run.yaml: data.hflip", "run.yaml: epochs"]


def test_adams_betas_of_one_are_refused():
    assert "betas.1 = 1.0; must be less than 1" in refusal(betas=[0.9, 1.0])


@pytest.mark.parametrize(
    ("changes", "unknown", "meant"),
    [
        ({"mask_ration": 0.5}, "mask_ration", "mask_ratio"),
        ({"data": {"image_sise": 16}}, "data.image_sise", "data.image_size"),
        ({"image_size": 16}, "image_size", "data.image_size"),
        ({"encoder": {"dept": 2}}, "encoder.dept", "encoder.depth"),
    ],
)
def test_an_unknown_key_gets_a_guess(changes, unknown, meant):
    assert f"unknown key {unknown!r}; did you mean {meant!r}?" in refusal(**changes)


def test_an_unknown_key_lists_the_choices_of_its_block():
    assert "Known here: depth, heads, width." in refusal(decoder={"zzz": 1})


def test_lr_says_that_base_lr_is_meant_and_how_they_relate():
    content = {key: value for key, value in tiny_content(lr=1e-3).items() if key != "base_lr"}
    with pytest.raises(ConfigError, match=r"unknown key 'lr' = 0\.001; give base_lr.*base_lr \* batch_size"):
        validated(TrainConfig, content, "run.yaml")


def test_alpha_above_one_needs_a_beta():
    assert "alpha = 1.2 and no beta: beta = 1 - alpha would be negative" in refusal(alpha=1.2)
    assert tiny_config(alpha=1.2, beta=0.4).weights == (1.2, 0.4)


def test_beta_is_one_minus_alpha_unless_given():
    assert tiny_config(alpha=0.3).weights == (0.3, 0.7)
    assert tiny_config(alpha=0.3, beta=0.3).weights == (0.3, 0.3)


def test_two_weights_of_zero_are_refused():
    assert "nothing to minimise" in refusal(alpha=0, beta=0)


@pytest.mark.parametrize(
    ("size", "patch", "fits"),
    [(18, 4, "16 x 16"), ([16, 23], 8, "16 x 24"), (3, 16, "16 x 16")],
)
def test_an_image_size_that_the_patch_does_not_divide_gets_one_that_fits(size, patch, fits):
    message = refusal(data={"image_size": size}, encoder={"patch_size": patch})
    assert f"is not divided by the patch size {patch}; use {fits}" in message


def test_a_mask_that_leaves_no_visible_patch_says_what_is_allowed():
    assert "mask_ratio = 0.99 of 16 patches leaves no visible patch" in refusal(mask_ratio=0.99)
    assert "between 0.0625 and 0.938" in refusal(mask_ratio=0.99)


def test_a_mask_that_leaves_no_masked_patch_says_what_is_allowed():
    assert "mask_ratio = 0.01 of 16 patches leaves no masked patch" in refusal(mask_ratio=0.01)


def test_one_patch_that_fills_the_image_is_refused_as_such():
    message = refusal(encoder={"patch_size": 16})
    assert "one patch of 16 pixels fills the image; use a larger image or a smaller patch" in message


def test_a_warm_up_longer_than_the_training_is_refused():
    assert "warmup_epochs = 3.0 is longer than epochs = 2" in refusal(warmup_epochs=3)


def test_a_min_lr_above_the_peak_is_refused():
    assert "min_lr = 0.5 is above the peak learning rate 0.000937" in refusal(min_lr=0.5)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    assert "width = 32 is not a multiple of heads = 3" in refusal(encoder={"heads": 3})
    assert "width = 30; must be a multiple of 4" in refusal(decoder={"width": 30, "heads": 2})


def test_a_timm_name_fixes_width_depth_and_heads():
    message = refusal(encoder={"name": "vit_tiny_patch16_224", "width": 32, "depth": 1})
    assert "name = 'vit_tiny_patch16_224' fixes depth, heads, width" in message


def test_a_timm_name_tells_its_patch_size_unless_one_is_given():
    named = TrainConfig(data={"image_size": 32}, encoder={"name": "vit_tiny_patch16_224"})
    assert named.num_patches == 4
    other = TrainConfig(data={"image_size": 32}, encoder={"name": "vit_tiny_patch16_224", "patch_size": 8})
    assert other.num_patches == 16
    with pytest.raises(ValueError, match="does not tell its patch size; give patch_size"):
        TrainConfig(encoder={"name": "vit_tiny"})


def test_a_source_of_files_needs_its_folder_and_the_synthetic_one_takes_none():
    assert "source = 'videos' needs root" in refusal(data={"source": "videos"})
    assert "source = 'synthetic' reads no files" in refusal(data={"root": "recordings"})


def test_folders_are_made_absolute_since_workers_run_elsewhere():
    config = tiny_config(data={"source": "frames", "root": "recordings", "store_dir": "~/store"})
    assert config.data.root == Path.cwd() / "recordings"
    assert config.data.store_dir == Path.home() / "store"


def test_a_broken_group_pattern_is_refused():
    assert "'(' is not a regular expression" in refusal(data={"group_pattern": "("})


@given(ratio=st.floats(0.001, 0.999), rows=st.integers(1, 32), columns=st.integers(1, 32))
def test_the_effective_mask_ratio_is_the_nearest_number_of_whole_patches(ratio, rows, columns):
    num_patches = rows * columns
    masked = round_to_patches(ratio, num_patches)
    assume(1 <= masked < num_patches)
    config = tiny_config(data={"image_size": [4 * rows, 4 * columns]}, mask_ratio=ratio)
    assert config.grid == (rows, columns)
    assert config.num_masked == masked
    assert config.effective_mask_ratio == masked / num_patches
    assert abs(config.effective_mask_ratio - ratio) <= 0.5 / num_patches + 1e-12


def test_half_a_patch_is_rounded_up():
    assert [round_to_patches(0.5, n) for n in (1, 3, 5, 7)] == [1, 2, 3, 4]
