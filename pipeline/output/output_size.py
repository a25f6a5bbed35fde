"""Output size: how many bytes the data shards of a run take, by format and dtype, before any is written.

Embeddings are stored plain, so they take exactly what their values take. What is written around them is counted for
WebDataset and, being compressed, estimated for Parquet; carried columns come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FORMATS = ("parquet", "webdataset")
VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1, "fp8": 1}
SCALED = ("int8", "fp8")  # with a float32 for each stream of a token
SCALE_BYTES = 4
# Parquet, of compressed scalar columns with statistics: measured over shards of 1 to 10 000 rows.
ROW_BYTES, ROW_GROUP_BYTES, FILE_BYTES = 70, 3200, 2100
# WebDataset: a member's header and padding; a safetensors header of two tensors, and what a third one adds; `KEY.json`.
BLOCK, TAR_RECORD = 512, 10_240
SAFETENSORS_BYTES, SCALE_TENSOR_BYTES, GRID_BYTES, JSON_BYTES = 160, 64, 24, 512


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """A token's row: `width` values in all, of a main stream and `streams` further ones."""

    width: int
    streams: int = 0


def token_bytes(row: RowForm, dtype: str) -> int:
    """Bytes of one token, its scales included."""
    return row.width * VALUE_BYTES[dtype] + (SCALE_BYTES * (1 + row.streams) if dtype in SCALED else 0)


def image_bytes(tokens_N: npt.NDArray[np.int64], row: RowForm, kind: str, dtype: str) -> npt.NDArray[np.int64]:
    """Bytes that images of so many tokens take in a shard of a kind out of FORMATS."""
    stored_N = tokens_N * token_bytes(row, dtype)
    if kind == "parquet":
        return stored_N + ROW_BYTES
    header = SAFETENSORS_BYTES + GRID_BYTES + (SCALE_TENSOR_BYTES if dtype in SCALED else 0)
    return -(-(header + stored_N) // BLOCK) * BLOCK + 2 * BLOCK + JSON_BYTES


def shard_bytes(kind: str) -> int:
    """Returns the bytes that a shard takes beside its images."""
    return TAR_RECORD if kind == "webdataset" else FILE_BYTES + ROW_GROUP_BYTES


def data_bytes(
    images_T: npt.NDArray[np.int64], units: int, row: RowForm, kind: str, dtype: str, row_group_bytes: int
) -> int:
    """Bytes of all data shards. `images_T`: how many images have T tokens, T from 0 up."""
    tokens_T = np.arange(len(images_T))
    images = int((images_T * image_bytes(tokens_T, row, kind, dtype)).sum())
    if kind == "webdataset":
        return images + units * TAR_RECORD
    embeddings = int((images_T * tokens_T).sum()) * row.width * VALUE_BYTES[dtype]
    return images + units * FILE_BYTES + max(units, embeddings // row_group_bytes) * ROW_GROUP_BYTES
