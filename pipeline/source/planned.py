"""Planned files: a file of the source is read as what it was when it was planned, or not at all."""

from __future__ import annotations

import os

from ..errors import SourceError, reading
from ..storage.files import kind_of, read_if_same
from .part import SourceFile


def difference(old: SourceFile, new: SourceFile) -> str:
    if old.size != new.size:
        return f"has changed since it was planned: {old.size} bytes then, {new.size} now"
    if old.etag or new.etag:
        return f"has changed since it was planned: ETag {old.etag} then, {new.etag} now"
    return f"has changed since it was planned: mtime {old.mtime_ns} ns then, {new.mtime_ns} now"


def check_unchanged(root: str, file: SourceFile) -> None:
    """Raises SourceError, naming the file, if it is no longer what was planned."""
    path = os.path.join(root, file.path)
    with reading(path):
        size, mtime_ns, etag = kind_of(path).state_of(path)
    now = SourceFile(path=file.path, size=size, mtime_ns=mtime_ns, etag=etag)
    if now.state != file.state:
        raise SourceError(f"{path} {difference(file, now)}")


def read_planned(root: str, file: SourceFile, start: int | None = None, end: int | None = None) -> bytes:
    """A file's bytes, or a range of them, having made sure that it is what was planned.

    Of an object with an ETag that is one conditional request, where the storage's client can make one.

    Raises:
        SourceError: naming the file: it has changed, or cannot be read.
    """
    path = os.path.join(root, file.path)
    with reading(path):
        data = read_if_same(path, file.state, start, end)
    if data is None:
        check_unchanged(root, file)  # says how
        raise SourceError(f"{path} has changed since it was planned")
    return data
