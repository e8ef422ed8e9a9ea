"""YAML files and `KEY=VALUE` options -> validated pydantic models; errors name file, key, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from model.errors import ConfigError, guess, one_line

M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (PyYAML reads 1e-3 as text) and an error for a key given twice (PyYAML keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {  # a copy: the class attribute is shared with SafeLoader
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?[eE][-+]?[0-9]+$|^[-+]?\.[0-9_]+[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document. Raises ConfigError with `where` and the place in the text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {one_line(error)}") from None
    except (ValueError, RecursionError, OverflowError, AttributeError, LookupError, TypeError) as error:
        # PyYAML's constructors raise whatever they stumble over where a tag (!!bool) does not fit its value
        raise ConfigError(f"{where}: not valid YAML: {type(error).__name__}: {error}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises ConfigError where it is missing, unreadable or something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        near = sorted(p.name for p in there if not p.name.startswith("."))
        found = f" In {path.parent} there are: {', '.join(near)}." if near else ""
        raise ConfigError(f"{path}: no such file.{guess(path.name, near)}{found}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        kind = "an empty file" if content is None else type(content).__name__
        raise ConfigError(f"{path}: must hold a mapping (key: value lines), but holds {kind}.")
    return content


def with_overrides(content: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=VALUE` options (VALUE is YAML) to a copy of `content`. Raises ConfigError on a malformed option."""
    result: dict[str, Any] = dict(content)
    for option in options:
        key, equals, text = option.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {option!r}: must be KEY=VALUE, for example --set trainer.epochs=10")
        place = result
        *parents, last = key.split(".")
        for depth, part in enumerate(parents):
            inner = place.get(part) if place.get(part) is not None else {}
            if not isinstance(inner, Mapping):
                name = ".".join(parents[: depth + 1])
                raise ConfigError(f"--set {option!r}: {name} is a value, it has no keys in it.")
            place[part] = dict(inner)  # a copy: YAML aliases share one mapping, and only this place is meant
            place = place[part]
        place[last] = parse_yaml(text, f"--set {option!r}")
    return result


def validated(model: type[M], content: Any, where: str, prefix: str = "") -> M:
    """`model` made from `content`. Raises ConfigError: a line per fault, `where: prefix.key = value; rule. remedy`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults = [_explain(dict(fault), model, content, prefix) for fault in error.errors()]
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in dict.fromkeys(faults))) from None
    except RecursionError:
        raise ConfigError(f"{where}: a block contains itself (a YAML anchor that refers to its own block)") from None


def field_value(content: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name in a config's plain data. Raises LookupError or TypeError where it has none."""
    place: Any = content
    for part in name.split("."):
        place = place[part]
    return place


def set_field(content: dict[str, Any], name: str, value: Any) -> None:
    """Put the value of a dotted name into a config's plain data; blocks that are absent are made."""
    *parents, last = name.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[last] = value


def field_paths(model: type[BaseModel], prefix: str = "", in_lists: bool = True) -> Iterator[str]:
    """Dotted names of all fields of a config, nested ones included.

    Args:
        in_lists: also those of a list's items, which a dotted name cannot set.
    """
    for name, info in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models_in(info.annotation, in_lists):
            yield from field_paths(inner, f"{prefix}{name}.", in_lists)


def _models_in(annotation: Any, in_lists: bool) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    if in_lists or get_origin(annotation) in (Union, UnionType, Annotated):
        for argument in get_args(annotation):
            yield from _models_in(argument, in_lists)


def _explain(fault: dict[str, Any], model: type[BaseModel], content: Any, prefix: str) -> str:
    keys = _real_keys(fault["loc"], content)
    path = ".".join(part for part in (prefix, *keys) if part)
    if fault["type"] == "extra_forbidden":
        known = sorted(field_paths(model))
        relative = ".".join(keys)
        here = relative.rpartition(".")[0]
        siblings = [k for k in known if k.rpartition(".")[0] == here] or [k for k in known if "." not in k]
        # the right key in the wrong block comes before a key of this block that only looks alike
        elsewhere = [k for k in known if k.rpartition(".")[2] == keys[-1]]
        hint = guess(relative, elsewhere or siblings) or guess(relative, known)
        return f"unknown key {path!r};{hint} Known here: {', '.join(s.rpartition('.')[2] for s in siblings)}."
    if fault["type"] == "missing":
        if isinstance(fault["loc"][-1], int):
            index = fault["loc"][-1]
            return f"{path.removesuffix(f'.{index}')} has too few values: number {index + 1} is missing."
        return f"{path} is missing; it must be given."
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "must be")
    if fault["type"] in ("value_error", "assertion_error"):
        return f"{path}: {message}" if path else message  # our own validators say what was given
    return f"{path} = {_shown(fault['input'])}; {message}."


def _real_keys(location: tuple[Any, ...], content: Any) -> list[str]:
    """pydantic puts the name of a union's member into the location; keep the parts that exist in the content."""
    keys: list[str] = []
    for index, part in enumerate(location):
        in_list = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if in_list or (isinstance(content, Mapping) and part in content):
            content = content[part]
        elif index != len(location) - 1 or isinstance(content, str | int | float | bool | list):
            continue
        keys.append(str(part))
    return keys


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
