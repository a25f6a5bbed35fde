"""States: what became of planned files since they were planned, file by file.

    plan/states/states-NNNN.parquet   one row a file that is no more as it was planned; the last one counts

A file with another mtime or ETag and the same bytes is read on by its new state. One that vanished, or holds other
bytes, keeps its fate: its samples that are not committed are rejects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.files import AnyPath, names_in, open_input
from ..storage.publish import publish_new, sync_file
from ..storage.scratch import Scratch, writing_scratch
from .part import SourceFile

CHANGED: Final = "changed"
MISSING: Final = "missing"
ROWS_AT_ONCE = 8192
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("fate", pa.string(), nullable=False),
    ]
)
_NAME = re.compile(r"states-([0-9]{4,9})\.parquet")


class States:
    """The states in a plan's folder, as they were when this was made."""

    def __init__(self, folder: AnyPath) -> None:
        self._folder = folder
        numbers = [int(match[1]) for name in names_in(folder, "states-") if (match := _NAME.fullmatch(name))]
        self.number = max(numbers, default=-1)  # of the last one; -1: every file is as it was planned

    def path(self, number: int) -> AnyPath:
        return self._folder / f"states-{number:04d}.parquet"

    def between(self, first: str, last: str) -> dict[str, SourceFile]:
        """The files whose paths lie between two, both included."""
        if self.number < 0:
            return {}
        with open_input(self.path(self.number), forwards=False) as stream:
            table = pq.read_table(stream, filters=[("path", ">=", first), ("path", "<=", last)])
        return {row["path"]: SourceFile(**row) for row in table.to_pylist()}

    def __iter__(self) -> Iterator[SourceFile]:
        """All of them, by path."""
        if self.number >= 0:
            with open_input(self.path(self.number)) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(ROWS_AT_ONCE):
                    yield from (SourceFile(**row) for row in batch.to_pylist())

    def write(self, new: Iterable[SourceFile], scratch: Scratch) -> bool:
        """Publishes what is known together with what is new. False if another run has done so meanwhile.

        Raises:
            OutputError: it cannot be written.
        """
        both = {file.path: file for file in self} | {file.path: file for file in new}
        rows = [
            {name: value for name, value in asdict(both[path]).items() if name in SCHEMA.names} for path in sorted(both)
        ]
        path = scratch.path("states.parquet")
        with writing_scratch(path):
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=ROWS_AT_ONCE)
        sync_file(path)
        return publish_new(path, self.path(self.number + 1))
