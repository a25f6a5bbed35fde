"""One error type per kind of failure. A reject is not an error: it is a row (see `rejects.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RequestError(Exception):
    """The request itself is wrong: a configuration, a path, a checkpoint. Exit code 2, nothing was written."""


class SourceError(Exception):
    """A source file changed, vanished or cannot be read. A failure of the world: retried, never a reject."""


class ReaderLost(SourceError):
    """The process that reads images was killed from outside, or cannot start: nothing is known about any image."""


class DamagedPart(SourceError):
    """A tar that is damaged in its structure, so that its list of samples cannot be trusted."""


class OutputError(Exception):
    """The output cannot be written. The run stops at once, because every further unit would fail the same way."""


class SourceBusy(SourceError):
    """tmp"""


class OutputBusy(OutputError):
    """tmp"""

    here = False


class EncodeError(Exception):
    """One image does not fit on the device, even alone, or a value does not fit the stored dtype."""


@contextmanager
def reading(location: object) -> Iterator[None]:
    """Turns the system's errors while something of the source is read into a SourceError that names it."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{location}: cannot be read: {error}") from error


@contextmanager
def writing(location: object) -> Iterator[None]:
    """Turns the system's errors while something of the output is written into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {location}: {error}") from error


class RunFailed(Exception):
    """The run ended incomplete. Exit code 1; what is committed stays, and the next run goes on from there."""
