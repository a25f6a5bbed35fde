"""Row cursor: some columns of a Parquet file, row after row, as they are needed.

Row groups may have a million rows and more bytes than fit in memory or in Arrow's own arrays of 2 GiB. They are read in
batches, from where the last unit ended: memory is bounded by a batch and a unit, and a group is read once for all of
the units that it serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import source_error
from ..storage.files import last_bytes, open_random
from .carried_values import plain_array, rows_of
from .sample import IndexedSample

BATCH_BYTES = 16 << 20
MOST_ROWS = 8192  # of a batch
LARGE_BYTES = 64 << 20  # of a column in a group, from which on it is not fetched as a whole
SIGNATURE_BYTES = 28  # behind the footer of a file with encrypted columns: a nonce and a tag
BUFFER_BYTES = 4 << 20  # that are fetched of such a one at a time


def open_parquet(path: str, *, piecewise: bool = False) -> pq.ParquetFile:
    """Opens a file; an object's column chunks are fetched together, in few requests. Raises OSError, ArrowException.

    Args:
        piecewise: column chunks are fetched in pieces, because they may be larger than memory.
    """
    file, pre_buffer = open_random(path)
    if piecewise:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
    else:
        parquet = pq.ParquetFile(file, pre_buffer=pre_buffer)
    # Of a footer that is signed, columns are encrypted. pyarrow 26 ends the process when asked for their sizes.
    if int.from_bytes(last_bytes(file)[:4], "little") == parquet.metadata.serialized_size + SIGNATURE_BYTES:
        parquet.close()
        raise pa.ArrowInvalid("columns of it are encrypted; decrypt it first")
    return parquet


class Group:
    """A row group's size. `bytes_`: of some of its columns, as stored; `rows_at_once`: that fit into a batch."""

    def __init__(self, metadata: pq.FileMetaData, number: int, names: Sequence[str]) -> None:
        group = metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        dotted = any("." in name for name in names)  # then a path does not tell which column it is of: all count
        wanted = [one for one in chunks if dotted or one.path_in_schema.partition(".")[0] in names]
        self.bytes_ = sum(one.total_compressed_size for one in wanted)
        row_bytes = sum(one.total_uncompressed_size for one in wanted) / max(1, group.num_rows)
        self.rows_at_once = int(min(MOST_ROWS, max(1, BATCH_BYTES // max(1.0, row_bytes))))


class Batches:
    """Some columns of row groups, or of all of a file's, in batches of plain types. What it lacks of them is left out.

    Attributes:
        group: which is being read.
        schema: all of the file's columns, once the first batch is there; None where the file cannot be opened.

    Raises:
        OSError, ArrowException, KeyError: while it is read: it cannot be.
    """

    def __init__(self, path: str, groups: Sequence[int] | None, names: Sequence[str]) -> None:
        self._path, self._groups, self._names = path, groups, list(names)
        self.group = groups[0] if groups else 0
        self.schema: pa.Schema | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        with open_parquet(self._path) as parquet:
            self.schema = parquet.schema_arrow
            self._names = [name for name in self._names if self.schema.get_field_index(name) >= 0]
            groups = range(parquet.metadata.num_row_groups) if self._groups is None else self._groups
            facts = {number: Group(parquet.metadata, number, self._names) for number in groups}
            if all(one.bytes_ <= LARGE_BYTES for one in facts.values()):
                yield from self._read(parquet, facts)
                return
        with open_parquet(self._path, piecewise=True) as parquet:
            yield from self._read(parquet, facts)

    def _read(self, parquet: pq.ParquetFile, groups: dict[int, Group]) -> Iterator[pa.RecordBatch]:
        for self.group, facts in groups.items():
            for batch in parquet.iter_batches(facts.rows_at_once, row_groups=[self.group], columns=self._names):
                columns = [plain_array(column) for column in batch.columns]
                # Of no column at all only the number of rows is known, which a new batch would lose.
                yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names) if columns else batch


class RowCursor:
    """Some columns of one file; rows that are asked for in ascending order, over all calls, are read once.

    Raises:
        SourceError: the file cannot be read.
    """

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self._path = path
        try:
            with open_parquet(path) as parquet:
                metadata, schema = parquet.metadata, parquet.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise source_error(f"{path}: cannot be read: {error}", error) from error
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *rows])
        self._there = [name for name in names if schema.get_field_index(name) >= 0]
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = self._end = -1  # rows of the file that the batch has
        self._group_ends = -1

    def take(self, samples: Sequence[IndexedSample]) -> pa.Table:
        """A row for each sample, at least one, in their order. What the file lacks of the columns is left out.

        Raises:
            SourceError: the file cannot be read, or has no such row any more.
        """
        rows = [sample.offset for sample in samples if self._there]
        pieces: list[pa.Table] = []
        first = 0
        try:
            while first < len(rows):
                self._go_to(rows[first])
                last = first
                while last < len(rows) and self._first <= rows[last] < self._end:
                    last += 1
                assert self._batch is not None
                pieces.append(rows_of(self._batch, self._there, [row - self._first for row in rows[first:last]]))
                first = last
            return pa.concat_tables(pieces) if pieces else pa.table({})
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            raise source_error(f"{self._path}: cannot be read: {error}", error) from error

    def _go_to(self, row: int) -> None:
        """Makes the batch the one with a row: by reading on where that is in the same group and ahead."""
        if not self._first <= row < self._group_ends:
            if not 0 <= row < self._starts[-1]:
                raise IndexError(f"it has no row {row}")
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            self._batches = iter(Batches(self._path, [group], self._there))
            self._first = self._end = int(self._starts[group])
            self._group_ends = int(self._starts[group + 1])
        while row >= self._end:
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise IndexError(f"it ends before row {row}")
            self._first, self._end = self._end, self._end + len(self._batch)

    def close(self) -> None:
        """Lets the file go."""
        self._batches, self._batch, self._first, self._end, self._group_ends = iter(()), None, -1, -1, -1
