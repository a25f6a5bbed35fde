"""HashingFile: a file that is hashed while it is written."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from ..process import DaemonThreads

HASHED_BESIDE = 1 << 20  # bytes that are worth another thread


class HashingFile:
    """A binary file that takes the sha256 and the size of what is written through it.

    What is large is hashed by a thread of its own while it is written: each takes about as long as the other.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._beside = DaemonThreads(1)
        self.size = 0
        self.closed = False

    def __enter__(self) -> HashingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._beside.shutdown(wait=False)

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        hashed = self._beside.submit(self._digest.update, view) if len(view) >= HASHED_BESIDE else None
        if hashed is None:
            self._digest.update(view)
        self.size += len(view)
        rest = view
        try:
            while len(rest):  # an unbuffered file may take less than it is given
                rest = rest[self._stream.write(rest) :]
        finally:
            if hashed is not None:
                hashed.result()  # what is given may be another's when this returns
        return len(view)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
