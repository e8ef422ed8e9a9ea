"""Parameters on a trial's command line: every form that W&B's agents write, made by the real client's own code."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from sweep.arguments import parse_parameters, read_parameter_file

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "alpha": NUMBERS,
    "base_lr": st.floats(1e-12, 1e3),
    "epochs": st.integers(-(10**6), 10**6),
    "norm_pix_loss": st.booleans(),
    "clip_grad": st.none() | NUMBERS,
    "betas": st.lists(NUMBERS, min_size=2, max_size=2),
    "mode": st.sampled_from(["joint", "alternating"]),
    "data.root": st.sampled_from(["frames/a b", "x=y", "~/tactile", "d'e"]),
    "data.frame_stride": st.integers(1, 9),
    "encoder.depth": st.integers(1, 12),
}
parameters = st.fixed_dictionaries({}, optional=VALUES).filter(bool)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return content


def as_an_agent_writes(values: dict[str, Any], form: str) -> list[str]:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    words = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})[form]
    assert isinstance(words, list)
    return words


@pytest.mark.parametrize(
    "form", ["args", "args_no_equals", "args_no_hyphens", "args_json", "args_append_hydra", "args_override_hydra"]
)
@given(values=parameters)
def test_every_form_of_an_agents_arguments_gives_the_values_back(form: str, values: dict[str, Any]) -> None:
    assert parse_parameters(as_an_agent_writes(values, form)) == values
    assert parse_parameters(as_an_agent_writes(nested(values), form)) == values


@given(values=parameters)
def test_without_boolean_flags_a_false_one_is_left_out(values: dict[str, Any]) -> None:
    kept = {name: value for name, value in values.items() if value is not False}
    assert parse_parameters(as_an_agent_writes(values, "args_no_boolean_flags")) == kept


@given(values=parameters)
def test_the_parameter_file_of_an_agent_gives_the_values_back(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    from wandb.sdk.lib.config_util import save_config_file_from_dict

    for content in (values, nested(values)):
        file = tmp_path_factory.mktemp("agent") / "config.yaml"
        save_config_file_from_dict(str(file), {name: {"value": value} for name, value in content.items()})
        assert read_parameter_file(file) == values


def test_a_json_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"alpha": 0.3, "data": {"frame_stride": 2}}))
    assert parse_parameters([str(file)]) == {"alpha": 0.3, "data.frame_stride": 2}


def test_numbers_may_be_written_as_people_do() -> None:
    words = ["--base_lr=1e-3", "--alpha", ".5", "--beta", "-0.5", "--norm_pix_loss=true", "--clip_grad=null"]
    expected = {"base_lr": 1e-3, "alpha": 0.5, "beta": -0.5, "norm_pix_loss": True, "clip_grad": None}
    assert parse_parameters(words) == expected


@pytest.mark.parametrize("text", ["[a-z]+", "*x", "off", "2024_01", "#1", "1e3", " a: b", "{x}", "True"])
def test_a_text_stays_as_it_is(text: str) -> None:
    for name in ("data.root", "data.group_pattern", "encoder.name"):
        assert parse_parameters([f"--{name}={text}"]) == {name: text}
    assert parse_parameters(["--data.root=None"]) == {"data.root": None}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--alpa=0.3"], "unknown parameter 'alpa'; did you mean 'alpha'?"),
        (["--lr=0.3"], "did you mean 'base_lr'?"),
        (["--frame_stride=2"], "did you mean 'data.frame_stride'?"),
        (["--data={'frame_strid': 2}"], "unknown parameter 'data.frame_strid'; did you mean 'data.frame_stride'?"),
        (["--alpha=0.3", "alpha=0.4"], "'alpha' is given twice"),
        (["--data.frame_stride=2", "--data={'frame_stride': 2}"], "'data.frame_stride' is given twice"),
        (["0.3"], "'0.3' is no parameter; write --NAME=VALUE"),
        (["--"], "'--' is no parameter"),
        (["=3"], "'=3' is no parameter"),
        (["{alpha: 1}"], "not valid JSON"),
        (["[1]"], "'[1]' is no parameter"),
        (["nowhere.json"], "nowhere.json: cannot be read"),
        (["--alpha={"], "--alpha: not valid YAML"),
    ],
)
def test_what_is_no_parameter_is_named_with_the_remedy(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_parameters(words)
    assert told in str(caught.value)


@given(words=st.lists(st.text(max_size=20), max_size=5))
def test_any_words_are_parameters_or_a_config_error(words: list[str]) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_parameters(words), dict)


@pytest.mark.parametrize("text", ["", "[]", "alpha: 0.3", "alpha: {desc: null}", "alpha: {value: 0.3", "\x00"])
def test_a_parameter_file_that_no_agent_wrote_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_parameter_file(file)
