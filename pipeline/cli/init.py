"""Print a commented configuration for a source, with what was found there: visionbake init photos/ out/ > my.yaml"""

from __future__ import annotations

import argparse
import json

from ..config import config_of
from ..source.formats import format_named
from ..source.lister import list_source
from ..source.resolve import resolve_source
from .console import ignored_text, say
from .requested import MODEL

TEMPLATE = """\
# {found}
source:
  uri: {source}
  format: {format}
{columns}\
preprocess:
  max_pixels: 1003520          # the budget of one image: 28 × 28 pixels of Qwen2.5-VL are a token, so 1280 of them
model:
  path: {model}
output:
  uri: {output}                # ask first what it will take: visionbake plan this-file.yaml
  dtype: bfloat16              # int8 and fp8 take half of it, with a scale for each token
# cluster:
#   engine: inline             # one process, without Ray
#   device: cuda               # wait for GPUs, and never take a CPU instead
# limits:
#   max_rejected_fraction: 0.1 # a run with more rejects than this share stops
#
# Every other field: visionbake config
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder, tars, Parquet, a manifest")
    parser.add_argument("output", metavar="OUTPUT", help="where the output shall lie")
    parser.add_argument("--model", metavar="M", default=MODEL, help="Hub id, local directory, or random:tiny")


def main(arguments: argparse.Namespace) -> int:
    tree = {"source": {"uri": arguments.source}, "model": {"path": arguments.model}}
    config = config_of(tree | {"output": {"uri": arguments.output}}, where="the command")
    place = resolve_source(config.source)
    listing = list_source(place)
    kind = "images" if format_named(place.format).is_of_images else "files"
    found = f"{listing.count:,} {kind} of format {place.format}"
    if listing.ignored:
        found += f"; {ignored_text(listing.ignored)}"
    say(
        TEMPLATE.format(
            found=found,
            source=_text(arguments.source),
            format=place.format,
            columns=_columns(place.format),
            model=_text(arguments.model),
            output=_text(arguments.output),
        ).rstrip()
    )
    return 0


def _columns(kind: str) -> str:
    return ""


def _text(value: str) -> str:
    """A text as YAML has it, in quotes where they are needed."""
    plain = value.replace("/", "").replace("-", "").replace("_", "").replace(".", "")
    return value if plain.isalnum() and not plain.isdigit() else json.dumps(value, ensure_ascii=False)
