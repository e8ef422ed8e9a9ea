"""`python -m sweep.schema`: the JSON schema of a spec, with which editors complete, explain and check it.

It is made from the models of sweep/spec.py and their docstrings, and from the grammar of parameters. The loader
(`load_spec`) stays the truth. What passes here and is refused there, because a schema cannot say it:

- what depends on several keys: min above max, probabilities that do not sum to 1, a patch size that does not divide the
  image, a preset outside its range, conditions on what is not searched, a sampler that does not fit;
- bounds of a range that its field refuses (`epochs: {min: 0.5, max: 3}`); every value is tried when a spec is loaded;
- folders that do not exist, regular expressions that do not compile, names of no timm model.

What is refused here, though the loader takes it: numbers and booleans written as text (`epochs: "8"`), true and false
in place of numbers.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from model.config import TrainConfig
from sweep.blocks import MAY_CHANGE_MIDWAY, METRIC_NAMES, OF_HYPERBAND
from sweep.schema_grammar import ENTRY, Schema, entry_schema, parameters_name, parameters_schema, values_of_parameters
from sweep.spec import FOR_WANDB_ONLY, SweepSpec

DIALECT = "http://json-schema.org/draft-07/schema#"  # the one that all editors know
SPEC = SweepSpec.__name__
FIELD, VALUES, WANTED = "Field", "Values", "Wanted"  # definitions: a parameter's name; a preset; a condition
NOT_NULL: Schema = {"not": {"type": "null"}}


def schema() -> Schema:
    """The JSON schema (draft 7) of a spec file."""
    whole = _draft_7(SweepSpec.model_json_schema(ref_template="#/definitions/{model}"))
    definitions: dict[str, Schema] = whole.pop("$defs")
    named = definitions | {SPEC: whole}
    for model in _models(SweepSpec):
        _describe(named[model.__name__], model)
        _tell_of_blocks(named[model.__name__], definitions)
    _tell_what_validators_check(whole["properties"], definitions)
    parameters = parameters_schema(TrainConfig)
    fields = values_of_parameters(TrainConfig)
    wanted = {
        name: {"anyOf": [field, {"type": "array", "minItems": 1, "items": field}]} for name, field in fields.items()
    }
    for key, rule in whole["properties"].items():
        # a block whose lines are all commented out is null
        whole["properties"][key] = _or_null(rule) if key != "parameters" else _named(TrainConfig, rule)
    return {
        "$schema": DIALECT,
        **whole,
        "title": "Spec of a sweep",
        "description": "What is searched, how, and what all trials share (sweeps/README.md).",
        "required": ["parameters"],  # the name is the file's where it is absent
        "not": {
            "required": ["metric", "metrics"],
            "properties": {"metric": NOT_NULL, "metrics": {"type": "array", "minItems": 1}},
        },
        "definitions": {
            **definitions,
            **parameters,
            ENTRY: entry_schema(),
            FIELD: {"enum": list(fields)},
            VALUES: {"type": "object", "properties": fields, "additionalProperties": False},
            WANTED: {"type": "object", "properties": wanted, "additionalProperties": False},
        },
    }


def text() -> str:
    """The schema as it is kept in sweeps/schema.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _tell_what_validators_check(spec: Schema, definitions: dict[str, Schema]) -> None:
    """Rules that the models keep in Python."""
    metric = definitions["MetricSettings"]["properties"]
    metric["name"] = {**metric["name"], "enum": list(METRIC_NAMES)}
    spec["name"]["pattern"] = r"^[^/\\.][^/\\]*$"
    spec["metrics"]["not"] = {"minItems": 1, "maxItems": 1}  # none is as good as no such key, one is no front
    spec["results"]["anyOf"][0]["pattern"] = r"\S"
    for key in FOR_WANDB_ONLY:
        spec[key]["description"] = "For W&B only: of no effect here."
    search = definitions["SearchSettings"]["properties"]
    for preset in (kind for kind in search["presets"]["anyOf"] if kind["type"] == "array"):
        preset["items"] = {"$ref": f"#/definitions/{VALUES}"}
    search["conditions"] |= {
        "propertyNames": {"$ref": f"#/definitions/{FIELD}"},
        "additionalProperties": {"$ref": f"#/definitions/{WANTED}"},
    }
    paths = {key: search["warm_start"].pop(key) for key in ("type", "items")}
    search["warm_start"]["anyOf"] = [paths, paths["items"]]
    definitions["Pbt"]["properties"]["parameters"]["items"]["enum"] = list(MAY_CHANGE_MIDWAY)
    definitions["Confirm"]["properties"]["seeds"]["uniqueItems"] = True
    first: Schema = {"required": ["min_iter"], "properties": {"min_iter": NOT_NULL}}
    several: Schema = {"required": ["max_iter", "s"], "properties": {"max_iter": NOT_NULL, "s": NOT_NULL}}
    definitions["EarlyTerminate"] |= {
        "if": {"properties": {"type": {"const": "median"}}},
        "then": {"allOf": [first], "properties": dict.fromkeys(OF_HYPERBAND, False)},
        "else": {"anyOf": [first, several], "properties": {"min_trials": {"type": "null"}}},
    }


def _named(model: type[BaseModel], rule: Schema) -> Schema:
    return {"description": rule["description"], "allOf": [{"$ref": f"#/definitions/{parameters_name(model)}"}]}


def _tell_of_blocks(definition: Schema, definitions: dict[str, Schema]) -> None:
    """A field that holds a block, and says nothing of it, is what the block is."""
    for rule in definition["properties"].values():
        name = rule.get("$ref", "").rpartition("/")[2]
        if name and "description" not in rule:
            rule["description"] = definitions[name]["description"]


def _or_null(rule: Schema) -> Schema:
    about: Schema = {key: rule[key] for key in ("description", "default") if key in rule}
    kinds = rule.get("anyOf", [{key: part for key, part in rule.items() if key not in about}])
    return {**about, "anyOf": kinds if {"type": "null"} in kinds else [*kinds, {"type": "null"}]}


def _draft_7(part: Any) -> Any:
    """pydantic writes a newer dialect, in which lists of fixed length differ.

    What tells nothing goes: its titles, and the defaults that are null or whole blocks, which editors would write down.
    """
    if isinstance(part, list):
        return [_draft_7(item) for item in part]
    if not isinstance(part, dict):
        return part
    silent = {"title": str, "default": type(None) | dict}
    result = {
        key: _draft_7(item) for key, item in part.items() if key not in silent or not isinstance(item, silent[key])
    }
    if "prefixItems" in result:
        result["items"] = result.pop("prefixItems")
    return result


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all models in its fields."""
    found = [model]
    for each in found:  # grows
        for info in each.model_fields.values():
            found += [kind for kind in _kinds(info.annotation) if kind not in found]
    yield from found


def _kinds(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _kinds(argument)


def _describe(definition: Schema, model: type[BaseModel]) -> None:
    """Give each field the docstring below it in the source."""
    # pydantic's use_attribute_docstrings would parse the sources at every import, in every worker
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            assert isinstance(tree, ast.ClassDef)
            for field, below in zip(tree.body, tree.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    words = _words(below)
                    if words and field.target.id in definition["properties"]:
                        definition["properties"][field.target.id]["description"] = words


def _words(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m sweep.schema`."""
    return argparse.ArgumentParser(
        prog="python -m sweep.schema",
        description="Print the JSON schema of a spec: editors complete, explain and check specs with it "
        "(sweeps/README.md). sweeps/schema.json is this text.",
        epilog="example: python -m sweep.schema > sweeps/schema.json",
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser().parse_args(arguments)
    sys.stdout.write(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
