"""Row keys: the keys that a Parquet file's rows give, whatever their images are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .carried_values import is_list, plain, plain_array
from .columns import image_problem
from .part import SourceFile

if TYPE_CHECKING:
    from .format import Columns

NO_TEXT = object()  # in a column of text what is not valid UTF-8


def keys_of_rows(parquet: pq.ParquetFile, file: SourceFile, columns: Columns) -> Iterator[str]:
    """Yields the key of every image of a part's rows. Of an image column only what says how long its lists are is read.

    Raises:
        OSError, ArrowException, KeyError: it cannot be read.
    """
    assert columns.key is not None
    row = file.row
    lists = _lengths_column(parquet, columns.image)
    has_key = parquet.schema_arrow.get_field_index(columns.key) >= 0
    names = [columns.key] * has_key + [lists] * (lists is not None)
    for batch in parquet.iter_batches(row_groups=list(range(file.first, file.last)), columns=names):
        keys = values_of(batch.column(columns.key)) if has_key else [None] * len(batch)
        lengths = [None] * len(keys) if lists is None else _lengths(batch.column(columns.image))
        for key, length in zip(keys, lengths, strict=True):
            name, problem = name_of(key, file, row)
            if problem or not length:
                yield name
            else:
                yield from (f"{name}/{number}" for number in range(length))
            row += 1


def _lengths_column(parquet: pq.ParquetFile, image_column: str) -> str | None:
    """The leaf of a column of lists that is read for their lengths: the paths, rather than the bytes. Else None."""
    schema = parquet.schema_arrow
    if image_problem(schema, image_column, "") or not is_list(plain(schema.field(image_column).type)):
        return None
    leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    inside = [leaf for leaf in leaves if leaf.startswith(image_column + ".")]
    return next((leaf for leaf in inside if leaf.endswith(".path")), inside[0] if inside else image_column)


def _lengths(column: pa.Array) -> list[int | None]:
    return list(pc.list_value_length(plain_array(column)).to_pylist())


def name_of(key: Any, file: SourceFile, row: int) -> tuple[str, str]:
    """A row's key, made of its number where it has none that can be one; and what is wrong with it, or ""."""
    name = f"{file.path}:{row}"
    if key is NO_TEXT:
        return name, f"row {row}: its key is not valid UTF-8"
    text = name if key is None else _key_text(key)
    return (text, "") if text else (name, f"row {row}: its key is empty")


def _key_text(key: Any) -> str:
    """Bytes as text where they are, else as hexadecimal digits."""
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            return key.hex()
    return str(key)


def values_of(column: pa.Array) -> list[Any]:
    """A column's values as Python has them; text that is none as `NO_TEXT`."""

    def value(cell: pa.Scalar) -> Any:
        try:
            return cell.as_py()
        except UnicodeDecodeError:
            return NO_TEXT

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [value(cell) for cell in column]
