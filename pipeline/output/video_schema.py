"""Video schema: the columns that outputs with clips have beside those of images. Outputs of images alone have none."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

VIDEO_SCHEMA_VERSION = 2  # 1: what a language model is told of time in float32
# Of outputs that have clips; null in the rows of images. They stand behind all others.
# What a language model is told of time is float64: a prompt has it to a tenth, and 0.15 in float32 rounds to another.
VIDEO_COLUMNS = pa.schema(
    [
        pa.field("media", pa.string()),
        pa.field("frames", pa.list_(pa.int32())),
        pa.field("times", pa.list_(pa.float32())),
        pa.field("timestamps", pa.list_(pa.float64())),
        pa.field("second_per_grid", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("duration", pa.float32()),
        pa.field("start", pa.float64()),
        pa.field("end", pa.float64()),
    ]
)


def with_video(schema: pa.Schema, columns: Collection[str]) -> pa.Schema:
    """A schema with the columns of clips, where there are values for them."""
    return pa.schema([*schema, *VIDEO_COLUMNS]) if VIDEO_COLUMNS.names[0] in columns else schema
