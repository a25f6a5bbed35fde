"""One error type per kind of failure. A reject is not an error: it is a row (see `rejects.py`).

A failure that waiting may help is the Busy kind of its type. Whatever turns an OSError into one of ours does so by
`reading`, `writing`, `source_error` or `output_error`, so that none of them forgets which kind it is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# A mount or a server that does not answer now: `docs/decisions/storage.md` says why each of them is here.
BUSY_STORAGE = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
# A node that has run out of something, or whose mount has died.
BUSY_NODE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOTCONN, errno.ESHUTDOWN})
# A node's own disk that takes no files: full, broken, or swept.
BUSY_NODE_DISK = frozenset({errno.EDQUOT, errno.EIO, errno.ENOENT, errno.ENOSPC, errno.EROFS})


class RequestError(Exception):
    """The request itself is wrong: a configuration, a path, a checkpoint. Exit code 2, nothing was written."""


class StorageBusy(OSError):
    """Storage does not serve a request at the moment: 5xx, throttling, time-outs, broken connections.

    Attributes:
        here: this node's own trouble, which says nothing about the storage.
    """

    def __init__(self, number: int, text: str, location: str | None = None, *, here: bool = False) -> None:
        super().__init__(number, text, location)
        self.here = here


class SourceError(Exception):
    """A source file changed, vanished or cannot be read. A failure of the world: retried, never a reject."""


class SourceBusy(SourceError):
    """The source cannot be read at the moment; waiting, or another node, may help.

    Attributes:
        here: this node's own trouble, which says nothing about the storage.
    """

    def __init__(self, message: str, *, here: bool = False) -> None:
        super().__init__(message)
        self.here = here


class ReaderLost(SourceError):
    """The process that reads images was killed from outside, or cannot start: nothing is known about any image."""


class DamagedPart(SourceError):
    """A file that is damaged in its structure, so that its list of samples cannot be trusted from there on.

    Attributes:
        group: the row group that is damaged: what was read of it counts for nothing. -1 where there are none.
    """

    def __init__(self, message: str, *, group: int = -1) -> None:
        super().__init__(message)
        self.group = group


class OutputError(Exception):
    """The output cannot be written. The run stops at once, because every further unit would fail the same way."""


class DamagedShard(OutputError):
    """A shard that is not whole. Never of one that cannot be read at the moment, about which nothing is known."""


class OutputBusy(OutputError):
    """The output cannot be written at the moment; waiting, or another node, may help.

    Attributes:
        here: this node's own trouble, such as its full scratch disk, which says nothing about the storage.
    """

    def __init__(self, message: str, *, here: bool = False) -> None:
        super().__init__(message)
        self.here = here


class EncodeError(Exception):
    """One image does not fit on the device, even alone, or a value does not fit the stored dtype."""


def is_busy(error: BaseException) -> bool:
    """Whether waiting, or another node, may help: by what storage says of it, and by its errno."""
    if isinstance(error, StorageBusy | SourceBusy | OutputBusy):
        return True
    return isinstance(error, OSError) and error.errno in BUSY_STORAGE | BUSY_NODE


def is_here(error: BaseException) -> bool:
    """Whether a failure that waiting may help is this node's own trouble."""
    if isinstance(error, StorageBusy | SourceBusy | OutputBusy):
        return error.here
    return isinstance(error, OSError) and error.errno in BUSY_NODE


def is_of_the_file(error: BaseException) -> bool:
    """Whether a library says that a file is not what it should be: what the world does to it has an errno."""
    return not isinstance(error, OSError) or error.errno is None


def source_error(message: str, error: BaseException) -> SourceError:
    """Returns the SourceError that a failure to read the source is, of the Busy kind where waiting may help."""
    return SourceBusy(message, here=is_here(error)) if is_busy(error) else SourceError(message)


def output_error(message: str, error: BaseException, *, node_disk: bool = False) -> OutputError:
    """Returns the OutputError that a failure to write the output is, of the Busy kind where waiting may help.

    Args:
        node_disk: the file is scratch on a disk of this node alone.
    """
    if node_disk and isinstance(error, OSError) and error.errno in BUSY_NODE_DISK:
        return OutputBusy(message, here=True)
    return OutputBusy(message, here=is_here(error)) if is_busy(error) else OutputError(message)


def listing_error(message: str, error: BaseException) -> RequestError | SourceBusy:
    """Returns the error that a failure to list or to look into the source is, before anything is written."""
    return SourceBusy(message, here=is_here(error)) if is_busy(error) else RequestError(message)


@contextmanager
def reading(location: object) -> Iterator[None]:
    """Turns the system's errors while something of the source is read into a SourceError that names it."""
    try:
        yield
    except OSError as error:
        raise source_error(f"{location}: cannot be read: {error}", error) from error


@contextmanager
def writing(location: object, *, node_disk: bool = False) -> Iterator[None]:
    """Turns the system's errors while something of the output is written into an OutputError that names it.

    Args:
        node_disk: as of `output_error`.
    """
    try:
        yield
    except OSError as error:
        raise output_error(f"cannot write {location}: {error}", error, node_disk=node_disk) from error


class RunFailed(Exception):
    """The run ended incomplete. Exit code 1; what is committed stays, and the next run goes on from there."""
