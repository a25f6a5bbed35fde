"""CSV and TSV: manifests, a record a row below a header. A part is a range of rows; a key is the key column's value,
else `file:row`. Every value is the text that stands there: a CSV file has no types.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, Any

from ..lines import BOM
from ..manifest import Manifest
from ..manifest_file import ManifestFile, Record

DELIMITERS = (",", "\t", ";", "|")
LARGEST_FIELD_BYTES = 1 << 28

csv.field_size_limit(LARGEST_FIELD_BYTES)  # the module's own limit is less than a photo as base64


class CsvFile(ManifestFile):
    """An open CSV file; its delimiter is what stands most often in the header."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        lines = _Lines(self.stream, 0)
        header = next(lines, "")
        self._delimiter = max(DELIMITERS, key=header.count)
        lines = _Lines(self.stream, 0)
        self.names: list[str] = next(self._rows(lines, 0), (0, []))[1]
        self._first = lines.position
        repeated = {name for name in self.names if self.names.count(name) > 1}
        if repeated:
            raise ValueError(f"its header names {', '.join(sorted(repeated))} more than once")

    def records(self, offset: int = 0, row: int = 0) -> Iterator[Record]:
        for start, values in self._rows(_Lines(self.stream, offset or self._first), row):
            problem = ""
            if len(values) != len(self.names):
                problem = f"has {len(values)} fields where the header has {len(self.names)}"
            fields: dict[str, Any] = {} if problem else dict(zip(self.names, values, strict=True))
            yield Record(row=row, offset=start, fields=fields, problem=problem)
            row += 1

    def _rows(self, lines: _Lines, row: int) -> Iterator[tuple[int, list[str]]]:
        """The first byte and the values of each row; empty lines are none. Raises ValueError: its quotes go wrong."""
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            start = lines.position
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"the record at byte {start}: {error}") from None
            if values is None:
                return
            if values:
                yield start, values


class _Lines(Iterator[str]):
    """A file's lines as text. What is no UTF-8 becomes what cannot be stored, and is found there.

    Attributes:
        position: the first byte of the next line.
    """

    def __init__(self, stream: IO[bytes], position: int) -> None:
        self._stream, self.position = stream, position
        stream.seek(position)

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        text = line if self.position else line.removeprefix(BOM)
        self.position += len(line)
        return text.decode("utf-8", "surrogateescape")


class Csv(Manifest):
    """See the module."""

    name = "csv"
    suffixes = (".csv", ".tsv")
    opened = CsvFile
