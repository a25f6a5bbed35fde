"""Metadata: the JSON that every Parquet shard of an output has in its footer."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import OutputError
from ..storage.files import AnyPath, open_tail

METADATA_KEY = b"visionbake"


def read_metadata(path: AnyPath) -> dict[str, Any]:
    """The JSON in a shard's footer; of an object one request. Raises OutputError if it is not one of ours."""
    try:
        with open_tail(path, whole=False) as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        return dict(json.loads(metadata[METADATA_KEY]))
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise OutputError(f"{path}: not a complete shard: {error}") from error
