"""Metadata: the JSON that every Parquet shard of an output has in its footer, and how the reading of shards fails."""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DamagedPart, DamagedShard, SourceError, output_error
from ..storage.files import AnyPath, open_tail

METADATA_KEY = b"visionbake"
# What reading bytes that are no shard may raise: they can say anything.
_DAMAGE = (
    *(pa.ArrowException, tarfile.TarError, struct.error, RecursionError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)


@contextmanager
def reading_shard(path: AnyPath) -> Iterator[None]:
    """Tells a damaged shard from one that cannot be read.

    Raises:
        DamagedShard: it is not complete.
        OutputError: it cannot be read, which says nothing about it (OutputBusy: at the moment).
    """
    try:
        yield
    except MemoryError:  # Arrow's own is an ArrowException too
        raise
    except DamagedPart as error:
        raise DamagedShard(f"{path}: not a complete shard: {error}") from error
    except (OSError, SourceError) as error:
        # Arrow's own of a file that it does not understand has no errno.
        if isinstance(error, SourceError) or error.errno is not None:
            raise output_error(f"{path}: cannot be read: {error}", error) from error
        raise DamagedShard(f"{path}: not a complete shard: {error}") from error
    except _DAMAGE as error:
        raise DamagedShard(f"{path}: not a complete shard: {error}") from error


def read_metadata(path: AnyPath) -> dict[str, Any]:
    """The JSON in a shard's footer; of an object one request.

    Raises:
        DamagedShard: it is not one of ours, whatever its bytes are.
        OutputError: it cannot be read.
    """
    with reading_shard(path), open_tail(path, whole=False) as stream:
        metadata = pq.read_metadata(stream).metadata or {}
        return parse_metadata(metadata[METADATA_KEY])


def parse_metadata(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a shard says about itself. Raises ValueError: it is none."""
    try:
        tree = json.loads(text)
    except RecursionError as error:
        raise ValueError("its metadata is nested too deep") from error
    if not isinstance(tree, dict):
        raise ValueError(f"its metadata is no JSON object, but {str(tree)[:80]!r}")
    return tree
