"""Rows: Parquet files and JSONL manifests as sources. A part is a range of row groups, or of lines.

An image is given as bytes, as `{bytes, path}` (Hugging Face's layout), as a path, or as a list of those. Paths are
relative to the file that names them, absolute, or URIs of object storage. Nothing is fetched from hosts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RequestError, SourceError
from ..storage.files import open_input, read_input
from ..storage.remote import is_remote
from .listing import check_unchanged
from .part import SourceFile, SourcePlace

if TYPE_CHECKING:
    from .part import Part
    from .sample import IndexedSample

PART_ROWS = 65_536
PART_LINES = 8192


def open_parquet(path: str) -> pq.ParquetFile:
    """An object's column chunks are fetched together, in few requests. Raises OSError, ArrowException."""
    if not is_remote(path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(open_input(path, forwards=False), pre_buffer=True)


def spans_of(place: SourcePlace, file: SourceFile) -> list[SourceFile]:
    """Cuts a file into parts; at least one. Raises RequestError if it cannot be read as what it is."""
    path = os.path.join(place.root, file.path)
    try:
        return _groups(path, file) if place.format == "parquet" else _lines(path, file)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"source: {path}: cannot be read as {place.format}: {error}") from error


def _groups(path: str, file: SourceFile) -> list[SourceFile]:
    with open_parquet(path) as parquet:
        metadata = parquet.metadata
    spans: list[SourceFile] = []
    first = row = start = 0
    for group in range(metadata.num_row_groups):
        row += metadata.row_group(group).num_rows
        if row - start >= PART_ROWS or group == metadata.num_row_groups - 1:
            spans.append(replace(file, first=first, last=group + 1, row=start))
            first, start = group + 1, row
    return spans or [file]


def _lines(path: str, file: SourceFile) -> list[SourceFile]:
    spans: list[SourceFile] = []
    first = row = start = position = 0
    with open_input(path) as stream:
        for line in stream:
            position += len(line)
            row += 1
            if row - start == PART_LINES:
                spans.append(replace(file, first=first, last=position, row=start))
                first, start = position, row
    if position > first or not spans:
        spans.append(replace(file, first=first, last=position, row=start))
    return spans


def check_columns(place: SourcePlace, file: SourceFile, image_column: str, key_column: str | None) -> None:
    """Raises RequestError if a Parquet file lacks a column, or its image column cannot hold images."""
    path = os.path.join(place.root, file.path)
    try:
        with open_parquet(path) as parquet:
            schema = parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"source: {path}: cannot be read as parquet: {error}") from error
    for setting, name in (("image_column", image_column), ("key_column", key_column)):
        if name is not None and schema.get_field_index(name) < 0:
            raise RequestError(f"source.{setting}: {path} has no column {name!r}; it has {', '.join(schema.names)}")
    kind = schema.field(image_column).type
    if not _holds_images(kind):
        raise RequestError(
            f"source.image_column: {image_column} of {path} is {kind}; needed are bytes, a struct of bytes and path, a "
            "path, or a list of those"
        )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(index).name in ("bytes", "path") for index in range(kind.num_fields))
    checks = (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_binary_view, pa.types.is_string_view,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def read_image_file(path: str) -> bytes | None:
    try:
        return read_input(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise SourceError(f"{path[:200]}: cannot be read: {error.strerror or error}") from error


def read_rows(part: Part, samples: Sequence[IndexedSample], image_column: str) -> list[bytes | None]:
    """The encoded bytes of indexed samples, of a Parquet file group by group.

    Raises:
        SourceError: a file changed since it was planned, vanished, or cannot be read.
    """
    (file,) = part.files
    check_unchanged(part.root, file)
    inside = [index for index, sample in enumerate(samples) if sample.sha256 is not None and sample.path is None]
    found: list[bytes | None] = [None] * len(samples)
    for index, sample in enumerate(samples):
        if sample.sha256 is not None and sample.path is not None:
            found[index] = read_image_file(sample.path)
            if found[index] is None:
                raise SourceError(f"{sample.path}, named by {sample.source}, has vanished since it was indexed")
    if inside:
        # A row once, however many images its list has.
        rows = {samples[index].offset: samples[index] for index in inside}
        cells = read_columns(part, list(rows.values()), [image_column]).column(image_column)
        value_of = dict(zip(rows, cells, strict=True))
        for index in inside:
            value, item = value_of[samples[index].offset], samples[index].item
            value = value.as_py() if item is None else value[item].as_py()
            found[index] = value["bytes"] if isinstance(value, dict) else value
    return found


def read_columns(part: Part, samples: Sequence[IndexedSample], columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file, a row for each sample. Raises SourceError."""
    (file,) = part.files
    path = os.path.join(part.root, file.path)
    try:
        with open_parquet(path) as parquet:
            starts = [0]
            for group in range(parquet.metadata.num_row_groups):
                starts.append(starts[-1] + parquet.metadata.row_group(group).num_rows)
            pieces: list[pa.Table] = []
            first = 0
            while first < len(samples):
                group = samples[first].group
                last = first
                while last < len(samples) and samples[last].group == group:
                    last += 1
                table = parquet.read_row_group(group, columns=columns)
                pieces.append(table.take([sample.offset - starts[group] for sample in samples[first:last]]))
                first = last
            return pa.concat_tables(pieces)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
