"""YAML files and KEY=VALUE options: what is read, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.config import TrainConfig
from model.configfile import field_paths, load_yaml, parse_yaml, validated, with_overrides
from model.errors import ConfigError

KEYS = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(
    lambda k: k not in ("y", "n", "yes", "no", "on", "off")
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc xyz", max_size=8)
CONTENTS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@given(CONTENTS)
def test_what_yaml_wrote_is_read_back(content):
    assert parse_yaml(yaml.safe_dump(content), "text") == content


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["r", ".3e", ".0e", "E"]))
def test_every_way_to_write_a_float_is_read_as_that_number(number, style):
    text = repr(number) if style == "r" else format(number, style)
    value = parse_yaml(text, "text")
    assert isinstance(value, float)
    assert value == float(text)


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("1.e-3", 1e-3), ("-2E5", -2e5), (".5e1", 5.0), ("+1e+2", 100.0)]
)
def test_exponents_without_a_point_are_numbers(text, number):
    assert parse_yaml(f"base_lr: {text}", "text") == {"base_lr": number}


@pytest.mark.parametrize("text", ["vit_tiny_patch16_224", "e5", "1e", "1e-3x", "2025-10-24", "'1e-3'"])
def test_what_only_looks_like_a_number_or_a_date_stays_text(text):
    assert parse_yaml(text, "text") == text.strip("'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 1\nepochs: 2\n", "'epochs' is given twice"),
        ("data:\n  hflip: 0\n  hflip: 1\n", "'hflip' is given twice"),
        ("epochs: [1, 2\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "a key must be plain text"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_bad_yaml_says_the_file_and_the_fault(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_key_given_twice_is_named_with_its_line(tmp_path):
    with pytest.raises(ConfigError, match="line 3"):
        load_yaml(written(tmp_path, "epochs: 1\nseed: 0\nepochs: 2\n"))


def test_anchors_and_merges_may_repeat_a_key(tmp_path):
    text = "base: &base {width: 32, depth: 1}\nencoder:\n  <<: *base\n  depth: 2\n"
    assert load_yaml(written(tmp_path, text))["encoder"] == {"width": 32, "depth": 2}


@pytest.mark.parametrize(("text", "kind"), [("", "an empty file"), ("- 1\n", "list"), ("hello", "str")])
def test_a_file_that_is_no_mapping_says_what_it_holds(tmp_path, text, kind):
    with pytest.raises(ConfigError, match=f"must hold a mapping .* but holds {kind}"):
        load_yaml(written(tmp_path, text))


def test_a_missing_file_gets_the_near_name_and_the_list(tmp_path):
    written(tmp_path, "", "alpha_beta.yaml")
    written(tmp_path, "", ".alpha_betta.yaml")
    written(tmp_path, "", "other.yml")
    with pytest.raises(ConfigError, match=r"no such file. did you mean 'alpha_beta.yaml'\?") as caught:
        load_yaml(tmp_path / "alpha_bata.yaml")
    assert "there are: alpha_beta.yaml, other.yml." in str(caught.value)


def test_a_missing_file_in_a_missing_folder_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_yaml(tmp_path / "nowhere" / "run.yaml")


def test_a_folder_and_a_binary_file_cannot_be_read_as_text(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
            load_yaml(path)


# --- KEY=VALUE options ---------------------------------------------------------------------------------------------


def test_options_change_a_copy_and_their_values_are_yaml():
    content: dict[str, Any] = {"data": {"hflip": 0.5}, "epochs": 8}
    changed = with_overrides(
        content, ["data.hflip=0", "base_lr=1e-3", "betas=[0.9, 0.99]", "encoder.name=null", "a=b=c"]
    )
    assert changed == {
        "data": {"hflip": 0},
        "epochs": 8,
        "base_lr": 1e-3,
        "betas": [0.9, 0.99],
        "encoder": {"name": None},
        "a": "b=c",
    }
    assert content == {"data": {"hflip": 0.5}, "epochs": 8}


@pytest.mark.parametrize("option", ["epochs", "=3", "data.=3", ".epochs=3", "data..hflip=1", ""])
def test_an_option_without_key_or_value_says_how_to_write_one(option):
    with pytest.raises(ConfigError, match="must be KEY=VALUE, for example") as caught:
        with_overrides({}, [option])
    assert repr(option) in str(caught.value)


def test_an_option_below_a_value_says_so():
    with pytest.raises(ConfigError, match=r"--set 'epochs\.x=1': epochs is a value, it has no keys in it"):
        with_overrides({"epochs": 3}, ["epochs.x=1"])


def test_an_option_whose_value_is_no_yaml_says_so():
    with pytest.raises(ConfigError, match=r"--set 'betas=\[0.9': not valid YAML"):
        with_overrides({}, ["betas=[0.9"])


# --- validation ----------------------------------------------------------------------------------------------------


def test_a_fault_is_named_with_file_prefix_path_and_value():
    with pytest.raises(ConfigError, match=r"^sweep\.yaml: trainer\.data\.hflip = 'often'; must be a valid number"):
        validated(TrainConfig, {"data": {"hflip": "often"}}, "sweep.yaml", prefix="trainer")


def test_a_union_shows_no_names_of_pydantics_own():
    with pytest.raises(ConfigError) as caught:
        validated(TrainConfig, {"data": {"image_size": "big"}}, "run.yaml")
    assert {line.partition(";")[0] for line in str(caught.value).splitlines()} == {"run.yaml: data.image_size = 'big'"}


def test_a_long_value_is_shown_in_part():
    with pytest.raises(ConfigError) as caught:
        validated(TrainConfig, {"epochs": "x" * 1000}, "run.yaml")
    assert len(str(caught.value)) < 250


def test_field_paths_name_nested_fields():
    paths = set(field_paths(TrainConfig))
    assert {"alpha", "data", "data.hflip", "data.synthetic.frames", "encoder.name", "betas"} <= paths
    assert "synthetic" not in paths
