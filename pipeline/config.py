"""The configuration: read from a file or from a command's words, with one clear line when something is wrong.

Everything is checked before anything is read or written. What may stand in it is in `config_fields`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .config_fields import Cluster, Config, Source, Video
from .errors import RequestError

__all__ = ["Cluster", "Config", "Source", "Video", "config_of", "load_config", "parse_config"]


def _read_yaml(text: str) -> Any:
    """Reads YAML in which no key of a mapping stands twice: PyYAML would take the last one without a word.

    Raises:
        YAMLError, ValueError, RecursionError: it is no YAML, or has a value that is none.
        _WrittenTwice: a key stands twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        _check_once(root)
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


class _WrittenTwice(Exception):
    """A key of one mapping stands in two lines, which the message names."""


def _check_once(root: yaml.Node | None) -> None:
    """Looks at every mapping, before `<<` mixes them: what that brings in may be written again.

    Raises:
        _WrittenTwice: a key stands twice in one of them.
    """
    waiting: list[yaml.Node] = [] if root is None else [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias may lead back
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                name, line = (key.tag, str(key.value)), key.start_mark.line + 1
                if name in lines:
                    raise _WrittenTwice(f"line {line}: {key.value} is written twice, first in line {lines[name]}")
                lines[name] = line
                waiting.append(value)


def load_config(path: str, overrides: list[str] | None = None) -> Config:
    """Reads and validates a YAML configuration.

    Args:
        path: the YAML file.
        overrides: `a.b=value` strings; the value is read as YAML.

    Raises:
        RequestError: naming the file or the field, and what would be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RequestError(f"configuration {path}: there is no file {Path(path).absolute()}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration {path}: cannot be read: {error}") from error
    try:
        tree = _read_yaml(text)
    except _WrittenTwice as error:
        raise RequestError(f"configuration {path}: {error}; only one of them can count") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second of a date that is none
        raise RequestError(f"configuration {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RequestError(f"configuration {path}: must be a mapping with source, model and output")
    return config_of(tree, overrides, where=f"configuration {path}")


def config_of(tree: dict[str, Any], overrides: list[str] | None = None, where: str = "configuration") -> Config:
    """Validates a tree with `a.b=value` strings put over it. Raises RequestError as `load_config` does."""
    for override in overrides or []:
        _set(tree, override)
    return parse_config(tree, where)


def parse_config(tree: dict[str, Any], where: str = "configuration") -> Config:
    """Validates an already parsed tree. Raises RequestError as `load_config` does."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise RequestError(_one_line(where, error)) from error


def _set(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise RequestError(f"--set {override}: must be a.b=value")
    try:
        value = _read_yaml(text)
    except _WrittenTwice as error:
        raise RequestError(f"--set {override}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"--set {override}: the value is not valid YAML") from error
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RequestError(f"--set {override}: {parent} is not a section")
    node[last] = value


def _one_line(where: str, error: ValidationError) -> str:
    details = error.errors()
    first = details[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown field; {_known_fields(first['loc'])}"
    elif first["type"] == "missing":
        message = "is missing"
    else:
        message = f"{message[:1].lower()}{message[1:]}, not {first['input']!r}"[:300]
        if first["type"] == "value_error" and first["loc"] in (("preprocess",), ("preprocess", "video"), ("model",)):
            message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {field}: {message}{more}"


def _known_fields(location: tuple[int | str, ...]) -> str:
    """The nearest field, and those that there are."""
    model: Any = Config
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation
    known, given = list(model.model_fields), str(location[-1])
    if near := difflib.get_close_matches(given, known, n=1):
        return f"did you mean {near[0]}? Known here: {', '.join(known)}"
    elsewhere = [
        f"{section}.{given}"
        for section, field in Config.model_fields.items()
        if given in getattr(field.annotation, "model_fields", {})
    ]
    there = f"there is {' and '.join(elsewhere)}; " if elsewhere else ""
    return f"{there}known here: {', '.join(known)}"
