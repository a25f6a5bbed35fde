"""Members: what stands beside an image in a tar or a folder, carried whole: text as string, others as binary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ..errors import SourceError
from .part import Part
from .sample import IndexedSample

TEXT_SUFFIXES = ("txt", "text", "caption", "json", "jsonl", "html", "md", "csv", "url", "cls", "id", "transcript")


def members_schema(suffixes: Sequence[str]) -> pa.Schema:
    """The types of carried members, by their suffixes alone."""
    return pa.schema([(suffix, pa.string() if _is_text(suffix) else pa.binary()) for suffix in suffixes])


def _is_text(suffix: str) -> bool:
    return suffix.rpartition(".")[2].lower() in TEXT_SUFFIXES


def text_of(
    part: Part, samples: Sequence[IndexedSample], members: Sequence[dict[str, bytes]], schema: pa.Schema
) -> list[dict[str, Any]]:
    """Members by suffix, decoded in the columns that are text. Raises SourceError: one is not valid UTF-8."""
    texts = {field.name for field in schema if pa.types.is_string(field.type)}
    rows: list[dict[str, Any]] = []
    for sample, found in zip(samples, members, strict=True):
        try:
            rows.append({name: data.decode("utf-8") if name in texts else data for name, data in found.items()})
        except UnicodeDecodeError as error:
            where = os.path.join(part.root, sample.source)
            raise SourceError(f"{where}: what is carried of {sample.key} is not valid UTF-8: {error}") from error
    return rows
