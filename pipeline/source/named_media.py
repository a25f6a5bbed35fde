"""Named media: the images and videos that one row names or holds, and the span of a video that it asks for.

A row may have both. Its image keeps the row's key; the video's has `/video` behind it then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .format import Columns, MediaRule
from .media import BOTH, IMAGE, VIDEO, is_video
from .named_image import NamedImage, first_named, named_images
from .sample import VideoFacts

START, END = "start", "end"  # columns beside a video's, in seconds
ROWS_LOOKED_AT = 100_000
NOTHING: tuple[Any, ...] = (None, "", [])


class Cells(NamedTuple):
    """The cells of one row that name or hold what is looked for; None where it has no such column."""

    image: Any
    video: Any = None
    start: Any = None
    end: Any = None

    @property
    def name_something(self) -> bool:
        """Whether an image or a video is named or held."""
        return self.image not in NOTHING or self.video not in NOTHING


def columns_read(columns: Columns) -> list[str]:
    """The columns of a row that are its cells, those that it may lack included; no key."""
    if columns.media == IMAGE:
        return [columns.image]
    return [*([columns.image] if columns.media == BOTH else []), columns.video, START, END]


def named_media(cells: Cells, media: str, path: str, name: str, where: str) -> Iterator[NamedImage]:
    """Every image and video of one row, or what is wrong with them; arguments as of `named_images`."""
    if media == IMAGE or (cells.video in NOTHING and cells.image not in NOTHING):
        for one in named_images(cells.image, path, name, where):
            yield replace(one, video=VideoFacts()) if one.path and is_video(one.path, media) else one
        return
    if cells.image not in NOTHING:
        yield from named_media(cells._replace(video=None), media, path, name, where)
        name = f"{name}/video"
    try:
        span = VideoFacts(start=_seconds(cells.start, START), end=_seconds(cells.end, END))
    except ValueError as error:
        yield NamedImage(key=name, offset=0, problem=f"{where}: {error}", video=VideoFacts())
        return
    for one in named_images(cells.video, path, name, where):
        yield replace(one, video=span)


def _seconds(value: Any, name: str) -> float | None:
    """Raises ValueError: it is no time."""
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"its {name} is {str(value)[:100]!r}, not seconds")
    return seconds


def media_rule_of(rows: Iterable[Cells]) -> MediaRule:
    """Decides what is looked for, by what rows have in the columns of images and of videos.

    A column is not one of videos because it is called so: its first value must be bytes, or a path that is a video's.
    """
    undecided = True
    for number, cells in enumerate(rows):
        if undecided and (named := first_named(cells.video)):
            undecided = False
            if not isinstance(named, str) or named.startswith("data:") or is_video(named, VIDEO):
                return MediaRule(media=BOTH)
        if isinstance(named := first_named(cells.image), str) and is_video(named, BOTH):
            return MediaRule(media=BOTH)
        if number == ROWS_LOOKED_AT:
            break
    return MediaRule()
