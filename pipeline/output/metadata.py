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
from ..storage.files import AnyPath, open_input

METADATA_KEY = b"visionbake"
_DAMAGE = (pa.ArrowException, tarfile.TarError, struct.error, KeyError, ValueError, TypeError, IndexError)


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
    """The JSON in a shard's footer. Raises OutputError if it is not one of ours."""
    with reading_shard(path), open_input(path, forwards=False) as stream:
        metadata = pq.read_metadata(stream).metadata or {}
        return dict(json.loads(metadata[METADATA_KEY]))
