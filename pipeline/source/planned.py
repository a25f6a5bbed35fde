"""Planned files: a file of the source is read as what it was when it was planned, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .. import rejects
from ..errors import SourceError, reading
from ..storage.files import kind_of, read_if_same
from ..storage.held import large_file
from ..storage.large import Encoded
from .part import SourceFile
from .states import MISSING

# A run knows its files by what they were when it began: looking at their bytes is for the next one.
NEXT_TIME = "; the next run looks whether its bytes are the same"


def difference(old: SourceFile, new: SourceFile) -> str:
    if old.size != new.size:
        return f"has changed since it was planned: {old.size} bytes then, {new.size} now"
    if old.etag or new.etag:
        return f"has changed since it was planned: ETag {old.etag} then, {new.etag} now"
    return f"has changed since it was planned: mtime {old.mtime_ns} ns then, {new.mtime_ns} now"


def refusal(planned: SourceFile, listed: SourceFile | None) -> str:
    """The line that refuses a source of which a planned file is not there, or is another one; with every way on."""
    what = difference(planned, listed) if listed is not None else "was planned and has vanished"
    return (
        f"source: {planned.path} {what}; put it back as it was, or set source.on_changed: reject (its samples that are "
        "not committed become rejects), or use another output.uri"
    )


def lost_reject(file: SourceFile) -> tuple[str, str]:
    """The reason and the words with which the samples of a lost file are rejected."""
    if file.fate == MISSING:
        return rejects.MISSING_IMAGE, f"{file.path} was planned and has vanished"
    return rejects.CHECKSUM, f"{file.path} holds other bytes than when it was planned"


def check_unchanged(root: str, file: SourceFile) -> None:
    """Raises SourceError, naming the file, if it is no longer what was planned."""
    path = os.path.join(root, file.path)
    with reading(path):
        size, mtime_ns, etag = kind_of(path).state_of(path)
    now = SourceFile(path=file.path, size=size, mtime_ns=mtime_ns, etag=etag)
    if now.state != file.state:
        raise SourceError(f"{path} {difference(file, now)}{NEXT_TIME}")


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
        raise SourceError(f"{path} has changed since it was planned{NEXT_TIME}")
    return data


def planned_video(root: str, file: SourceFile) -> Encoded:
    """A video's bytes, as `read_planned`; of a large local one where they lie. Raises SourceError."""
    path = os.path.join(root, file.path)
    with reading(path):
        large = large_file(path)
    if large is None:
        return read_planned(root, file)
    check_unchanged(root, file)
    return large


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """A planned file: as it was planned, as it was last known, and its parts."""

    planned: SourceFile
    now: SourceFile
    parts: range

    def is_as_known(self, listed: SourceFile | None) -> bool:
        """Whether a listing has it as it was last known: there, in the same state, or gone."""
        if listed is None:  # of a folder that could not be listed nothing is lost when it can be
            return self.now.fate == MISSING or self.now.path.endswith("/")
        return self.now.fate != MISSING and self.now.state == listed.state


def as_now(planned: SourceFile, state: SourceFile | None) -> SourceFile:
    """A planned file in the state that it was last known in."""
    if state is None:
        return planned
    return replace(planned, size=state.size, mtime_ns=state.mtime_ns, etag=state.etag, fate=state.fate)


def merged(
    known: Iterable[KnownFile], listed: Iterable[SourceFile]
) -> Iterator[tuple[KnownFile | None, SourceFile | None]]:
    """Merges two sorted listings: every file once, as each of them has it."""
    left, right = iter(known), iter(listed)
    old, new = next(left, None), next(right, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old.planned.path < new.path):
            yield old, None
            old = next(left, None)
        elif old is None or new.path < old.planned.path:
            yield None, new
            new = next(right, None)
        else:
            yield old, new
            old, new = next(left, None), next(right, None)
