"""Publish: a complete file appears under its final name, or not at all.

Local file systems publish by a hard link, which never replaces, and those that have none by a rename that never does
(`renameat2`, RENAME_NOREPLACE: exFAT, vfat); object stores by one PUT or one completed multipart upload,
create-if-absent.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import RequestError, output_error
from ..fault import fault_point
from . import remote_publish
from .files import AnyPath
from .remote import RemotePath
from .scratch import Scratch, writing_scratch

# The answers of file systems that do not know what they are asked for.
UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
NO_LINKS = UNKNOWN | {errno.EPERM, errno.EMLINK}
NO_FOLDER_SYNC = UNKNOWN | {errno.EBADF}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def sync_file(path: Path) -> None:
    """Flushes a file that a library has written. Raises OutputError."""
    with writing_scratch(path), open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_directory(folder: Path) -> None:
    """Flushes a folder's names where its file system can be asked to; others flush them by themselves, or never."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def give_name(scratch: Path, final: Path) -> None:
    """Gives a file another name, without replacing; whether it keeps its own depends on the file system.

    Raises:
        FileExistsError: the name is taken.
        OSError: the file system refuses; of one that has no way to do it, its answer to the second that was tried.
    """
    try:
        os.link(scratch, final)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _rename_new(scratch, final)


def _rename_new(source: Path, target: Path) -> None:
    """Renames without replacing. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(source), None, str(target))
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


def check_publishing(output: AnyPath, scratch: Scratch) -> None:
    """Makes sure, before anything is written, that an output's file system can publish without replacing.

    Raises:
        RequestError: it cannot; what it lacks.
        OutputError: it cannot be written at all.
    """
    if isinstance(output, RemotePath):
        return
    paths = [scratch.path("probe") for _ in range(2)]
    for path in paths:
        write_text(path, "")
    final = scratch.path("probe")
    try:
        give_name(paths[0], final)
        with suppress(FileExistsError):
            give_name(paths[1], final)
            raise OSError(errno.ENOTSUP, "a name that was taken has been replaced", str(final))
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise output_error(f"cannot write to {output}: {error}", error) from error
        raise RequestError(
            f"output.uri: {output}: its file system has neither hard links nor a rename that never replaces "
            f"({error.strerror}), so that two runs could overwrite each other's shards; write to another file system, "
            "or to object storage, and copy the output when it is complete"
        ) from error
    finally:
        for path in (*paths, final):
            path.unlink(missing_ok=True)


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
        fault_point(f"publish={final.name}")
        try:
            give_name(scratch, final)
        except FileExistsError:
            return False
        sync_directory(final.parent)
        scratch.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(f"cannot publish {final}: {error}", error) from error
    return True


def _make_folder(folder: Path) -> None:
    """Within an output, never an output that has vanished: see `Scratch.path`. The deepest is `OUTPUT/plan/index`."""
    if folder.parent.name == "plan":
        folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)


def publish_over(scratch: Path, final: AnyPath) -> None:
    """Publishes over whatever stands there: for the few files that describe the run. Raises OutputError."""
    try:
        if isinstance(final, RemotePath):
            remote_publish.upload(scratch, final.uri, replace=True)
            scratch.unlink()
            return
        _make_folder(final.parent)
        os.replace(scratch, final)
        sync_directory(final.parent)
    except OSError as error:
        raise output_error(f"cannot publish {final}: {error}", error) from error


def remove_unfinished(output: AnyPath, committed: Callable[[str], bool]) -> None:
    """Removes what killed processes, and twins that came too late, left unfinished of shards that are committed.

    A local one's lies in their scratch.
    """
    if isinstance(output, RemotePath):
        with suppress(OSError):  # it costs space, and nothing else
            for folder in ("data", "samples"):
                remote_publish.remove_unfinished((output / folder).uri, lambda name, begun: committed(name))


def write_text(path: Path, text: str) -> None:
    """Writes and flushes a small file. Raises OutputError."""
    with writing_scratch(path), open(path, "x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
