"""Tables: rows whose cells hold or name images, as Parquet and Arrow files have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ..errors import RequestError
from .columns import refuse_missing
from .format import Columns
from .named_image import NamedImage, named_images
from .part import SourceFile
from .row_keys import NO_TEXT, name_of, values_of

NOTHING: tuple[Any, ...] = (None, "", [])


def check_columns(schema: pa.Schema, columns: Columns, path: str) -> None:
    """Raises RequestError: a file lacks a column that is named, or its image column holds something else."""
    for setting, name in (("image_column", columns.image), ("key_column", columns.key)):
        if name is not None and schema.get_field_index(name) < 0:
            refuse_missing(f"source.{setting}", name, schema.names, f"{path} has no column")
    kind = schema.field(columns.image).type
    if not _holds_images(kind):
        raise RequestError(
            f"source.image_column: {columns.image} of {path} is {kind}; needed are bytes, a struct of bytes and path, "
            "a path, or a list of those"
        )


def _holds_images(kind: pa.DataType) -> bool:
    kind = _of_an_image(kind)
    types = pa.types
    if types.is_struct(kind):
        return any(kind.field(index).name in ("bytes", "path") for index in range(kind.num_fields))
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary, types.is_null)
    return holds_text(kind) or any(check(kind) for check in checks)


def holds_text(kind: pa.DataType) -> bool:
    """Whether the cells of a column of this type are text, such as paths, or lists of it."""
    kind = _of_an_image(kind)
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _of_an_image(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(check(kind) for check in lists):
        kind = kind.value_type
    return kind.value_type if types.is_dictionary(kind) else kind


def spans_of(file: SourceFile, rows_by_group: Sequence[int], rows_per_part: int) -> list[SourceFile]:
    """Cuts a file at its row groups, or record batches, into ranges of so many rows, or a little more."""
    spans: list[SourceFile] = []
    first = row = start = 0
    for group, rows in enumerate(rows_by_group):
        row += rows
        if row - start >= rows_per_part or group == len(rows_by_group) - 1:
            spans.append(replace(file, first=first, last=group + 1, row=start))
            first, start = group + 1, row
    return spans or [file]


def images_of_batch(
    batch: pa.RecordBatch, file: SourceFile, path: str, columns: Columns, *, row: int, group: int
) -> Iterator[NamedImage]:
    """Every image that the rows of a batch hold or name, or what is wrong with a row.

    Args:
        file: the file, as keys name it; `path`: where it lies.
        row: the first one's number in the file; `group`: theirs.
    """
    images = values_of(batch.column(columns.image))
    keys = values_of(batch.column(columns.key)) if columns.key else [None] * len(images)
    for number, (image, key) in enumerate(zip(images, keys, strict=True), row):
        name, problem = name_of(key, file, number)
        if image is NO_TEXT:
            problem = problem or f"row {number}: its image is not valid UTF-8"
        if problem and image not in NOTHING:
            yield NamedImage(key=name, offset=number, group=group, problem=problem)
            continue
        for found in named_images(image, path, name, f"row {number}"):
            yield replace(found, offset=number, group=group)
