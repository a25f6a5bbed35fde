"""Carried columns in shards: put behind the shard's own, and read again once they are written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import OutputError
from ..source.carried_values import same


def with_carried(table: pa.Table, carried: pa.Table | None) -> pa.Table:
    """The table with the carried columns behind its own."""
    if carried is not None:
        for field in carried.schema:
            table = table.append_column(field, carried.column(field.name))
    return table


def check_carried(path: Path, carried: pa.Table | None) -> None:
    """Raises OutputError: a Parquet file that was just written has another carried value than it was given."""
    if carried is None or not carried.num_columns:
        return
    stored = pq.read_table(path, columns=carried.column_names)
    for name in carried.column_names:
        given, found = carried.column(name), stored.column(name)
        # No number that is none is equal to itself: then value by value.
        if not given.equals(found) and not same(given.to_pylist(), found.to_pylist()):
            raise OutputError(f"{path}: what is carried as {name} does not come back as it was written")
