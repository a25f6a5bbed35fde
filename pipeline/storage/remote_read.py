"""Reading from remote storage: objects as files, copies of them, folders of Parquet."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

from .remote import RemotePath, client_of, named, names, read, state_of

READ_AHEAD_BYTES = 8 << 20


class RemoteFile(io.RawIOBase):
    """An object read by ranges: a read is a request. Raises OSError."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        self._size = state_of(uri)[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = read(self._uri, self._position, end)
        if len(data) != end - self._position:
            raise OSError(errno.EIO, f"{len(data)} of {end - self._position} bytes at {self._position}", self._uri)
        self._position = end
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def dataset_of(folder: RemotePath) -> Any:
    """A folder of Parquet files as a pyarrow data set. Raises OSError."""
    import pyarrow.dataset

    client, path = client_of(folder.uri)
    with named(folder.uri):
        files = sorted(f"{path}/{name}" for name in names(folder.uri) if name.endswith(".parquet"))
        return pyarrow.dataset.dataset(files, format="parquet", filesystem=client)


def download(uri: str, target: Path) -> None:
    """Raises OSError."""
    client, path = client_of(uri)
    with named(uri):
        client.get_file(path, str(target))
