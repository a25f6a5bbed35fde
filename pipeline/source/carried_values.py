"""Carried values: what was read, as columns of the types that were decided. Nothing is ever stored as something else.

Every value that is converted is converted back and compared, here and nowhere else. Text that is none, which no string
column can hold, becomes null and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import SourceError

UNREADABLE = object()  # a value that is there and can never be read


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A row of carried values for each sample. `nulled`: by column, what is no text or cannot be read, and is null."""

    table: pa.Table
    nulled: dict[str, int] = field(default_factory=dict)


def carried_of_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, where: str) -> Carried:
    """Values as Python has them; bytes in a column of strings are its UTF-8.

    Args:
        where: for messages.

    Raises:
        SourceError: a value would not come back equal.
    """
    columns, nulled = [], {}
    for one in schema:
        cleaner = _Cleaner()
        values = [cleaner.cleaned(row.get(one.name), one.type) for row in rows]
        try:
            column = pa.array(values, one.type)
            back = column.to_pylist()
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SourceError(f"{where}: carried {one.name} is not always {one.type}: {error}") from error
        for read, stored in zip(values, back, strict=True):
            if not same(read, stored):
                raise SourceError(f"{where}: carried {one.name} would be {stored!r} as {one.type}, it is {read!r}")
        columns.append(column)
        if cleaner.count:
            nulled[one.name] = cleaner.count
    return Carried(table=pa.table(columns, schema=schema), nulled=nulled)


class _Cleaner:
    """Takes out of values what is no text. `count`: how much that was."""

    def __init__(self) -> None:
        self.count = 0

    def cleaned(self, value: Any, kind: pa.DataType) -> Any:
        if value is UNREADABLE:
            self.count += 1
            return None
        if isinstance(value, dict) and pa.types.is_struct(kind):
            types = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
            return {name: self.cleaned(one, types[name]) if name in types else one for name, one in value.items()}
        if isinstance(value, list) and is_list(kind):
            return [self.cleaned(one, kind.value_type) for one in value]
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return value
        try:
            if isinstance(value, bytes):
                return value.decode("utf-8")
            if isinstance(value, str):
                value.encode("utf-8")
        except UnicodeError:
            self.count += 1
            return None
        return value


def same(read: Any, stored: Any) -> bool:
    """Whether a value came back equal. Of an object a field that is absent is null; no number is a truth value."""
    if isinstance(read, dict) and isinstance(stored, dict):
        return all(same(read.get(name), stored.get(name)) for name in read.keys() | stored.keys())
    if isinstance(read, list) and isinstance(stored, list):
        return len(read) == len(stored) and all(map(same, read, stored))
    if isinstance(read, bool) or isinstance(stored, bool):
        return read is stored
    if isinstance(read, float) and isinstance(stored, float) and math.isnan(read):
        return math.isnan(stored)
    if isinstance(read, int | float) and isinstance(stored, int | float):
        return read == stored
    return type(read) is type(stored) and bool(read == stored)


def carried_of_table(table: pa.Table, rows: int, schema: pa.Schema, where: str) -> Carried:
    """Columns of a file's own types; one that it lacks is null.

    Args:
        rows: how many there are, also where it lacks all columns.

    Raises:
        SourceError: a value would not come back equal.
    """
    columns, nulled = [], {}
    for one in schema:
        if table.schema.get_field_index(one.name) < 0:
            columns.append(pa.nulls(rows, one.type))
            continue
        column, count = fit(one_array(table.column(one.name)), one.type, f"{where}: carried {one.name}")
        columns.append(column)
        if count:
            nulled[one.name] = count
    return Carried(table=pa.table(columns, schema=schema), nulled=nulled)


def rows_of(batch: pa.RecordBatch, names: Sequence[str], rows: Sequence[int]) -> pa.Table:
    """Some rows of a batch, as large plain types; of the columns those that it has. Raises SourceError."""
    there = [name for name in names if batch.schema.get_field_index(name) >= 0]
    columns = []
    for name in there:
        column = batch.column(name)
        columns.append(fit(column, large(plain(column.type)), name, text=False)[0].take(pa.array(rows, pa.int64())))
    return pa.table(columns, names=there)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """All chunks as one array; of types whose offsets end at 2 GiB as its large type. Raises SourceError."""
    wide = large(plain(column.type))
    chunks = [fit(chunk, wide, "", text=False)[0] for chunk in column.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], wide)


def fit(array: pa.Array, kind: pa.DataType, where: str, *, text: bool = True) -> tuple[pa.Array, int]:
    """The same values as another type, and how many of them were no text.

    Args:
        text: whether strings that are no text become null.

    Raises:
        SourceError: a value would not come back equal.
    """
    array, types = plain_array(array), pa.types
    if types.is_null(array.type):
        return pa.nulls(len(array), kind), 0
    if types.is_struct(kind) and types.is_struct(array.type):
        return _fit_struct(array, kind, where, text)
    if is_list(kind) and is_list(array.type):
        return _fit_list(array, kind, where, text)
    converted = _cast(array, kind, where)
    if array.type != kind and not _equal(_cast(converted, array.type, where), array):
        raise SourceError(f"{where}: not every value of {array.type} is one of {kind}")
    return _without_broken_text(converted) if text else (converted, 0)


def _fit_struct(array: pa.Array, kind: pa.DataType, where: str, text: bool) -> tuple[pa.Array, int]:
    children = dict(zip((one.name for one in array.type), array.flatten(), strict=True))
    fields = [kind.field(number) for number in range(kind.num_fields)]
    if children.keys() - {one.name for one in fields}:
        raise SourceError(f"{where}: {array.type} has fields that {kind} has not")
    columns, count = [], 0
    for one in fields:
        if one.name not in children:
            columns.append(pa.nulls(len(array), one.type))
            continue
        column, broken = fit(children[one.name], one.type, f"{where}.{one.name}", text=text)
        columns.append(column)
        count += broken
    return pa.StructArray.from_arrays(columns, fields=fields, mask=array.is_null()), count


def _fit_list(array: pa.Array, kind: pa.DataType, where: str, text: bool) -> tuple[pa.Array, int]:
    items, count = fit(array.flatten(), kind.value_type, f"{where}[]", text=text)
    if not pa.types.is_fixed_size_list(kind):
        return _lists(array, items, kind), count
    if not pa.types.is_fixed_size_list(array.type) or array.type.list_size != kind.list_size:
        raise SourceError(f"{where}: {array.type} cannot be {kind}")
    if array.null_count:  # a null takes its place in a list of a fixed size
        return _lists(array, items, pa.list_(kind.value_type)).cast(kind), count
    return pa.FixedSizeListArray.from_arrays(items, type=kind), count


def _lists(array: pa.Array, items: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists as long, and as null, as those of an array, of the items of all that are not null.

    Not by a cast: of views pyarrow 26 makes arrays whose offsets end too early.
    """
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    form, width = (pa.LargeListArray, pa.int64()) if pa.types.is_large_list(kind) else (pa.ListArray, pa.int32())
    missing = np.append(array.is_null().to_numpy(zero_copy_only=False), False)
    return form.from_arrays(pa.array(ends, width, mask=missing), items, type=kind)


def _cast(array: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    try:
        return array if array.type == kind else array.cast(kind)
    except (pa.ArrowException, ValueError) as error:
        raise SourceError(f"{where}: {array.type} cannot be {kind}: {error}") from error


def _equal(first: pa.Array, second: pa.Array) -> bool:
    if first.null_count != second.null_count:
        return False
    if pa.types.is_floating(first.type):
        left, right = (one.to_numpy(zero_copy_only=False) for one in (first, second))
        return bool(np.array_equal(left, right, equal_nan=True))
    return bool(first.equals(second))


def _without_broken_text(array: pa.Array) -> tuple[pa.Array, int]:
    """Text that is no UTF-8, as a file may hold it in a column of strings, as null."""
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return array, 0
    try:
        array.validate(full=True)
        return array, 0
    except pa.ArrowInvalid:
        cleaner = _Cleaner()
        raw = array.cast(pa.large_binary()).to_pylist()
        return pa.array([cleaner.cleaned(one, array.type) for one in raw], array.type), cleaner.count


def plain(kind: pa.DataType) -> pa.DataType:
    """A type without what is only a layout: dictionaries, views, runs, extensions."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_struct(kind):
        fields = (kind.field(number) for number in range(kind.num_fields))
        return pa.struct([pa.field(one.name, plain(one.type)) for one in fields])
    if types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain(kind.value_type))
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain(kind.value_type))
    return kind


def plain_array(array: pa.Array) -> pa.Array:
    """An array of the plain type, the same values in it."""
    types, kind = pa.types, plain(array.type)
    if array.type == kind:
        return array
    if isinstance(array.type, pa.BaseExtensionType):
        return plain_array(array.storage)
    if types.is_dictionary(array.type):
        return plain_array(array.dictionary_decode())
    if types.is_run_end_encoded(array.type):
        return plain_array(pc.run_end_decode(array))
    if types.is_struct(kind):
        columns = [plain_array(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=array.is_null())
    if types.is_fixed_size_list(kind):
        lists = _lists(array, plain_array(array.flatten()), pa.list_(kind.value_type))
        return lists.cast(kind)
    if is_list(kind):
        return _lists(array, plain_array(array.flatten()), kind)
    return _cast(array, kind, "")


def large(kind: pa.DataType) -> pa.DataType:
    """A plain type whose offsets do not end at 2 GiB."""
    types = pa.types
    if types.is_string(kind):
        return pa.large_string()
    if types.is_binary(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        fields = (kind.field(number) for number in range(kind.num_fields))
        return pa.struct([pa.field(one.name, large(one.type)) for one in fields])
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.large_list(large(kind.value_type))
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a plain type of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
