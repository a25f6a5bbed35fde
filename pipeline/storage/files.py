"""Files, wherever they lie: opening, scratch, and publishing a complete file under its final name.

A place is a local path or a URI (`pipeline.remote`). Local file systems publish by a hard link, which never replaces;
object stores by one PUT or one completed multipart upload, create-if-absent.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import IO, Any, TypeVar

from . import remote, remote_read
from .remote import RemotePath, is_remote

AnyPath = Path | RemotePath
T = TypeVar("T")
U = TypeVar("U")
READS_AT_ONCE = 16


def as_path(place: str | os.PathLike[str] | RemotePath) -> AnyPath:
    """A local path or, of a URI, a remote one."""
    if isinstance(place, RemotePath):
        return place
    text = os.fspath(place)
    return RemotePath(text.rstrip("/")) if is_remote(text) else Path(text.removeprefix("file://"))


def absolute(uri: str) -> AnyPath:
    """An output's place as its configuration names it: `~` and relative paths resolved."""
    return as_path(uri if is_remote(uri) else os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))))


def is_folder(path: AnyPath) -> bool:
    """Whether there is such a folder; in an object store, whether anything lies below. Raises OSError."""
    return remote.is_folder(path.uri) if isinstance(path, RemotePath) else path.is_dir()


def names_in(folder: AnyPath, prefix: str = "") -> Iterable[str]:
    """The names of a folder's files that begin with a prefix, in no order; none where there is none. Raises OSError."""
    return remote.names(folder.uri, prefix) if isinstance(folder, RemotePath) else _names_here(folder, prefix)


def _names_here(folder: Path, prefix: str) -> Iterator[str]:
    """One at a time: there may be millions."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(prefix):
                    yield entry.name


def small_file(path: AnyPath) -> Any:
    """What pyarrow opens of a file of ours: its path, or an object's bytes, in one request. Raises OSError."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path


def open_input(place: str | AnyPath, *, forwards: bool = True) -> IO[bytes]:
    """Opens a file of the source. Read `forwards`, an object is fetched in large pieces; else as it is asked for.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(place, Path) or not is_remote(place):
        return open(str(place), "rb")
    file = remote_read.RemoteFile(str(place))
    return io.BufferedReader(file, remote_read.READ_AHEAD_BYTES) if forwards else file  # type: ignore[return-value]


def read_input(place: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file of the source, or a range of it, which ends where the file does. Raises OSError."""
    if is_remote(place):
        return remote.read(place, start, end)
    with open(place, "rb") as stream:
        if start is None or end is None:
            return stream.read()
        stream.seek(start)
        return stream.read(end - start)


def map_ahead(pool: Executor, function: Callable[[T], U], values: Iterable[T], ahead: int) -> Iterator[U]:
    """As `map`, with so many results at most under way."""
    waiting: deque[Future[U]] = deque()
    for value in values:
        waiting.append(pool.submit(function, value))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def lists_by_prefix(folder: AnyPath) -> bool:
    """Whether a listing by prefix costs no more than what it gives."""
    return isinstance(folder, RemotePath) and remote.lists_by_prefix(folder.uri)
