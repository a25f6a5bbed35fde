"""Every field of the configuration: type, default, meaning. With OUTPUT: the configuration that made an output."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ..config_fields import Config
from ..output.info import read_dataset
from .console import add_json_argument, output_of, print_json, say

WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", nargs="?", metavar="OUTPUT", help="print its configuration, as `run` takes it")
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        tree = read_dataset(output_of(arguments.output)).config
        if arguments.json:
            print_json(tree)
        else:
            say(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).rstrip())
        return 0
    if arguments.json:
        print_json({name: {"type": kind, "default": value, "meaning": text} for name, kind, value, text in fields()})
        return 0
    section = ""
    for name, kind, value, text in fields():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            say(f"{'' if section == 'source' else chr(10)}{section}: {Config.model_fields[section].description}")
        say(f"  {name.partition('.')[2]:<22} {kind}{'' if value == REQUIRED else f' = {value}'}")
        for line in textwrap.wrap(text, WIDTH - 25):
            say(f"{'':25}{line}")
    return 0


REQUIRED = "(must be given)"


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yields each field's name with its section, its type, its default as YAML has it, and its meaning."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")
            continue
        default: Any = field.get_default(call_default_factory=True)
        shown = REQUIRED if default is PydanticUndefined else _as_yaml(default)
        yield f"{prefix}{name}", kind_of(inner), shown, " ".join((field.description or "").split())


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def kind_of(annotation: Any) -> str:
    """A field's type in the words of a user: the values that it takes, or `int`, `text`, `a list of text`."""
    arguments = get_args(annotation)
    if arguments and all(isinstance(one, str) for one in arguments):
        return " | ".join(arguments)
    if annotation == list[str]:
        return "a list of text"
    if arguments:  # `int | str` is a number, or auto
        kinds = {
            "auto" if (one is str and float in arguments) or (one is str and int in arguments) else kind_of(one)
            for one in arguments
        }
        return " | ".join(sorted(kinds))
    return {str: "text", int: "integer", float: "number", bool: "true | false", type(None): "null"}[annotation]


def markdown() -> str:
    """docs/configuration.md: the same as a table a section."""
    lines = [
        "# Configuration",
        "",
        "A YAML file; `--set a.b=value` overrides a field. An unknown field or an impossible value is an error that",
        "names the field. Made from the descriptions beside the fields (`visionbake config` prints them as well).",
    ]
    section = ""
    for name, kind, value, text in fields():
        if (head := name.partition(".")[0]) != section:
            section = head
            lines += ["", f"## `{head}`", "", str(Config.model_fields[head].description), ""]
            lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        cells = [f"`{name}`", kind, "" if value == REQUIRED else f"`{value}`", text]
        lines.append("| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"
