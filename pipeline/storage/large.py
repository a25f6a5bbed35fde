"""Large files: the bytes of a local file that are not held in memory, but read piece by piece where they are needed.

`held` decides which files those are; this module is loaded by processes that decode, and needs no storage.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, cast

from ..errors import ReaderLost
from . import local


@dataclass(frozen=True, kw_only=True)
class LargeFile:
    """A local file in one state. `len` is that of its bytes."""

    path: str
    size: int
    mtime_ns: int

    def __len__(self) -> int:
        return self.size

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Opens it to be read.

        Raises:
            ReaderLost: it cannot be read, or is in another state, before or behind. Whoever tries again finds out why.
        """
        try:
            with local.open_regular(self.path) as stream:
                self._check(stream)
                yield stream
                self._check(stream)
        except OSError as error:
            raise ReaderLost(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def _check(self, stream: IO[bytes]) -> None:
        facts = os.fstat(stream.fileno())
        if (facts.st_size, facts.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ReaderLost(f"{self.path} changes while it is read")


Encoded = bytes | LargeFile


def sha256_of(data: Encoded) -> str:
    """The sha256 of encoded bytes, in hexadecimal digits. Raises ReaderLost."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.opened() as stream:
        return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()
