"""Manifest files: records, found again by their first bytes, and the images and videos that they name or hold."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from ..errors import SourceError, reading
from ..storage.files import READS_AT_ONCE, map_ahead, open_input
from ..storage.large import Encoded
from .carried_values import Carried, carried_of_rows
from .format import Columns, UnitBytes
from .named_image import listed
from .part import Part
from .planned import check_unchanged
from .row_samples import reread_cell, reread_image_file
from .sample import IndexedSample

SKIPPED_BYTES = 1 << 20  # between two wanted records that are read over


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record: its number in the file, its first byte, and its fields, or the `problem` with it."""

    row: int
    offset: int
    fields: Mapping[str, Any]
    problem: str = ""


class ManifestFile(ABC):
    """An open manifest. Raises OSError; ValueError: it is not what it should be.

    Attributes:
        names: of the fields that every record has, where the file says them once.
    """

    noun: ClassVar[str] = "record"

    def __init__(self, path: str) -> None:
        self.path = path
        self.names: list[str] | None = None
        self.stream = open_input(path)

    def __enter__(self) -> ManifestFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    @abstractmethod
    def records(self, offset: int = 0, row: int = 0) -> Iterator[Record]:
        """Reads on from the first byte of a record, which has this number; from 0 on, the file's start."""

    def starts(self) -> Iterator[tuple[int, int]]:
        """The first byte and the number of every record."""
        return ((record.offset, record.row) for record in self.records())

    def at(self, offsets: Sequence[int]) -> Iterator[Record]:
        """The records that begin at these bytes. What lies near the one before is read on to."""
        records: Iterator[Record] = iter(())
        current: Record | None = None
        for offset in offsets:
            if current is None or not 0 <= offset - current.offset <= SKIPPED_BYTES:
                records, current = self.records(offset), None
            while current is None or current.offset < offset:
                current = next(records, None)
                if current is None:
                    raise ValueError(f"no record begins at byte {offset}")
            yield current


class RecordReader:
    """Reads the files that records name, and the images that stand in them."""

    def __init__(self, opened: type[ManifestFile], columns: Columns) -> None:
        self._opened, self._columns = opened, columns

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        (file,) = part.files
        check_unchanged(part.root, file)
        wanted = [sample for sample in samples if sample.sha256 is not None]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            named = [sample for sample in wanted if sample.path is not None]
            found: dict[int, Encoded | None] = {
                id(sample): data
                for sample, data in zip(named, map_ahead(pool, reread_image_file, named, 0), strict=True)
            }
        inside = [sample for sample in wanted if sample.path is None]
        if inside:
            found |= dict(zip(map(id, inside), self._inside(os.path.join(part.root, file.path), inside), strict=True))
        return UnitBytes([found.get(id(sample)) for sample in samples], [{} for _ in samples])

    def _inside(self, path: str, samples: Sequence[IndexedSample]) -> Iterator[bytes | None]:
        with _indexing(path), self._opened(path) as manifest:
            records = manifest.at([sample.offset for sample in samples])
            for sample, record in zip(samples, records, strict=True):
                value = record.fields.get(self._columns.of(sample))
                data = reread_cell(value if sample.item is None else listed(value)[sample.item], sample, path)
                if data is None and not sample.of_frames:
                    raise ValueError(f"the record at byte {sample.offset} holds no image any more")
                yield data

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> Carried:
        path = os.path.join(part.root, part.files[0].path)
        with _indexing(path), self._opened(path) as manifest:
            rows = [record.fields for record in manifest.at([sample.offset for sample in samples])]
        return carried_of_rows(rows, schema, path)

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _indexing(path: str) -> Iterator[None]:
    try:
        with reading(path):
            yield
    except ValueError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
