"""A trial's parameters as W&B's agents write them on a command line or into a file.

All forms of W&B's `${args...}` are taken: `--alpha=0.3`, `--alpha 0.3`, `alpha=0.3`, `+alpha=0.3`, `++alpha=0.3`, a
bare `--flag` (true), the JSON text of `${args_json}` and the path of `${args_json_file}`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from model.config import TrainConfig
from model.configfile import field_paths, load_yaml, parse_yaml
from model.errors import ConfigError, guess

Values = dict[str, Any]


def parse_parameters(words: Sequence[str]) -> Values:
    """Words of a command line -> values by dotted TrainConfig names.

    Raises ConfigError for a name that is no field (with a guess), one given twice, and a word that is no parameter.
    """
    return _by_field(_pairs(words), "")


def read_parameter_file(path: Path) -> Values:
    """The file that an agent writes for its run, WANDB_SWEEP_PARAM_PATH: `name: {value: ...}`. Raises ConfigError."""
    pairs = []
    for name, entry in load_yaml(path).items():
        if name == "wandb_version":
            continue
        if not isinstance(entry, Mapping) or "value" not in entry:
            raise ConfigError(f"{path}: {name}: must be a mapping with a value, as W&B's agents write it")
        pairs.append((str(name), entry["value"]))
    return _by_field(pairs, f"{path}: ")


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word.startswith("{"):
            yield from _json(word, "the JSON of parameters").items()
            continue
        name, equals, text = word.lstrip("-+").partition("=")
        if equals and name:
            yield name, parse_value(text, name)
        elif word.startswith("--") and name:
            following = words[place] if place < len(words) else "--"
            if following.startswith("--") or _is_assignment(following):
                yield name, True  # W&B's ${args_no_boolean_flags} writes a true flag so, and leaves a false one out
            else:
                yield name, parse_value(following, name)
                place += 1
        elif word.endswith(".json"):
            try:
                content = Path(word).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConfigError(f"{word}: cannot be read: {error}") from None
            yield from _json(content, word).items()
        else:
            raise ConfigError(f"{word!r} is no parameter; write --NAME=VALUE, for example --alpha=0.3")


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.lstrip("+").partition("=")
    return bool(equals) and name in _KNOWN


def parse_value(text: str, name: str) -> Any:
    """A value as Python or YAML writes it: W&B writes None, True and nested values as Python does.

    What is for a field of text stays as it is, None and null aside.
    """
    if name in _TEXTS:
        return None if text in ("None", "null") else text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return parse_yaml(text, f"--{name}")


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: must hold an object of names and values, but holds {type(content).__name__}")
    return content


def _text_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that hold a text or a path, and nothing else."""
    for name, info in model.model_fields.items():
        kinds = set(_kinds(info.annotation))
        if kinds and kinds <= {str, Path}:
            yield f"{prefix}{name}"
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _text_fields(kind, f"{prefix}{name}.")


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, None aside; of a Literal, those of its values."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin in (Union, UnionType, Annotated):
        for part in get_args(annotation)[: 1 if origin is Annotated else None]:
            yield from _kinds(part)
    elif annotation is not type(None):
        yield origin or annotation


_KNOWN = tuple(sorted(field_paths(TrainConfig, in_lists=False)))
_TEXTS = frozenset(_text_fields(TrainConfig))


def _by_field(pairs: Iterable[tuple[str, Any]], where: str) -> Values:
    """Nested values -> one for each field, with its dotted name."""
    values: Values = {}
    for name, value in pairs:
        for field, inner in _fields_of(name, value):
            if field not in _KNOWN:
                remedy = guess(field, _KNOWN) or f" Known: {', '.join(_KNOWN)}."
                raise ConfigError(f"{where}unknown parameter {field!r};{remedy}")
            if field in values:
                raise ConfigError(f"{where}{field!r} is given twice; keep one")
            values[field] = inner
    for name in values:
        if inside := next((other for other in values if other.startswith(f"{name}.")), None):
            raise ConfigError(
                f"{where}{name!r} and {inside!r} are both given, and the one contains the other; keep one"
            )
    return values


def _fields_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and any(known.startswith(f"{name}.") for known in _KNOWN):
        for key, inner in value.items():
            yield from _fields_of(f"{name}.{key}", inner)
    else:
        yield name, value
