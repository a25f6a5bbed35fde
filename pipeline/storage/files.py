"""Files, wherever they lie: opening, listing and reading them.

A location is a local path or a URI (see `remote`).
"""

from __future__ import annotations

import errno
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from ..errors import RequestError
from ..process import expand_home
from . import local, remote, remote_list, remote_read, uri
from .local import State
from .names import escaped
from .remote import RemotePath, is_remote

AnyPath = Path | RemotePath
T = TypeVar("T")
U = TypeVar("U")
READS_AT_ONCE = 16
REQUESTS_AT_ONCE = 32


class Kind(Protocol):
    """The questions that a kind of storage answers: `local`, `remote`."""

    def exists(self, location: str, /) -> bool: ...

    def is_folder(self, location: str, /) -> bool: ...

    def state_of(self, location: str, /) -> State: ...

    def glob(self, pattern: str, /) -> dict[str, State | None]: ...

    def walk(self, folder: str, suffixes: tuple[str, ...], /) -> Iterator[tuple[str, State | None]]: ...


def kind_of(location: str) -> Kind:
    """The storage that a path or URI lies in."""
    return remote if is_remote(location) else local


def states_of(locations: Sequence[str]) -> dict[str, State]:
    """The states of files that cost less to list together than to ask for; of others none. Raises OSError."""
    return remote_list.states_of(locations) if is_remote(locations[0]) else {}


def as_path(location: str | os.PathLike[str] | RemotePath) -> AnyPath:
    """A local path or, of a URI, a remote one."""
    if isinstance(location, RemotePath):
        return location
    text = os.fspath(location)
    return RemotePath(text.rstrip("/")) if is_remote(text) else Path(uri.local_path(text))


def absolute(location: str) -> AnyPath:
    """An output's location as its configuration names it: `~` and relative paths resolved.

    Raises:
        RequestError: it is a file URI that is none of this machine's.
    """
    return RemotePath(location.rstrip("/")) if is_remote(location) else Path(_absolute_path(location))


def _absolute_path(location: str) -> str:
    try:
        path = uri.local_path(location)
    except ValueError as error:
        raise RequestError(str(error)) from error
    # A file URI has no home folder: `~` is a name in it.
    return os.path.abspath(path if uri.is_file_uri(location) else expand_home(path))


def is_folder(path: AnyPath) -> bool:
    """Whether there is such a folder; in an object store, whether anything lies below. Raises OSError."""
    return remote.is_folder(path.uri) if isinstance(path, RemotePath) else path.is_dir()


def names_in(folder: AnyPath, prefix: str = "") -> Iterable[str]:
    """The names of a folder's files that begin with a prefix, in no order; none where there is none. Raises OSError."""
    return remote_list.names(folder.uri, prefix) if isinstance(folder, RemotePath) else _names_here(folder, prefix)


def source_names(folder: str, prefix: str = "") -> Iterable[str]:
    """The names of a source's folder that begin with a prefix, as `names.escaped` writes them. Raises OSError."""
    return map(escaped, names_in(as_path(folder if is_remote(folder) else local.actual(folder)), prefix))


def _names_here(folder: Path, prefix: str) -> Iterator[str]:
    """One at a time: there may be millions."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(prefix):
                    yield entry.name


def small_file(path: AnyPath) -> Any:
    """Returns what pyarrow can open of a small file: its path, or an object's bytes, in one request. Raises OSError."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path


@contextmanager
def open_tail(path: AnyPath, *, whole: bool) -> Iterator[Any]:
    """Gives what pyarrow can open of a file that is read from its end; of an object its end, or all, is one request.

    Args:
        whole: whether all of it is going to be read.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(path, RemotePath):
        yield io.BytesIO(path.read_bytes()) if whole else remote_read.TailFile(path.uri)
    else:
        yield path


def open_input(location: str | AnyPath, *, forwards: bool = True) -> IO[bytes]:
    """Opens a file of the source. Read `forwards`, an object is fetched in large pieces; else as it is asked for.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(location, Path) or not is_remote(location):
        return local.open_regular(str(location))
    file = remote_read.RemoteFile(str(location))
    return io.BufferedReader(file, remote_read.READ_AHEAD_BYTES) if forwards else file  # type: ignore[return-value]


def open_random(path: str) -> tuple[Any, bool]:
    """Returns what a library can seek in, a path or an object as a file, and whether to join its reads."""
    return (open_input(path, forwards=False), True) if is_remote(path) else (local.actual(path), False)


def last_bytes(opened: Any) -> bytes:
    """The last 8 bytes of what `open_random` gave, when a library has read its end. Raises OSError."""
    if not isinstance(opened, str):
        return bytes(opened.tail)
    with local.open_regular(opened) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - remote_read.KEPT_BYTES))
        return stream.read()


def absolute_uri(location: str) -> str:
    """A source's location made absolute; `~` and relative paths are resolved. Raises RequestError as `absolute`."""
    return location.rstrip("/") if is_remote(location) else _absolute_path(location)


def common_folder(folders: Sequence[str]) -> str:
    """The longest folder above several. Raises ValueError: they lie in different buckets, or on different storages."""
    scheme, separator, _ = folders[0].partition("://")
    if not separator:
        return os.path.commonpath(folders)
    # As if they were local ones: every one begins with the same scheme, and has a bucket.
    common = os.path.commonpath(["/" + folder.partition("://")[2] for folder in folders]).lstrip("/")
    if not common:
        raise ValueError("not all in one bucket")
    return f"{scheme}://{common}"


def relative_to(root: str, path: str) -> str:
    """A file's path below a folder of the same storage."""
    return path.removeprefix(root + "/") if is_remote(path) else os.path.relpath(path, root)


def read_input(location: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file of the source, or a range of it, which ends where the file does. Raises OSError."""
    if is_remote(location):
        return remote.read(location, start, end)
    with local.open_regular(location) as stream:
        if start is None or end is None:
            return stream.read()
        stream.seek(start)
        return stream.read(end - start)


def may_be_read(location: str) -> bool:
    """Whether a local file is there and this user may read it; of an object it is not known, so True."""
    effective = os.access in os.supports_effective_ids
    return is_remote(location) or os.access(local.actual(location), os.R_OK, effective_ids=effective)


def why_unreadable(location: str) -> str:
    """Says why a file that is there can never be read, or ""; of an object it is never known."""
    return "" if is_remote(location) else local.why_unreadable(location)


def why_unlistable(location: str) -> str:
    """Says why a folder may not be listed, or ""; in object storage there are no such folders."""
    return "" if is_remote(location) else local.why_unlistable(location)


def read_if_same(location: str, state: State, start: int | None = None, end: int | None = None) -> bytes | None:
    """A file or a range of it, as `read_input`; None if its state is another one by now. Raises OSError."""
    etag = state[2]
    if etag and is_remote(location) and remote_read.reads_conditionally(location):
        try:
            return remote_read.read_if_match(location, etag, start, end)
        except remote_read.Changed:
            return None
    return read_input(location, start, end) if kind_of(location).state_of(location) == state else None


def path_named_in(file: str, value: str) -> str:
    """The path or URI that a name in a file means: relative to the file, absolute, or a URI.

    Raises:
        ValueError: it is a URI that cannot be used, and why, by its looks alone.
    """
    if is_remote(file) and not value.startswith("/") and not uri.is_file_uri(value) and not is_remote(value):
        value = uri.beside(file, value)
    if not is_remote(value):
        return os.path.join(os.path.dirname(file), uri.local_path(value))
    if problem := uri.problem_with(value):
        raise ValueError(problem)
    return value


def names_at(folder: AnyPath) -> set[str]:
    """The names in a folder, those of folders with a slash behind; none where there is none.

    Raises:
        NotADirectoryError: it is a file.
        OSError: it cannot be read.
    """
    try:
        if isinstance(folder, RemotePath):
            if folder.exists():
                raise NotADirectoryError(errno.ENOTDIR, "is a file", folder.uri)
            return {entry["name"] for entry in remote.entries(folder.uri)}
        with os.scandir(folder) as entries:
            return {entry.name + ("/" if entry.is_dir() else "") for entry in entries}
    except FileNotFoundError:
        return set()


def can_be_written(folder: AnyPath) -> bool:
    """Whether a folder, or the nearest one above it that exists, takes files. Of an object store it is not known."""
    if isinstance(folder, RemotePath):
        return True
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def has_vanished(folder: str) -> bool:
    """Whether a local folder is not there, or not any more."""
    return not is_remote(folder) and not Path(folder).exists()


def is_on_a_disk(location: str | AnyPath) -> bool:
    """Whether a location lies on a file system, which other nodes may not see; object storage all of them do."""
    return not is_remote(location)


def is_relative(location: str) -> bool:
    """Whether a location is meant relative to the current directory."""
    return not is_remote(location) and not os.path.isabs(expand_home(uri.local_path(location)))


def make_folder(folder: AnyPath) -> None:
    """Makes a folder where storage has folders. Raises OSError."""
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)


def remove_folder(folder: AnyPath) -> None:
    """Removes an empty folder where storage has folders. Raises OSError: it is not empty."""
    if isinstance(folder, Path) and folder.is_dir():
        folder.rmdir()


def requests_at_once(location: AnyPath) -> int:
    """How many small files are read at a time: of an object store many, each waits for its answer."""
    return REQUESTS_AT_ONCE if isinstance(location, RemotePath) else 1


def reads_ahead(root: str) -> int:
    """How many files are read ahead of their use: from object storage many at once, from a disk none."""
    return READS_AT_ONCE if is_remote(root) else 0


def map_ahead(pool: Executor, function: Callable[[T], U], values: Iterable[T], ahead: int) -> Iterator[U]:
    """Calls a function for each value, in order, with so many results at most under way."""
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
