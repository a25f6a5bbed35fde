"""Reading from remote storage: objects as files, copies of them, folders of Parquet."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from ..errors import StorageBusy
from .client import client_of, named, request_options
from .remote import RANGE_BYTES, RemotePath, read, state_of
from .remote_list import names
from .uri import S3, scheme_of

READ_AHEAD_BYTES = 8 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
PRECONDITION_FAILED = "PreconditionFailed"  # S3's code of an If-Match that does not


class Changed(OSError):
    """An object is no longer the one that was asked for."""


def reads_conditionally(uri: str) -> bool:
    """Whether `read_if_match` can be used: the client hands conditions on."""
    return scheme_of(uri) in S3


def read_if_match(uri: str, etag: str, start: int | None = None, end: int | None = None) -> bytes:
    """An object, or a range of it, as it was with this ETag: one request up to RANGE_BYTES, several at once above.

    Raises:
        Changed: it has another ETag.
        OSError: it cannot be read.
    """
    from s3fs.core import S3_RETRYABLE_ERRORS

    client, path = client_of(uri)
    bucket, key, _ = client.split_path(path)
    ranges: list[dict[str, str]] = [{}]
    if start is not None and end is not None:
        firsts = range(start, end, RANGE_BYTES)
        ranges = [{"Range": f"bytes={first}-{min(first + RANGE_BYTES, end) - 1}"} for first in firsts]

    asked = {"Bucket": bucket, "Key": key, "IfMatch": f'"{etag}"'} | request_options(client)

    async def piece(options: dict[str, str]) -> bytes:
        failure: BaseException | None = None
        for _ in range(client.retries):  # the client retries the request, not a body that breaks off
            answer = await client._call_s3("get_object", **asked, **options)
            try:
                if answer.get("ETag", etag).strip('"') != etag:  # a store that takes no notice of a condition
                    raise Changed(errno.ESTALE, "is no longer what it was", uri)
                return bytes(await answer["Body"].read())
            except S3_RETRYABLE_ERRORS as error:
                failure = error
            finally:
                answer["Body"].close()
        assert failure is not None
        raise failure

    async def pieces() -> list[bytes]:
        return await asyncio.gather(*(piece(options) for options in ranges))

    with named(uri):
        try:
            return b"".join(sync(client.loop, pieces))
        except OSError as error:
            if PRECONDITION_FAILED in repr(error.__cause__):
                raise Changed(errno.ESTALE, "is no longer what it was", uri) from error
            raise


KEPT_BYTES = 8  # of an object's end: where formats say how long their footer is


class RemoteFile(io.RawIOBase):
    """An object read by ranges: a read is a request. Raises OSError.

    Attributes:
        tail: the last bytes of the object, once a read has reached them.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._position, self.tail = uri, 0, b""
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
            text = f"{len(data)} of {end - self._position} bytes at {self._position}"
            raise StorageBusy(errno.EAGAIN, text, self._uri)
        self._position = end
        if end == self._size:
            self.tail = data[-KEPT_BYTES:]
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


TAIL_BYTES = 64 << 10


def read_tail(uri: str, size: int = TAIL_BYTES) -> tuple[bytes, int]:
    """The last bytes of an object, all of a smaller one, and how many it has. On S3 one request. Raises OSError."""
    client, path = client_of(uri)
    if scheme_of(uri) not in S3:
        whole = state_of(uri)[0]
        return read(uri, max(0, whole - size), whole), whole
    bucket, key, _ = client.split_path(path)

    async def tail() -> tuple[bytes, int]:
        answer = await client._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes=-{size}", **request_options(client)
        )
        try:
            data = bytes(await answer["Body"].read())
        finally:
            answer["Body"].close()
        return data, int(answer["ContentRange"].rpartition("/")[2])

    with named(uri):
        data, whole = sync(client.loop, tail)
    return data, whole


class TailFile(RemoteFile):
    """An object whose end has been read at once; what lies before is asked for as it is read. Raises OSError."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        self._tail, self._size = read_tail(uri)

    def read(self, size: int | None = -1) -> bytes:
        first = self._size - len(self._tail)
        if self._position < first:
            return super().read(size)
        start = self._position - first
        data = self._tail[start:] if size is None or size < 0 else self._tail[start : start + size]
        self._position += len(data)
        return data


def dataset_of(folder: RemotePath) -> Any:
    """A folder of Parquet files as a pyarrow data set. Raises OSError."""
    import pyarrow.dataset

    client, path = client_of(folder.uri)
    with named(folder.uri):
        files = sorted(f"{path}/{name}" for name in names(folder.uri) if name.endswith(".parquet"))
        return pyarrow.dataset.dataset(files, format="parquet", filesystem=client)


def download(uri: str, target: Path) -> None:
    """Raises OSError; StorageBusy of this node where its own disk does not take the file."""
    client, path = client_of(uri)
    with named(uri):
        try:
            client.get_file(path, str(target))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise StorageBusy(errno.ENOSPC, str(error), uri, here=True) from error
