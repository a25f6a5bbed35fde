"""Replace: put a file over the very one that was looked at, and over no other.

    local   the file's own lock (flock) is held while it is made sure that the name still means it, and it is replaced
    S3      a PUT, or the completion of an upload, on the condition of its ETag
    GCS     it is deleted on the condition of its generation, then published as a new one
    others  unconditionally: one process at a time

For what is damaged and in no record; nothing else is ever replaced, but the few files that describe a run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, StorageBusy, output_error
from ..fault import fault_point
from . import remote, remote_publish
from .files import AnyPath
from .publish import NO_LINKS, sync_directory
from .remote import RemotePath
from .scratch import Scratch, local_copy

LOCK_PAUSE_SECONDS = 0.05
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A published file as it was at one moment, whatever is published since.

    Attributes:
        path: a local file with its bytes.
        version: an object's, by the storage's word; empty where it has none.
        descriptor: a local file's own, open.
    """

    path: Path
    version: str = ""
    descriptor: int = -1


@contextmanager
def snapshot(final: AnyPath, scratch: Scratch) -> Iterator[Snapshot]:
    """Holds a published file still while the block runs: a local one by a second name, an object as a copy.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read.
    """
    if isinstance(final, RemotePath):
        version = remote_publish.version_of(final.uri)  # before the copy: after a change in between nothing is replaced
        with local_copy(final) as copy:
            if copy.stat().st_size != remote.state_of(final.uri)[0]:
                raise StorageBusy(errno.EAGAIN, "its copy is not whole, or it has changed meanwhile", final.uri)
            yield Snapshot(path=copy, version=version)
        return
    path = scratch.path(f"standing-{final.name}")
    descriptor = _open(final)
    try:
        _link_or_copy(final, path)
        yield Snapshot(path=path, descriptor=descriptor)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _link_or_copy(final: Path, path: Path) -> None:
    try:
        os.link(final, path)
    except OSError as error:  # Linux links no file of another user that one may not write (fs.protected_hardlinks)
        if error.errno not in NO_LINKS | {errno.EACCES}:
            raise
        shutil.copyfile(final, path)


def make_durable(final: AnyPath) -> None:
    """Makes sure that a name which another process has published outlives a power cut. Raises OSError."""
    if isinstance(final, Path):
        sync_directory(final.parent)


def replace_same(source: Path, final: AnyPath, old: Snapshot) -> bool:
    """Replaces a published file by a complete, flushed one, if it still is the one of the snapshot.

    Returns:
        False if the name means something else by now, or nothing: then `source` is still there.

    Raises:
        OutputError: the storage refuses, or cannot tell.
    """
    try:
        if isinstance(final, RemotePath):
            fault_point("data_replace_locked")
            if not remote_publish.replace_same(source, final.uri, old.version):
                return False
            fault_point("data_replaced")
            source.unlink()
            return True
        return _replace_locked(source, final, old.descriptor)
    except OSError as error:
        raise output_error(f"cannot replace {final}: {error}", error) from error


def _replace_locked(source: Path, final: Path, old: int) -> bool:
    """Replaces under the old file's lock, held until its descriptor is closed or its holder is killed."""
    while not _lock(old, final):
        fault_point("data_replace_waits")
        time.sleep(LOCK_PAUSE_SECONDS)
    try:
        if not os.path.samestat(os.stat(final), os.fstat(old)):
            return False
    except FileNotFoundError:
        return False
    fault_point("data_replace_locked")
    os.replace(source, final)
    fault_point("data_replaced")
    sync_directory(final.parent)
    return True


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR)  # NFS locks only what is open for writing
    except PermissionError:
        return os.open(path, os.O_RDONLY)  # another user's; elsewhere that does


def _lock(descriptor: int, final: Path) -> bool:
    """Whether the lock is ours now. Raises OutputError: the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise OutputError(
            f"{final} is damaged and in no record, and its file system has no locks, so that it cannot be replaced "
            f"safely ({error.strerror}); remove it while no other run is at work in this output"
        ) from error
    return True
