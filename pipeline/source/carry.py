"""Carried columns: what of a source stands beside each image in the output, types kept.

Of Parquet its columns; of a manifest its fields; of a tar the members with that suffix, of a folder the files beside an
image with its name and that suffix (`a.jpg`, `a.txt`), whole: text as string, others as binary. Their types are decided
once, when a run starts, and written to dataset.json.
"""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import RequestError, SourceError
from ..storage.files import open_input
from .listing import Listing
from .places import parse_line
from .rows import open_parquet, read_columns

if TYPE_CHECKING:
    from ..config import Source
    from .part import Part
    from .sample import IndexedSample

TEXT_SUFFIXES = ("txt", "text", "caption", "json", "jsonl", "html", "md", "csv", "url", "cls", "id", "transcript")
LINES_LOOKED_AT = 1000


def carried_schema(source: Source, listing: Listing, reserved: Collection[str] = ()) -> pa.Schema:
    """The carried columns' names and types.

    Args:
        reserved: the output's own columns.

    Raises:
        RequestError: a name that the output has already, that the source lacks, or whose values have no one type.
    """
    for name in source.carry:
        if name in reserved:
            raise RequestError(f"source.carry: {name} is a column of the output itself; rename it in the source")
        if source.carry.count(name) > 1:
            raise RequestError(f"source.carry: {name} stands there twice")
    if not source.carry:
        return pa.schema([])
    place = listing.place
    if place.format in ("webdataset", "folder"):
        return pa.schema([(name, pa.string() if _is_text(name) else pa.binary()) for name in source.carry])
    first = next(iter(listing))
    path = os.path.join(place.root, first.path)
    try:
        if place.format == "jsonl":
            return _of_lines(path, source.carry)
        with open_parquet(path) as parquet:
            schema = parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"source: {path}: cannot be read as {place.format}: {error}") from error
    for name in source.carry:
        if schema.get_field_index(name) < 0:
            raise RequestError(f"source.carry: {path} has no column {name!r}; it has {', '.join(schema.names)}")
    return pa.schema([pa.field(name, schema.field(name).type) for name in source.carry])


def _is_text(suffix: str) -> bool:
    return suffix.rpartition(".")[2].lower() in TEXT_SUFFIXES


def _of_lines(path: str, names: list[str]) -> pa.Schema:
    """From the first lines of the first manifest; a field of nulls alone is a string."""
    values: dict[str, list[Any]] = {name: [] for name in names}
    with open_input(path) as stream:
        for line in itertools.islice(stream, LINES_LOOKED_AT):
            try:
                tree = parse_line(line)
            except ValueError:
                continue
            for name in names:
                values[name].append(tree.get(name))
    fields = []
    for name, found in values.items():
        try:
            kind = pa.array(found).type
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"source.carry: {name} has values of several types in {path}: {error}") from error
        fields.append(pa.field(name, pa.string() if pa.types.is_null(kind) else kind))
    return pa.schema(fields)


def schema_text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of_text(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def read_carried(
    part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
) -> pa.Table:
    """A row of carried values for each sample; null where the source has none.

    Args:
        members: of a tar or a folder, what is carried of each sample by suffix, read with its image.

    Raises:
        SourceError: a file cannot be read, or a value is not of the column's type.
    """
    path = os.path.join(part.root, part.files[0].path)
    if part.format == "parquet":
        table = read_columns(part, samples, schema.names)
        try:
            return table.select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise SourceError(f"{path}: its carried columns are not {schema}: {error}") from error
    rows = _of_jsonl(path, samples) if part.format == "jsonl" else _of_members(part, samples, members, schema)
    columns = []
    for field in schema:
        try:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise SourceError(f"{path}: carried {field.name} is not always {field.type}: {error}") from error
    return pa.table(columns, schema=schema)


def _of_jsonl(path: str, samples: Sequence[IndexedSample]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with open_input(path) as stream:
            for sample in samples:
                stream.seek(sample.offset)
                try:
                    rows.append(parse_line(stream.readline()))
                except ValueError:  # a reject, which carries nothing
                    rows.append({})
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    return rows


def _of_members(
    part: Part, samples: Sequence[IndexedSample], members: Sequence[dict[str, bytes]], schema: pa.Schema
) -> list[dict[str, Any]]:
    """Text as text, in the columns that are."""
    texts = {field.name for field in schema if pa.types.is_string(field.type)}
    rows: list[dict[str, Any]] = []
    for sample, found in zip(samples, members, strict=True):
        try:
            rows.append({name: data.decode("utf-8") if name in texts else data for name, data in found.items()})
        except UnicodeDecodeError as error:
            where = os.path.join(part.root, sample.source)
            raise SourceError(f"{where}: what is carried of {sample.key} is not valid UTF-8: {error}") from error
    return rows
