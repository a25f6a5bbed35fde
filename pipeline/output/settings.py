"""Shard settings: what every shard of a run says about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """The part of a shard's metadata that is the same for all shards of a run.

    Attributes:
        hidden_size: values of a row.
        streams: how many further streams a row has behind its main one, each as wide.
    """

    fingerprint: str
    tower_sha256: str
    stage: str
    dtype: str
    hidden_size: int
    merge_size: int
    row_group_bytes: int
    device: str
    format: str = "parquet"
    streams: int = 0

    def describe(self, unit_id: str, schema_version: int) -> dict[str, object]:
        """The metadata of one unit's data shard."""
        return {
            "schema_version": schema_version,
            "unit": unit_id,
            "fingerprint": self.fingerprint,
            "tower_sha256": self.tower_sha256,
            "stage": self.stage,
            "dtype": self.dtype,
            "hidden_size": self.hidden_size,
            "merge_size": self.merge_size,
            **describe_streams(self.hidden_size, self.streams),
        }


def describe_streams(hidden_size: int, streams: int) -> dict[str, int]:
    """Says what a row is made of, for metadata; nothing of a single stream, as in outputs that know of no others."""
    return {"streams": streams, "stream_width": hidden_size // (1 + streams)} if streams else {}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Who encoded a unit, for its record: a number for the encoder, and when it had; Unix seconds."""

    encoder: int = 0
    encoded_at: float = 0.0
