"""Shard settings: what every shard of a run says about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What a shard says about itself, the same for all shards of a run."""

    fingerprint: str
    tower_sha256: str
    stage: str
    dtype: str
    hidden_size: int
    merge_size: int
    row_group_bytes: int
    device: str
    format: str = "parquet"
