"""Shard formats: the forms of data shards by the names that the configuration has for them."""

from __future__ import annotations

from .shard import ParquetShards, ShardFormat
from .shard_tar import TarShards

SHARD_FORMATS: dict[str, ShardFormat] = {one.name: one for one in (ParquetShards(), TarShards())}


def shard_format(name: str) -> ShardFormat:
    """The form of an output's data shards."""
    return SHARD_FORMATS[name]
