"""Files, wherever they lie: opening, scratch, and publishing a complete file under its final name.

A place is a local path or a URI (`pipeline.remote`). Local file systems publish by a hard link, which never replaces;
object stores by one PUT or one completed multipart upload, create-if-absent.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from pipeline import remote, remote_publish, remote_read
from pipeline.errors import OutputError
from pipeline.remote import RemotePath, is_remote

STALE_SCRATCH_SECONDS = 24 * 3600

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


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """The file itself, or a copy of an object in the temporary folder while the block runs. Raises OSError."""
    if isinstance(path, Path):
        yield path
        return
    _make_private(_node_scratch())
    with tempfile.TemporaryDirectory(dir=_node_scratch()) as folder:
        copy = Path(folder, path.name)
        remote_read.download(path.uri, copy)
        yield copy


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


class Scratch:
    """This process group's private folder.

    Of a local output it is `OUTPUT/_tmp/<nonce>/`, on the same file system, so that publishing is a hard link; of a
    remote one it is in the temporary folder of each node. Only scratch of the own nonce, or older than a day, is ever
    removed: another driver may be at work in the same output.
    """

    def __init__(self, output: str | Path | RemotePath, nonce: str | None = None) -> None:
        self.output = as_path(output)
        self._there = nonce is not None  # another process has made it
        self.nonce = nonce or uuid.uuid4().hex
        parent = _node_scratch() if isinstance(self.output, RemotePath) else self.output / "_tmp"
        self.folder = parent / self.nonce
        self._made_output = False

    def path(self, name: str) -> Path:
        """A fresh path; the random part keeps twins in one process group apart.

        Raises:
            OutputError: it cannot be made, or the output has vanished since: its disk may be gone, and what was written
                then would lie on another.
        """
        try:
            if isinstance(self.output, Path) and not self.output.exists():
                if self._there:
                    raise OutputError(f"{self.output} has vanished")
                self._made_output = True
            if isinstance(self.output, RemotePath):
                _make_private(self.folder.parent)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._there = True
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error}") from error
        return self.folder / f"{uuid.uuid4().hex[:8]}-{name}"

    def remove(self) -> None:
        """Removes the own scratch, any that is older than a day, and an output that was made for nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(self.output, RemotePath):
            stale = datetime.now(UTC) - timedelta(seconds=STALE_SCRATCH_SECONDS)
            with suppress(OSError):  # who may not list uploads may still write
                remote_publish.remove_unfinished(self.output.uri, lambda name, begun: begun < stale)
        self.remove_stale()
        with suppress(OSError):  # another driver's scratch is in it, or it cleans up too, or there is an output
            self.folder.parent.rmdir()
            if self._made_output and isinstance(self.output, Path):
                self.output.rmdir()

    def remove_stale(self) -> None:
        """What processes that were killed more than a day ago have left here."""
        with suppress(OSError):
            for entry in os.scandir(self.folder.parent):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SCRATCH_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _node_scratch() -> Path:
    """Of this user on this node."""
    return Path(tempfile.gettempdir()) / f"visionbake-{os.getuid()}"


def _make_private(folder: Path) -> None:
    """Raises OSError if the folder is another user's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(errno.EPERM, "is another user's", str(folder))


def sync_file(path: Path) -> None:
    """Flushes a file that a library has written. Raises OutputError."""
    try:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_new(scratch: Path, final: AnyPath) -> bool:
    """Publishes a complete, flushed file under its final name, never replacing.

    Returns:
        False if the name exists already; then nothing changed and the scratch file is still there.

    Raises:
        OutputError: the file system or the storage refuses.
    """
    try:
        if isinstance(final, RemotePath):
            if not remote_publish.upload(scratch, final.uri, replace=False):
                return False
            scratch.unlink()
            return True
        _make_folder(final.parent)
        try:
            os.link(scratch, final)
        except FileExistsError:
            return False
        sync_directory(final.parent)
        scratch.unlink()
    except OSError as error:
        raise OutputError(f"cannot publish {final}: {error}") from error
    return True


def _make_folder(folder: Path) -> None:
    """Within an output, never an output that has vanished: see `Scratch.path`. The deepest is `OUTPUT/plan/index`."""
    if folder.parent.name == "plan":
        folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)


def publish_over(scratch: Path, final: AnyPath) -> None:
    """Publishes over whatever stands there: for a data shard that failed its check and is in no record, and for
    the few files that describe the run. Raises OutputError."""
    try:
        if isinstance(final, RemotePath):
            remote_publish.upload(scratch, final.uri, replace=True)
            scratch.unlink()
            return
        _make_folder(final.parent)
        os.replace(scratch, final)
        sync_directory(final.parent)
    except OSError as error:
        raise OutputError(f"cannot publish {final}: {error}") from error


def remove_unfinished(output: AnyPath, committed: Callable[[str], bool]) -> None:
    """What killed processes, and twins that come too late, have left unfinished of shards that are committed.

    A local one's lies in their scratch.
    """
    if isinstance(output, RemotePath):
        with suppress(OSError):  # it costs space, and nothing else
            for folder in ("data", "samples"):
                remote_publish.remove_unfinished((output / folder).uri, lambda name, begun: committed(name))


def lists_by_prefix(folder: AnyPath) -> bool:
    """Whether a listing by prefix costs no more than what it gives."""
    return isinstance(folder, RemotePath) and remote.lists_by_prefix(folder.uri)


def write_text(path: Path, text: str) -> None:
    """Writes and flushes a small file. Raises OutputError."""
    try:
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
