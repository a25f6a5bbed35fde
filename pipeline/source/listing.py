"""Listing: a source's files, listed once and handed on."""

from __future__ import annotations

import itertools
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..storage.names import left_alone_in
from .media import IMAGE, is_video
from .part import SourceFile, SourcePlace

FILES_AT_ONCE = 4096
SPOOLED_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class FirstImages:
    """The names of the first images in a source's tars.

    Attributes:
        tar: the first one that has any, "" if none was seen.
        most: how many were asked for.
        unsure: whether a tar could not be read to its end: it may have images, too.
    """

    tar: str = ""
    names: tuple[str, ...] = ()
    most: int = 0
    unsure: bool = False


class Listing:
    """A source's files as one look at it found them, in sorted order.

    Listing costs requests, and two looks may differ: a run lists once and hands this on. It is kept in memory up to
    SPOOLED_BYTES, beyond that in an unnamed temporary file.

    Attributes:
        place: what was listed.
        count: how many files there are.
        videos: how many of them are videos by their names.
        ignored: the other files, counted by extension.
        first_images: of tars, by the image column that they were looked for with.
    """

    def __init__(self, place: SourcePlace, files: Iterator[SourceFile], ignored: Counter[str]) -> None:
        self.place = place
        self.count = 0
        self.videos = 0
        self.ignored = ignored
        self.first_images: dict[str, FirstImages] = {}
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES)
        while batch := list(itertools.islice(files, FILES_AT_ONCE)):
            self.count += len(batch)
            if place.media != IMAGE:
                self.videos += sum(is_video(file.path, place.media) for file in batch)
            pickle.dump(batch, self._spool, protocol=pickle.HIGHEST_PROTOCOL)
        self._end = self._spool.tell()

    def __iter__(self) -> Iterator[SourceFile]:
        position = 0
        while position < self._end:
            self._spool.seek(position)
            batch: list[SourceFile] = pickle.load(self._spool)
            position = self._spool.tell()
            yield from batch


def name_of_ignored(path: str, suffixes: tuple[str, ...]) -> str:
    """The name by which a file that is left alone is counted: its extension, and why, where that does not say it.

    Args:
        path: relative to the source; a folder's with a slash behind.
        suffixes: of what is taken, in lower case.
    """
    extension = os.path.splitext(path)[1].lower()
    if found := left_alone_in(path.rstrip("/")):
        in_folder = found.endswith("/") or path.endswith("/")
        return found.rstrip("/") + "/" if in_folder else f"{extension} (hidden)"
    return f"{extension} (no regular file)" if path.lower().endswith(suffixes) else extension
