"""W&B's grammar of `parameters` (sweep/grammar.py) as JSON schema: what may stand for each field of the trainer.

A parameter is a field of the trainer, by its dotted name or nested under `parameters`; its entry says what is tried.
Values that an entry names (`value`, `values`) are checked as the field itself is.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from model.configfile import field_paths
from sweep.grammar import DEFAULTS, EXPONENTS, KEYS
from sweep.parameters import LARGEST_NUMBER
from sweep.quantiles import SHAPES

Schema = dict[str, Any]

ENTRY = "Entry"  # names of definitions
MEANING = {
    "distribution": "How values are drawn; where it is left out, the other keys tell: value, values, or min and max.",
    "value": "A constant of all trials.",
    "values": "The values to try, each as likely.",
    "probabilities": "A chance for each of values; they sum to 1.",
    "min": "Smallest value; of log_uniform, q_log_uniform and their inverses the exponent of e.",
    "max": "Largest value; of log_uniform, q_log_uniform and their inverses the exponent of e.",
    "q": "Values are multiples of q.",
    "mu": "Mean; of log_normal that of the natural logarithm.",
    "sigma": "Standard deviation; of log_normal that of the natural logarithm.",
    "a": "First shape of the beta distribution.",
    "b": "Second shape of the beta distribution.",
}
NUMBER: Schema = {"type": "number", "minimum": -LARGEST_NUMBER, "maximum": LARGEST_NUMBER}
POSITIVE: Schema = {"exclusiveMinimum": 0}
SHAPE: Schema = {"minimum": SHAPES[0], "maximum": SHAPES[1]}
FORMS: dict[str, Schema] = {
    "value": {},
    "values": {"type": "array", "minItems": 1, "uniqueItems": True},
    "probabilities": {"type": "array", "minItems": 1, "items": {"type": "number", "minimum": 0, "maximum": 1}},
    "q": NUMBER | POSITIVE,
    "sigma": NUMBER | POSITIVE,
    "a": NUMBER | SHAPE,
    "b": NUMBER | SHAPE,
}


def entry_schema() -> Schema:
    """Of one entry, whatever the field: which keys go with which distribution, and the numbers in them."""
    properties: Schema = {key: {"description": text, **FORMS.get(key, NUMBER)} for key, text in MEANING.items()}
    properties["distribution"] = {"description": MEANING["distribution"], "enum": list(KEYS)}
    implied = [name for name in KEYS if name.startswith("categorical") or name in ("constant", "uniform")]
    return {
        "description": "What is tried of one parameter, as in W&B: value; values; min and max; or a distribution.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "if": {"required": ["distribution"]},
        "then": {"required": ["distribution"], "allOf": [_named(name) for name in KEYS]},
        "else": {"anyOf": [_keys(name) for name in implied]},
    }


def _named(distribution: str) -> Schema:
    """If an entry names this distribution, then it has the keys of it."""
    numbers: Schema = {}
    if distribution == "int_uniform":
        numbers = {key: {"type": "integer"} for key in ("min", "max")}
    elif "log_uniform" in distribution and distribution not in EXPONENTS:
        numbers = {"min": POSITIVE}
    rule = _keys(distribution) | ({"properties": numbers} if numbers else {})
    return {"if": {"properties": {"distribution": {"const": distribution}}}, "then": rule}


def _keys(distribution: str) -> Schema:
    keys = KEYS[distribution]
    needed = [key for key in keys if key not in DEFAULTS]
    allowed: Schema = {"propertyNames": {"enum": ["distribution", *keys]}}
    return {"required": needed, **allowed} if needed else allowed


def parameters_name(model: type[BaseModel]) -> str:
    """The definition of a mapping of parameters that are fields of this config."""
    return f"{model.__name__}Parameters"


def parameters_schema(model: type[BaseModel]) -> dict[str, Schema]:
    """Definitions of a mapping of parameters that are fields of a config, and of those nested in it.

    They refer to the definitions of the entry (ENTRY) and of the configs, by the names of their classes.
    """
    made: dict[str, Schema] = {}
    properties: Schema = {}
    for path, field in values_of_parameters(model).items():
        rule: Schema = {
            "allOf": [{"$ref": f"#/definitions/{ENTRY}"}],
            "properties": {"value": field, "values": {"items": field}},
        }
        block = _block(*_owner(model, path))
        if block is not None:
            made |= parameters_schema(block)
            inner = {"parameters": {"$ref": f"#/definitions/{parameters_name(block)}"}}
            nested = {"type": "object", "properties": inner, "additionalProperties": False}
            rule = {"if": {"required": ["parameters"]}, "then": nested, "else": rule}
        properties[path] = rule
    mapping = {"type": "object", "properties": properties, "additionalProperties": False, "minProperties": 1}
    return {parameters_name(model): mapping, **made}


def values_of_parameters(model: type[BaseModel]) -> dict[str, Schema]:
    """What a value of each parameter must be, by its dotted name: a reference to its field in the definitions."""
    owners = {path: _owner(model, path) for path in field_paths(model, in_lists=False)}
    return {
        path: {"$ref": f"#/definitions/{owner.__name__}/properties/{field}"} for path, (owner, field) in owners.items()
    }


def _owner(model: type[BaseModel], path: str) -> tuple[type[BaseModel], str]:
    """The config that a dotted name ends in, and its field there."""
    *parents, last = path.split(".")
    owner = model
    for parent in parents:
        block = _block(owner, parent)
        assert block is not None, path
        owner = block
    return owner, last


def _block(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The config that a field holds; None for a value, or a list."""
    annotation = model.model_fields[field].annotation
    kinds = () if hasattr(annotation, "__origin__") else (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
