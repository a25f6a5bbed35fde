"""Named media: the images and videos that one row names or holds, and the span of a video that it asks for.

A row may have both. Its image keeps the row's key; the video's has `/video` behind it then.

A list in the column of videos is one video, of the frame images that it lists, if the first of its values that says
what it is is an image: by its first bytes, or by its name. Else it is several videos. A list in a list is always one of
frames. Beside frame images stand the rate at which they were taken (`fps`) or their `times`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .format import Columns, MediaRule
from .media import BOTH, IMAGE, VIDEO, begins_like_a_still, is_still, is_video
from .named_image import NamedImage, first_named, inline_bytes, listed, named_frames, named_images
from .sample import VideoFacts

START, END = "start", "end"  # columns beside a video's, in seconds
FPS, TIMES = "fps", "times"  # columns beside frame images: a rate, or a list of seconds
BESIDE = (START, END, FPS, TIMES)
ROWS_LOOKED_AT = 100_000
NOTHING: tuple[Any, ...] = (None, "", [])


class Cells(NamedTuple):
    """The cells of one row that name or hold what is looked for; None where it has no such column."""

    image: Any
    video: Any = None
    start: Any = None
    end: Any = None
    fps: Any = None
    times: Any = None

    @property
    def name_something(self) -> bool:
        """Whether an image or a video is named or held."""
        return self.image not in NOTHING or self.video not in NOTHING


def columns_read(columns: Columns) -> list[str]:
    """The columns of a row that are its cells, those that it may lack included; no key."""
    if columns.media == IMAGE:
        return [columns.image]
    return [*([columns.image] if columns.media == BOTH else []), columns.video, *BESIDE]


def named_media(cells: Cells, media: str, path: str, name: str, where: str) -> Iterator[NamedImage]:
    """Every image and video of one row, or what is wrong with them; arguments as of `named_images`."""
    if media == IMAGE or (cells.video in NOTHING and cells.image not in NOTHING):
        for one in named_images(cells.image, path, name, where):
            yield replace(one, video=VideoFacts()) if one.path and is_video(one.path, media) else one
        return
    if cells.image not in NOTHING:
        yield from named_media(cells._replace(video=None), media, path, name, where)
        name = f"{name}/video"
    yield from _videos(cells._replace(video=listed(cells.video)), path, name, where)


def _videos(cells: Cells, path: str, name: str, where: str) -> Iterator[NamedImage]:
    """Every video of one row: of a file, of bytes, or of frame images."""
    video = cells.video
    if are_frames(video):
        yield _of_frames(cells, video, path, name, where)
        return
    found: Iterable[NamedImage] = named_images(video, path, name, where)
    if isinstance(video, list) and video:
        found = (
            _of_frames(cells, value, path, f"{name}/{number}", f"{where}, video {number}", number)
            if isinstance(value, list)
            else one
            for number, (value, one) in enumerate(zip(video, found, strict=True))
        )
    span: VideoFacts | ValueError
    try:
        span = VideoFacts(start=_number(cells.start, START), end=_number(cells.end, END))
    except ValueError as error:
        span = error
    for one in found:
        if one.video is not None:  # of frames
            yield one
        elif isinstance(span, VideoFacts):
            yield replace(one, video=span)
        else:
            problem = one.problem or f"{where}: {span}"
            yield replace(one, data=None, path=None, problem=problem, video=VideoFacts())


def are_frames(value: Any) -> bool:
    """Whether a cell is a list of frame images, and so one video."""
    looks = map(_is_still, value) if isinstance(value, list) else iter(())
    return next((is_still_ for is_still_ in looks if is_still_ is not None), False)


def _is_still(value: Any) -> bool | None:
    """Whether one value of a list is an image or a video; None where it does not say, or is a list."""
    try:
        data = inline_bytes(value)
    except ValueError:
        return None
    if data is not None and begins_like_a_still(data):
        return True
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str) or name.startswith("data:"):
        return None
    return True if is_still(name) else False if is_video(name, VIDEO) else None


def _of_frames(
    cells: Cells, value: Sequence[Any], path: str, name: str, where: str, number: int | None = None
) -> NamedImage:
    """The video that a list of frame images is. `number`: of several in its row, which one."""
    clip = replace(named_frames(value, path, name, where), item=number)
    if clip.problem:
        return clip
    try:
        return replace(clip, video=_timing(cells, len(clip.frames), number))
    except ValueError as error:
        return replace(clip, frames=(), problem=f"{where}: {error}")


def _timing(cells: Cells, count: int, number: int | None) -> VideoFacts:
    """The rate or the times that stand beside `count` frame images. Raises ValueError."""
    if cells.start not in NOTHING or cells.end not in NOTHING:
        raise ValueError("its start and end are those of a file; a list of frames has none: list the frames to take")
    times = _of_video(listed(cells.times), TIMES, number, lists=True)
    if times not in NOTHING:
        if not isinstance(times, list) or len(times) != count:
            found = f"{len(times)} of them" if isinstance(times, list) else type(times).__name__
            raise ValueError(f"its {TIMES} must be a list of seconds, one for each of its {count} frames, not {found}")
        seconds = [_number(value, TIMES) for value in times]
        known = [value for value in seconds if value is not None]
        if len(known) != count or known != sorted(known) or known[0] < 0:
            raise ValueError(f"its {TIMES} must be seconds from 0 on, in order, not {shown_value(times)}")
        return VideoFacts(is_frames=True, times=known)
    fps = _number(_of_video(listed(cells.fps), FPS, number, lists=False), FPS, "frames a second")
    if fps is not None and fps <= 0:
        raise ValueError(f"its {FPS} is {fps:g}, not frames a second")
    return VideoFacts(is_frames=True, fps=fps)


def _of_video(value: Any, name: str, number: int | None, *, lists: bool) -> Any:
    """The value for one of a row's several videos, where each has its own. `lists`: of values that are lists."""
    own = isinstance(value, list) and (not lists or any(isinstance(one, list) for one in value))
    if number is None or not own:
        return value
    if number >= len(value):
        raise ValueError(f"its {name} has {len(value)} values, and none for video {number}")
    return value[number]


def _number(value: Any, name: str, unit: str = "seconds") -> float | None:
    """A finite number; None where there is none. Raises ValueError: it is something else."""
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"its {name} is {shown_value(value)}, not {unit}")
    return number


def shown_value(value: Any) -> str:
    """A value as messages have it: the same in every process."""
    known = isinstance(value, str | int | float | list) or value is None
    return repr(str(value)[:100]) if known else f"a {type(value).__name__}"


def media_rule_of(rows: Iterable[Cells]) -> MediaRule:
    """Decides what is looked for, by what rows have in the columns of images and of videos.

    A column is not one of videos because it is called so: its first value must be bytes, a path that is a video's, or a
    list of frame images.
    """
    undecided = True
    for number, cells in enumerate(rows):
        video = listed(cells.video)
        if undecided and (named := first_named(video)):
            undecided = False
            is_one = not isinstance(named, str) or named.startswith("data:") or is_video(named, VIDEO)
            if is_one or _lists_frames(video):
                return MediaRule(media=BOTH)
        if isinstance(named := first_named(cells.image), str) and is_video(named, BOTH):
            return MediaRule(media=BOTH)
        if number == ROWS_LOOKED_AT:
            break
    return MediaRule()


def _lists_frames(value: Any) -> bool:
    return are_frames(value) or (isinstance(value, list) and any(map(are_frames, value)))
