"""Held: a file's bytes in memory, or a large local file where it lies."""

from __future__ import annotations

from . import local
from .files import read_input
from .large import Encoded, LargeFile
from .remote import is_remote

HELD_BYTES = 64 << 20  # of a larger file it is known where it lies


def large_file(location: str, held_bytes: int = HELD_BYTES) -> LargeFile | None:
    """A local file of more than `held_bytes`, as it lies there now; None of any other. Raises OSError."""
    if is_remote(location):
        return None
    size, mtime_ns, _ = local.state_of(location)
    return LargeFile(path=location, size=size, mtime_ns=mtime_ns) if size > held_bytes else None


def read_or_leave(location: str) -> Encoded:
    """A file's bytes, or where they lie. Raises OSError."""
    return large_file(location) or read_input(location)
