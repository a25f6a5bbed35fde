"""Write: one unit's data shard, in Parquet.

`embedding` is plain large_binary over one contiguous buffer, uncompressed, without dictionary or statistics, one page a
row group: so the bytes of every image lie together at a known offset of the file, and one range read gets them.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DamagedShard, OutputError
from ..grid import offsets
from ..storage.publish import sync_file
from ..storage.scratch import writing_scratch
from .carried import check_carried, with_carried
from .hashing import HashingFile
from .metadata import METADATA_KEY, read_metadata, reading_shard
from .record import CommitRecord
from .statistics import statistics_of
from .video_schema import with_video

LENGTH_PREFIX_BYTES = 4  # Parquet's PLAIN encoding of BYTE_ARRAY
EMBEDDING = "embedding"
_SCALARS = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("resized_width", pa.int32()),
    pa.field("resized_height", pa.int32()),
    pa.field("grid_thw", pa.list_(pa.int32())),
    pa.field("num_patches", pa.int32()),
    pa.field("num_tokens", pa.int32()),
    pa.field("clamped", pa.string()),
    pa.field("norm_mean", pa.float32()),
    pa.field("norm_max", pa.float32()),
]
DATA_SCHEMA = pa.schema(
    [
        *_SCALARS,
        pa.field(EMBEDDING, pa.large_binary(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("hidden_size", pa.int32(), nullable=False),
        pa.field("scale", pa.binary()),
    ]
)
SAMPLES_SCHEMA = pa.schema(
    [
        *_SCALARS[:3],
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        *_SCALARS[3:],
        pa.field("shard", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
    ]
)
RESERVED_COLUMNS = frozenset([*SAMPLES_SCHEMA.names, *DATA_SCHEMA.names])
_STATISTICS = [field.name for field in DATA_SCHEMA if field.name not in (EMBEDDING, "scale", "grid_thw")]
_DICTIONARY = ["source", "clamped", "dtype"]


@dataclass(frozen=True, kw_only=True)
class DataShard:
    """A complete data shard in a file: what its record must say, and where each row's embedding lies."""

    path: Path
    size: int
    sha256: str
    offsets_N: npt.NDArray[np.int64]
    lengths_N: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The content of a data shard that is to be written: N accepted samples.

    Attributes:
        columns: of DATA_SCHEMA but the embedding, N values each.
        embedding: large_binary [N].
        metadata: what the shard says about itself.
        carried: N rows of carried columns.
    """

    columns: dict[str, list[Any]]
    embedding: pa.LargeBinaryArray
    metadata: dict[str, object]
    carried: pa.Table | None = None


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """The content of a published data shard: N rows. `scales` are None where they lie behind the embeddings."""

    metadata: dict[str, Any]
    keys: list[str]
    offsets_N: npt.NDArray[np.int64]
    scales: list[bytes | None]


class ShardFormat(Protocol):
    """A form of data shards: one implementation each, chosen by `shard_formats.shard_format`."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    own_members: ClassVar[tuple[str, ...]]  # names that a carried value cannot have
    names_of_streams: ClassVar[tuple[str, ...]]  # nor these, of rows with further streams

    def holds(self, kind: pa.DataType) -> bool:
        """Whether a carried value of this type comes back equal."""

    def write(self, path: Path, rows: ShardRows, row_group_bytes: int) -> DataShard:
        """Writes and checks a complete shard at a scratch path.

        Raises:
            OutputError: the file cannot be written, or does not hold what was written.
        """
        ...

    def read(self, path: Path, lengths_N: npt.NDArray[np.int64] | None = None) -> ShardContent:
        """Reads what a shard holds, without its embeddings.

        Args:
            lengths_N: bytes that its embeddings must have; None if only its wholeness is asked for.

        Raises:
            DamagedShard: it is not complete, or has other rows or lengths.
            OutputError: it cannot be read.
        """
        ...

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """Reads of each row all but its embedding; carried text may be its UTF-8. Raises as `read` does."""
        ...


class ParquetShards:
    """Data shards as Parquet."""

    name: ClassVar[str] = "parquet"
    suffix: ClassVar[str] = "parquet"
    own_members: ClassVar[tuple[str, ...]] = ()
    names_of_streams: ClassVar[tuple[str, ...]] = ()

    def holds(self, kind: pa.DataType) -> bool:
        return True  # what Parquet cannot hold is refused with the types of the source

    def write(self, path: Path, rows: ShardRows, row_group_bytes: int) -> DataShard:
        return write_data_shard(path, rows, row_group_bytes)

    def read(self, path: Path, lengths_N: npt.NDArray[np.int64] | None = None) -> ShardContent:
        with reading_shard(path):
            metadata = read_metadata(path)
            table = pq.read_table(path, columns=["key", "scale"])
            keys, scales = table.column("key").to_pylist(), table.column("scale").to_pylist()
            offsets_N = np.empty(0, np.int64) if lengths_N is None else embedding_offsets(path, lengths_N)
        return ShardContent(metadata=metadata, keys=keys, offsets_N=offsets_N, scales=scales)

    def rows(self, path: Path) -> list[dict[str, Any]]:
        with reading_shard(path):
            names = [name for name in pq.read_schema(path).names if name not in (EMBEDDING, "scale")]
            found: list[dict[str, Any]] = pq.read_table(path, columns=names).to_pylist()
        return found


def embedding_array(tokens: memoryview | bytes | np.ndarray, lengths_N: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """large_binary [N] over a contiguous buffer, without copying it. Lengths in bytes."""
    starts = offsets(lengths_N)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(lengths_N), [None, pa.py_buffer(starts), pa.py_buffer(tokens)]
    )


def row_groups(lengths_N: npt.NDArray[np.int64], row_group_bytes: int) -> list[tuple[int, int]]:
    """Row ranges of at most `row_group_bytes` of embeddings, at least one row each; one empty range for no rows."""
    ends = np.cumsum(lengths_N)
    groups: list[tuple[int, int]] = []
    first = 0
    while first < len(lengths_N):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + row_group_bytes, side="right")))
        groups.append((first, last))
        first = last
    return groups or [(0, 0)]


def write_data_shard(path: Path, rows: ShardRows, row_group_bytes: int) -> DataShard:
    """Writes a shard as Parquet; see `ShardFormat.write`."""
    columns, embedding = rows.columns, rows.embedding
    schema = with_video(DATA_SCHEMA, columns).with_metadata({METADATA_KEY: json.dumps(rows.metadata, sort_keys=True)})
    arrays = [embedding if field.name == EMBEDDING else pa.array(columns[field.name], field.type) for field in schema]
    table = with_carried(pa.Table.from_arrays(arrays, schema=schema), rows.carried)
    lengths_N = np.diff(np.frombuffer(embedding.buffers()[1], np.int64)[: len(embedding) + 1])
    compression = {name: "NONE" if name == EMBEDDING else "ZSTD" for name in table.schema.names}
    with writing_scratch(path), open(path, "xb", buffering=0) as stream, HashingFile(stream) as sink:
        writer = pq.ParquetWriter(
            sink,
            table.schema,
            compression=compression,
            use_dictionary=_DICTIONARY,
            write_statistics=_STATISTICS,
            data_page_size=1 << 30,
        )
        for first, last in row_groups(lengths_N, row_group_bytes):
            writer.write_table(table.slice(first, last - first), row_group_size=max(1, last - first))
        writer.close()
        os.fsync(stream.fileno())
    if os.path.getsize(path) != sink.size:
        raise OutputError(f"{path} holds {os.path.getsize(path)} bytes, {sink.size} were written")
    check_carried(path, rows.carried)
    offsets_N = embedding_offsets(path, lengths_N)
    return DataShard(path=path, size=sink.size, sha256=sink.hexdigest(), offsets_N=offsets_N, lengths_N=lengths_N)


def embedding_offsets(path: Path, lengths_N: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where in the file each row's embedding lies, checked against the length that Parquet wrote before it.

    Raises:
        DamagedShard: the footer does not have these rows, or a length is not where it must be.
    """
    metadata = pq.read_metadata(path)
    lengths = np.asarray(lengths_N, np.int64)
    if metadata.num_rows != len(lengths):
        raise DamagedShard(f"{path} has {metadata.num_rows} rows, {len(lengths)} expected")
    column = DATA_SCHEMA.get_field_index(EMBEDDING)
    starts = np.empty(len(lengths), np.int64)
    first = 0
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            # grid_thw is a list: its leaf column still counts as one, so indices agree with the schema's.
            chunk = group.column(column)
            last = first + group.num_rows
            sizes = lengths[first:last] + LENGTH_PREFIX_BYTES
            end = chunk.data_page_offset + chunk.total_compressed_size
            starts[first:last] = end - sizes.sum() + np.cumsum(sizes) - lengths[first:last]
            for offset, length in zip(starts[first:last].tolist(), lengths[first:last].tolist(), strict=True):
                if int.from_bytes(view[offset - LENGTH_PREFIX_BYTES : offset], "little") != length:
                    raise DamagedShard(f"{path}: an embedding of {length} bytes is not at offset {offset}")
            first = last
    return starts


def write_samples_shard(
    path: Path, columns: dict[str, list[Any]], record: CommitRecord, carried: pa.Table | None = None
) -> CommitRecord:
    """Writes a complete samples shard at a scratch path; its footer holds the commit record.

    Returns:
        The record as it stands there: with the unit's statistics, which `columns` tell.

    Raises:
        OutputError: it cannot be written.
    """
    record = replace(record, statistics=statistics_of(columns).to_json())
    schema = with_video(SAMPLES_SCHEMA, columns).with_metadata(
        {METADATA_KEY: json.dumps(record.to_json(), sort_keys=True)}
    )
    table = pa.Table.from_pydict({field.name: columns[field.name] for field in schema}, schema=schema)
    table = with_carried(table, carried)
    with writing_scratch(path):
        pq.write_table(table, path, compression="ZSTD", use_dictionary=["source", "status", "clamped", "shard"])
        sync_file(path)
    check_carried(path, carried)
    return record
