"""sweeps/schema.json, with which editors check specs, against the loader, which is the truth."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.configfile import load_yaml, validated
from model.errors import ConfigError
from sweep.grammar import KEYS
from sweep.schema import main, schema, text
from sweep.spec import SweepSpec

SPECS = Path(__file__).parents[1] / "sweeps"
ALPHA = {"alpha": {"min": 0.1, "max": 0.9}}
FULL = """
description: all that a spec can hold
project: p
entity: lab
method: bayes
metric: {name: objective/value, goal: minimize, target: 0.5, impute: worst, impute_while_running: latest}
parameters:
  alpha:      {min: 0.1, max: 0.9}
  base_lr:    {distribution: log_uniform_values, min: 1.0e-4, max: 4.0e-3}
  mask_ratio: {distribution: q_uniform, min: 0.5, max: 0.9, q: 0.05}
  clip_grad:  {values: [null, 1.0]}
  ema_decay:  {value: 0.9}
  mode:       {values: [joint, dynamic], probabilities: [0.7, 0.3]}
  weight_decay: {distribution: log_normal, mu: -3, sigma: 0.5}
  data: {parameters: {frame_stride: {values: [1, 2]}, synthetic: {parameters: {seed: {min: 0, max: 3}}}}}
  decoder.depth: {distribution: int_uniform, min: 1, max: 2}
early_terminate: {type: hyperband, min_iter: 2, eta: 3}
run_cap: 16
program: train.py
command: ["${env}", python, "${program}", "${args}"]
controller: {type: local}
apiVersion: "2.0"
kind: sweep
job: lab/tactile/train:latest
image_uri: lab/tactile:1
trainer:
  data: {source: synthetic, image_size: [48, 48], hflip: 0.0, synthetic: {sequences: 32}, clips_per_epoch: 512}
  encoder: {width: 64, depth: 2, heads: 4, patch_size: 8, sensors: [gelsight], unknown_sensor: [0, 1]}
  decoder: {width: 32}
  probe: {label: slip, every_epochs: 2, attentive: false}
  betas: [0.9, 0.95]
  device: cpu
objective: {loss: reference, contribution_weight: 0.5, ratio_weight: 0.5, target: 0.5, settle_epochs: 2}
search:
  sampler: tpe
  seed: 1
  presets: [{alpha: 0.5}, {alpha: 0.75, data.frame_stride: 2}]
  startup_trials: 4
  conditions: {clip_grad: {mode: joint}}
  stop: {time_budget_s: 60, plateau: {trials: 5, min_delta: 0.01}}
confirm: {top_k: 2, seeds: [1, 2, 3]}
resources: {cpu: 0.5, gpu: 0, max_concurrent: 2, processes: auto, memory_probe: never}
retries: {max_failures: 1, hang_s: null}
wandb: {mode: offline, init_timeout_s: 3}
results: results/full
"""
GOOD = {
    "least": "",
    "full": FULL,
    "blocks that are commented out": "name:\ntrainer:\nsearch:\nmetrics: []",
    "several metrics": "metrics: [{name: eval/loss_static}, {name: eval/pred_skill, goal: maximize}]",
    "median": "early_terminate: {type: median, min_iter: 2, min_trials: 3}",
    "bands": "early_terminate: {type: hyperband, s: 2, eta: 3, max_iter: 27}",
    "a population": "method: random\nsearch: {pbt: {quantile: 0.25}}",
    "one earlier sweep": "search: {warm_start: results/first}",
    "two earlier sweeps": "search: {warm_start: [results/a, results/b]}",
    "whole blocks as values": "method: grid\nparameters: {encoder: {values: [{depth: 2}, {width: 64, heads: 2}]}}",
    "weights from a file": "trainer: {encoder: {name: vit_tiny_patch16_224, pretrained: w.pt}, data: {image_size: 32}}",
    "a mixture": "trainer: {data: {source: mixture, parts: [{source: tacquad, root: /data/t, weight: 1}]}}",
}
BAD = {
    "no parameters": "parameters:",
    "empty parameters": "parameters: {}",
    "an unknown key": "run_caps: 3",
    "an unknown parameter": "parameters: {mask_ration: {min: 0.1, max: 0.9}}",
    "a parameter within a list": "parameters: {data.parts.source: {values: [frames]}}",
    "an unknown nested parameter": "parameters: {data: {parameters: {stride: {values: [1]}}}}",
    "nested beside other keys": "parameters: {data: {parameters: {frame_stride: {values: [1]}}, min: 1}}",
    "a plain value": "parameters: {alpha: 0.5}",
    "a list": "parameters: {alpha: [0.5, 0.6]}",
    "no range": "parameters: {alpha: {min: 0.1}}",
    "a range of text": "parameters: {alpha: {min: low, max: 0.9}}",
    "a range of booleans": "parameters: {alpha: {min: false, max: true}}",
    "an infinite range": "parameters: {base_lr: {min: 0, max: .inf}}",
    "a foreign key": "parameters: {alpha: {min: 0.1, max: 0.9, q: 0.1}}",
    "an unknown distribution": "parameters: {alpha: {distribution: gaussian, mu: 0.5}}",
    "a log range from 0": "parameters: {base_lr: {distribution: log_uniform_values, min: 0, max: 1}}",
    "half steps": "parameters: {epochs: {distribution: int_uniform, min: 1, max: 3.5}}",
    "q of 0": "parameters: {alpha: {distribution: q_uniform, min: 0.1, max: 0.9, q: 0}}",
    "no sigma": "parameters: {alpha: {distribution: normal, mu: 0.5, sigma: 0}}",
    "a flat beta": "parameters: {alpha: {distribution: beta, a: 0, b: 1}}",
    "no values": "parameters: {mode: {values: []}}",
    "values twice": "parameters: {mode: {values: [joint, joint]}}",
    "values of no such mode": "parameters: {mode: {values: [joint, both]}}",
    "a constant out of bounds": "parameters: {mask_ratio: {value: 1.5}, alpha: {min: 0.1, max: 0.9}}",
    "an unknown metric": "metric: {name: eval/los}",
    "one metric of several": "metrics: [{name: eval/loss_static}]",
    "metric and metrics": "metric: {}\nmetrics: [{name: eval/loss_static}, {name: eval/loss_dynamic}]",
    "no first decision": "early_terminate: {type: hyperband, eta: 3}",
    "median with eta": "early_terminate: {type: median, min_iter: 2, eta: 3}",
    "hyperband with min_trials": "early_terminate: {type: hyperband, min_iter: 2, min_trials: 3}",
    "a scheduler of W&B": "method: custom",
    "lr for base_lr": "trainer: {lr: 0.1}",
    "seeds twice": "confirm: {top_k: 1, seeds: [1, 1]}",
    "a preset of no field": "search: {presets: [{alfa: 0.5}]}",
    "a slash in the name": "name: a/b\nparameters: {alpha: {min: 0.1, max: 0.9}}",
    "the population changes its model": "method: random\nsearch: {pbt: {parameters: [encoder.depth]}}",
    "results in a blank": "results: ' '",
    "three betas": "trainer: {betas: [0.9, 0.9, 0.9]}",
}
FREE = (("description",), ("command",), ("controller",), ("job",), ("image_uri",), ("apiVersion",))

# what a schema cannot say: the words in which the loader says it
NUMBERS = (
    "is not below",
    "sum to",
    "cannot be trained",
    "no multiple",
    "numbers for",
    "usable range",
    "given twice",
    "too large",
    "more than 2^53",
)

CHECK = jsonschema.Draft7Validator(schema())


def faults(content: Any) -> list[str]:
    """What the schema says against a spec's content."""
    return [error.message for error in CHECK.iter_errors(content)]


def loads(content: Any) -> bool:
    """Whether the loader takes it, the name of a file given."""
    try:
        validated(SweepSpec, {"name": "x", **{key: v for key, v in content.items() if v is not None}}, "test")
    except ConfigError:
        return False
    return True


def content_of(document: str) -> dict[str, Any]:
    """A spec's content; alpha is searched unless it says otherwise."""
    return {"parameters": ALPHA, **(yaml.safe_load(document) or {})}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a content, blocks and values."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    result = copy.deepcopy(content)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


ALL = [path for path in places(content_of(FULL)) if path and path[:1] not in FREE]


def test_the_copy_beside_the_specs_is_up_to_date():
    kept = (SPECS / "schema.json").read_text(encoding="utf-8")
    assert kept == text(), "stale; mend it: python -m sweep.schema > sweeps/schema.json"


def test_the_command_prints_the_schema(capsys):
    assert main([]) == 0
    printed = json.loads(capsys.readouterr().out)
    jsonschema.Draft7Validator.check_schema(printed)
    assert printed == schema()


def test_every_field_of_a_spec_is_described():
    whole = schema()
    mute = []
    for name, block in {"spec": whole, **whole["definitions"]}.items():
        if not name.endswith(("Parameters", "Values", "Wanted")):  # the trainer's fields, described there
            fields = block.get("properties", {}).items()
            mute += [f"{name}.{field}" for field, rule in fields if not rule.get("description")]
    assert mute == []


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_ready_spec_names_the_schema_and_fits_it(path):
    assert path.read_text(encoding="utf-8").splitlines()[0] == "# yaml-language-server: $schema=schema.json"
    assert faults(load_yaml(path)) == []


@pytest.mark.parametrize("name", GOOD)
def test_the_schema_takes_what_the_loader_takes(name):
    assert loads(content_of(GOOD[name]))
    assert faults(content_of(GOOD[name])) == []


@pytest.mark.parametrize("name", BAD)
def test_the_schema_refuses_what_the_loader_refuses(name):
    assert not loads(content_of(BAD[name]))
    assert faults(content_of(BAD[name])) != []


def taken(content: Any) -> bool:
    """Whether one of the two takes it."""
    return loads(content) or not faults(content)


def test_a_key_that_no_block_knows_is_refused_by_both():
    full = content_of(FULL)
    blocks = [path for path in ALL if isinstance(at(full, path), dict)]
    assert [path for path in blocks if taken(changed(full, (*path, "nonsense"), 1))] == []
    assert len(blocks) > 30


def test_a_value_of_the_wrong_kind_is_refused_by_both():
    full = content_of(FULL)
    assert [path for path in ALL if taken(changed(full, path, {"nonsense": 1}))] == []
    numbers = [path for path in ALL if isinstance(at(full, path), int | float | dict)]
    assert [path for path in numbers if taken(changed(full, path, "nonsense"))] == []
    assert len(numbers) > 70


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """Entries for alpha, right and wrong: any distribution or none, most of the keys that it has, sometimes another."""
    distribution = draw(st.sampled_from([None, *KEYS]))
    keys = KEYS[distribution] if distribution else draw(st.sampled_from([("min", "max"), ("values",), ("value",)]))
    numbers = (-3, -0.5, 0, 0.1, 0.3, 0.5, 0.9, 1, 1.0, 2, 7.5, 1e-3, 1e5, 1e-300, 1e301, math.inf, True, None, "text")
    number = st.sampled_from(numbers)
    entry: dict[str, Any] = {"distribution": distribution} if distribution else {}
    for key in keys:
        if draw(st.integers(0, 9)):
            several = key in ("values", "probabilities")
            entry[key] = draw(st.lists(number, max_size=3) if several else number)
    if not draw(st.integers(0, 9)):
        entry[draw(st.sampled_from(["min", "q", "mu", "step"]))] = 0.5
    return entry


def has_booleans(entry: dict[str, Any]) -> bool:
    return any(isinstance(part, bool) for value in entry.values() for part in [value, *_listed(value)])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def refusal(content: Any) -> str:
    """What the loader says against a content; empty where it takes it."""
    try:
        validated(SweepSpec, {"name": "x", **content}, "test")
    except ConfigError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None)
@given(entries())
def test_what_the_schema_refuses_of_an_entry_the_loader_refuses_too(entry):
    content = {"parameters": {"alpha": entry}}
    if not has_booleans(entry):  # alpha: true is 1 to the loader, and a slip to the schema
        assert not faults(content) or refusal(content)


@settings(max_examples=150, deadline=None)
@given(entries())
def test_what_the_schema_takes_of_an_entry_is_refused_for_what_its_numbers_mean_together_alone(entry):
    content = {"parameters": {"alpha": entry}}
    said = "" if faults(content) else refusal(content)
    assert not said or any(words in said for words in NUMBERS), said
