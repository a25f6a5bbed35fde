"""Listing: a source's files, listed once and handed on."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator

from .part import SourceFile, SourcePlace

FILES_AT_ONCE = 4096
SPOOLED_BYTES = 16 << 20


class Listing:
    """A source's files as one look at it found them, in sorted order.

    Listing costs requests, and two looks may differ: a run lists once and hands this on. It is kept in memory up to
    SPOOLED_BYTES, beyond that in an unnamed temporary file.

    Attributes:
        place: what was listed.
        count: how many files there are.
        ignored: the other files, counted by extension.
    """

    def __init__(self, place: SourcePlace, files: Iterator[SourceFile], ignored: Counter[str]) -> None:
        self.place = place
        self.count = 0
        self.ignored = ignored
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES)
        while batch := list(itertools.islice(files, FILES_AT_ONCE)):
            self.count += len(batch)
            pickle.dump(batch, self._spool, protocol=pickle.HIGHEST_PROTOCOL)
        self._end = self._spool.tell()

    def __iter__(self) -> Iterator[SourceFile]:
        position = 0
        while position < self._end:
            self._spool.seek(position)
            batch: list[SourceFile] = pickle.load(self._spool)
            position = self._spool.tell()
            yield from batch
