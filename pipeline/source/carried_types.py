"""Carried types: one type for each carried column, decided from all of a source before anything is encoded.

Integers and fractions widen to float64 where that is exact, objects and structs to the union of their fields, what is
absent to null. What does not agree, such as text and numbers, is refused with both places.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RequestError, SourceError
from .carried_values import carried_of_rows, fit, is_list, plain
from .columns import refuse_missing

EXACT_IN_FLOAT64 = 1 << 53
_ADDED = "source.carry: what was added is not of the types that this output has; use another output.uri"
WORDS = {int: "an integer", float: "a fraction", str: "text", bool: "true or false", list: "a list", dict: "an object"}


class Disagreement(Exception):
    """Two types that have no common one."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(
            f"source.carry: {name} is {first} and {second}: these have no one type; make them one in the source, or "
            f"do not carry {name}"
        )


class Seen:
    """The values of one field so far: of which kinds they are, and where each kind was first seen."""

    def __init__(self) -> None:
        self._first: dict[type, str] = {}
        self._low = self._high = 0
        self._inexact = ""  # where an integer that is no float64 was first seen
        self._item: Seen | None = None
        self._fields: dict[str, Seen] = {}

    def add(self, value: Any, where: Callable[[], str]) -> None:
        """Takes one value of those that JSON has."""
        if value is None:
            return
        kind = type(value)
        if kind not in self._first:
            self._first[kind] = where()
        if kind is int:
            self._low, self._high = min(self._low, value), max(self._high, value)
            if not self._inexact and not -EXACT_IN_FLOAT64 <= value <= EXACT_IN_FLOAT64:
                self._inexact = where()
        elif kind is list:
            self._item = self._item or Seen()
            for one in value:
                self._item.add(one, where)
        elif kind is dict:
            for name, one in value.items():
                self._fields.setdefault(name, Seen()).add(one, where)

    def decided(self, name: str) -> pa.DataType:
        """The one type of all; of nulls alone string. Raises Disagreement."""
        kinds = list(self._first)
        if not kinds:
            return pa.string()
        if set(kinds) == {int, float}:
            if self._inexact:
                raise Disagreement(name, self._is(float), f"an integer that is no float64 in {self._inexact}")
            return pa.float64()
        if len(kinds) > 1:
            raise Disagreement(name, self._is(kinds[0]), self._is(kinds[1]))
        return self._type_of(kinds[0], name)

    def _type_of(self, kind: type, name: str) -> pa.DataType:
        if kind is list:
            return pa.list_(self._item.decided(f"{name}[]") if self._item else pa.string())
        if kind is dict:
            return pa.struct([pa.field(one, seen.decided(f"{name}.{one}")) for one, seen in self._fields.items()])
        if kind is int and not -(1 << 63) <= self._low <= self._high < 1 << 63:
            if self._low < 0 or self._high >= 1 << 64:
                raise Disagreement(name, "an integer of 64 bits", f"one of more in {self._inexact}")
            return pa.uint64()
        return {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}[kind]

    def _is(self, kind: type) -> str:
        return f"{WORDS[kind]} in {self._first[kind]}"


def schema_of_records(
    records: Iterable[tuple[Mapping[str, Any], Callable[[], str]]], names: Sequence[str]
) -> pa.Schema:
    """The types of some fields, from every record there is.

    Args:
        records: the fields of each, and what says where it stands.

    Raises:
        RequestError: values of a field have no one type, or no record has it.
    """
    seen = {name: Seen() for name in names}
    known: dict[str, None] = {}
    for fields, where in records:
        known.update(dict.fromkeys(fields))
        for name in names:
            if name in fields:
                seen[name].add(fields[name], where)
    for name in names:
        if name not in known:
            refuse_missing("source.carry", name, list(known), "the source has no field", "it has")
    try:
        return checked(pa.schema([pa.field(name, one.decided(name)) for name, one in seen.items()]))
    except Disagreement as error:
        raise RequestError(str(error)) from None


def check_records(records: Sequence[tuple[Mapping[str, Any], Callable[[], str]]], decided: pa.Schema) -> None:
    """Makes sure that the values of added records are of the types that are decided. Raises RequestError."""
    try:
        carried_of_rows([fields for fields, _ in records], decided, f"behind {records[0][1]()}")
    except SourceError as error:
        raise RequestError(f"{_ADDED}: {error}") from error


@dataclass(kw_only=True)
class _Column:
    """One column in all files so far."""

    type: pa.DataType
    file: str  # that it was first seen in
    types: dict[str, tuple[pa.DataType, list[str]]] = field(default_factory=dict)  # by their text, with their files


def schema_of_tables(
    files: Iterable[tuple[str, pa.Schema]],
    names: Sequence[str],
    read_column: Callable[[str, str], Iterator[pa.Array]],
    decided: pa.Schema | None = None,
) -> pa.Schema:
    """The types of some columns, from the schema of every file.

    Args:
        decided: the types that are to come of it, where an output has some already.
        read_column: a column of a file, piece by piece: read only where its schema does not say whether its values
            are exact in a wider type.

    Raises:
        RequestError: a column has no one type, or no file has it, or one has another than is decided.
    """
    columns: dict[str, _Column] = {}
    known: dict[str, None] = {}
    for path, schema in files if decided is None else itertools.chain([("the output", decided)], files):
        known.update(dict.fromkeys(schema.names))
        for name in names:
            if (count := schema.names.count(name)) > 1:
                raise RequestError(f"source.carry: {path} has {count} columns {name!r}; rename one, or do not carry it")
            if not count:
                continue
            kind = plain(schema.field(name).type)
            column = columns.setdefault(name, _Column(type=kind, file=path))
            try:
                column.type = common(name, column.type, kind)
            except Disagreement:
                first, second = (f"{one} in {place}" for one, place in ((column.type, column.file), (kind, path)))
                raise RequestError(str(Disagreement(name, first, second))) from None
            column.types.setdefault(str(kind), (kind, []))[1].append(path)
    for name in names:
        if name not in known:
            refuse_missing("source.carry", name, list(known), "the source has no column")
    found = pa.schema([pa.field(name, _or_text(columns[name].type)) for name in names])
    for one in decided or ():
        if found.field(one.name).type != one.type:
            kinds = f"{one.name} is {one.type} there, with them it would be {found.field(one.name).type}"
            raise RequestError(f"{_ADDED}: {kinds}")
    for name, column in columns.items():
        for kind, paths in column.types.values():
            if not always_exact(kind, column.type):
                for path in paths:
                    _check_exact(name, column, path, read_column)
    return checked(found)


def _or_text(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_null(kind) else kind


def _check_exact(name: str, column: _Column, path: str, read_column: Callable[[str, str], Iterator[pa.Array]]) -> None:
    for piece in read_column(path, name):
        try:
            fit(piece, column.type, f"{path}: {name}")
        except SourceError as error:
            raise RequestError(
                f"source.carry: {name} would be {column.type}, as {column.file} and others have it, and not all "
                f"values of {path} are exact in that: {error}"
            ) from error


def checked(schema: pa.Schema) -> pa.Schema:
    """The schema. Raises RequestError: an output cannot hold one of its types."""
    for one in schema:
        try:
            with pq.ParquetWriter(io.BytesIO(), pa.schema([one])) as writer:
                writer.write_table(pa.schema([one]).empty_table())
        except (pa.ArrowException, OSError) as error:
            raise RequestError(f"source.carry: {one.name} is {one.type}, which Parquet cannot hold: {error}") from error
    return schema


def common(name: str, first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The narrowest type that both become; see `always_exact`. Raises Disagreement."""
    types = pa.types
    if first == second or types.is_null(second):
        return first
    if types.is_null(first):
        return second
    if types.is_struct(first) and types.is_struct(second):
        return _common_struct(name, first, second)
    if is_list(first) and is_list(second):
        item = common(f"{name}[]", first.value_type, second.value_type)
        large = types.is_large_list(first) or types.is_large_list(second)
        return pa.large_list(item) if large else pa.list_(item)
    if types.is_integer(first) and types.is_integer(second):
        return _common_integer(name, first, second)
    if _is_number(first) and _is_number(second):
        return pa.float64()
    for is_small, is_large in ((types.is_string, types.is_large_string), (types.is_binary, types.is_large_binary)):
        if all(is_small(one) or is_large(one) for one in (first, second)):
            return first if is_large(first) else second
    if types.is_timestamp(first) and types.is_timestamp(second) and first.tz == second.tz:
        return pa.timestamp(max(first.unit, second.unit, key=["s", "ms", "us", "ns"].index), first.tz)
    if types.is_decimal(first) and types.is_decimal(second):
        scale = max(first.scale, second.scale)
        digits = scale + max(first.precision - first.scale, second.precision - second.scale)
        if digits <= 38:
            return pa.decimal128(digits, scale)
    raise Disagreement(name, str(first), str(second))


def _common_struct(name: str, first: pa.DataType, second: pa.DataType) -> pa.DataType:
    fields = {first.field(number).name: first.field(number).type for number in range(first.num_fields)}
    for number in range(second.num_fields):
        one = second.field(number)
        fields[one.name] = common(f"{name}.{one.name}", fields.get(one.name, one.type), one.type)
    return pa.struct(list(fields.items()))


def _common_integer(name: str, first: pa.DataType, second: pa.DataType) -> pa.DataType:
    signed = [pa.types.is_signed_integer(one) for one in (first, second)]
    if signed[0] == signed[1]:
        return max(first, second, key=lambda one: one.bit_width)
    unsigned, other = (second, first) if signed[0] else (first, second)
    bits = max(2 * unsigned.bit_width, other.bit_width)
    if bits > 64:
        raise Disagreement(name, str(first), str(second))
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]


def always_exact(kind: pa.DataType, wider: pa.DataType) -> bool:
    """Whether every value of a type is one of the common type."""
    types = pa.types
    if kind == wider or types.is_null(kind):
        return True
    if types.is_struct(kind):
        fields = (kind.field(number) for number in range(kind.num_fields))
        return all(always_exact(one.type, wider.field(one.name).type) for one in fields)
    if is_list(kind):
        return always_exact(kind.value_type, wider.value_type)
    if types.is_integer(kind) and types.is_floating(wider):
        return bool(kind.bit_width < 64)
    return not types.is_timestamp(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
