"""Print a commented configuration for a source, with what was found there: visionbake init photos/ out/ > my.yaml"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

from ..config import Source, config_of
from ..source.format import SourceFormat
from ..source.formats import format_named
from ..source.found_columns import FoundColumn
from ..source.lister import list_source
from ..source.listing import Listing
from ..source.media import BOTH, IMAGE, VIDEO
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
{output}
  dtype: bfloat16              # int8 and fp8 take half of it, with a scale for each token
# cluster:
#   engine: inline             # one process, without Ray
#   device: cuda               # wait for GPUs, and never take a CPU instead
# limits:
#   max_rejected_fraction: 0.1 # a run with more rejects than this share stops
#
# Every other field: visionbake config
"""
SETTINGS = {IMAGE: "image_column", VIDEO: "video_column"}
KEY_KINDS = ("str", "int", "large_str", "uint")  # types of keys, as tables and as Python call them
COLUMN_WIDTH = 29
SHOWN = 30  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder, tars, Parquet, a manifest")
    parser.add_argument("output", metavar="OUTPUT", help="where the output shall lie")
    parser.add_argument("--model", metavar="M", default=MODEL, help="Hub id, local directory, or random:tiny")


def main(arguments: argparse.Namespace) -> int:
    tree = {"source": {"uri": arguments.source}, "model": {"path": arguments.model}}
    config = config_of(tree | {"output": {"uri": arguments.output}}, where="the command")
    place = resolve_source(config.source)
    listing = list_source(replace(place, media=BOTH))
    source_format = format_named(place.format)
    columns = source_format.columns_found(listing) if listing.count else []
    lines = _column_lines(columns, config.source, rows=source_format.has_columns)
    say(
        TEMPLATE.format(
            found=_found(source_format, listing),
            source=_text(arguments.source),
            format=place.format,
            columns="".join(f"{line}\n" for line in lines),
            model=_text(arguments.model),
            output=_line(
                f"  uri: {_text(arguments.output)}", "ask first what it will take: visionbake plan this-file.yaml"
            ),
        ).rstrip()
    )
    return 0


def _found(source_format: SourceFormat, listing: Listing) -> str:
    """Says in a line how much lies there."""
    ignored = f"; {ignored_text(listing.ignored)}" if listing.ignored else ""
    if not source_format.is_of_images:
        return f"{listing.count:,} file{'s' if listing.count != 1 else ''} of format {source_format.name}{ignored}"
    images = listing.count - listing.videos
    counts = [f"{images:,} images"] if images or not listing.videos else []
    counts += [f"{listing.videos:,} videos"] if listing.videos else []
    return f"{' and '.join(counts)} of format {source_format.name}{ignored}"


def _column_lines(columns: Sequence[FoundColumn], source: Source, *, rows: bool) -> list[str]:
    """The lines of the source's section that speak of columns; where the defaults will not do, they are set.

    Args:
        rows: these are columns of rows, of which one may be the key; else members of tars.
    """
    lines = []
    for media, setting in SETTINGS.items() if rows else ():
        here = [column for column in columns if column.holds == media]
        named = next((column for column in here if column.name == getattr(source, setting)), None)
        if not here:
            continue
        taken = named or here[0]
        others = f"; or {_listed([one for one in here if one is not taken])}" if len(here) > 1 else ""
        lines.append(_line(f"  {setting}: {_text(taken.name)}", f"{taken.kind}{others}"))
    if not columns:
        return []
    if rows and not lines:
        lines.append(f"# image_column: …              # none of these seems to hold images: {_listed(columns)}")
    rest = [column for column in columns if not column.holds]
    if rows:
        keys = [one for one in rest if one.kind.startswith(KEY_KINDS)]
        some = f"; or one of {_listed(keys)}" if keys else ""
        lines.append(_line("  # key_column: null", f"a key is file:row{some}"))
    if rest:
        lines.append(_line("  # carry: []", f"copied to the output, any of {_listed(rest)}"))
    return lines


def _line(setting: str, comment: str) -> str:
    return f"{setting:{COLUMN_WIDTH}}  # {comment}"


def _listed(columns: Sequence[FoundColumn]) -> str:
    some = ", ".join(
        _text(column.name) if column.kind == "member" else f"{_text(column.name)} ({' '.join(column.kind.split())})"
        for column in columns[:SHOWN]
    )
    return some + (f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")


def _text(value: str) -> str:
    """A text as YAML has it, in quotes where they are needed."""
    plain = value.replace("/", "").replace("-", "").replace("_", "").replace(".", "")
    return value if plain.isalnum() and not plain.isdigit() else json.dumps(value, ensure_ascii=False)
