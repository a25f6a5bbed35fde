"""Metadata: the JSON that every Parquet shard of an output has in its footer."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import output_error
from ..storage.files import AnyPath, open_tail

METADATA_KEY = b"visionbake"


def read_metadata(path: AnyPath) -> dict[str, Any]:
    """The JSON in a shard's footer; of an object one request. Raises OutputError if it is not one of ours,
    whatever its bytes are."""
    try:
        with open_tail(path, whole=False) as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        return parse_metadata(metadata[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise output_error(f"{path}: not a complete shard: {error}", error) from error


def parse_metadata(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a shard says about itself. Raises ValueError: it is none."""
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise ValueError("its metadata is nested too deep") from error
    if not isinstance(tree, dict):
        raise ValueError(f"its metadata is no JSON object, but {str(tree)[:80]!r}")
    return tree
