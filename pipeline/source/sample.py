"""Sample: one image or clip of the source, with the facts about its bytes that its part's index keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .. import rejects

LONGEST_ERROR = 1000  # characters


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """A clip's facts beside those that an image has, too. Those of its bytes are None until they were read.

    Attributes:
        start, end: of the span that is asked for, in seconds; None: from the beginning, to the end.
        codec, turns, frames, fps, duration, zero: as `index.video_header.VideoHeader` has them.
        time_base_numerator, time_base_denominator: of a second: the unit of `pts`.
        pts, entries: when frames are shown, and from which decoding may begin, as `index.video_facts` packs them.
        is_frames: whether it is a list of frame images. `fps` is then what its row says, or what `times` come to.
        times: of frame images, the seconds at which they are shown, where their row says so.
        sizes: of frame images, `[frame, width, height]` of the first one of each size that is not frame 0's.
    """

    start: float | None = None
    end: float | None = None
    codec: str | None = None
    turns: int | None = None
    frames: int | None = None
    fps: float | None = None
    duration: float | None = None
    time_base_numerator: int | None = None
    time_base_denominator: int | None = None
    zero: int | None = None
    pts: bytes | None = None
    entries: bytes | None = None
    is_frames: bool | None = None
    times: list[float] | None = None
    sizes: list[list[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class IndexedSample:
    """One image's facts, or one clip's.

    `offset` and `length` place its bytes in `source`; `member` is its full name in a tar.

    Attributes:
        offset: of a Parquet file the row, of a manifest the line's first byte.
        path: the image's own file, where a row or line names one.
        item: its number in the row's list of images.
        group: the row group, -1 elsewhere.
        members: the other members of a tar's sample, for carrying.
        format: of an image, or the container of a clip.
        video: of a clip; None of an image.
    """

    key: str
    source: str
    member: str | None = None
    offset: int = 0
    length: int = 0
    sha256: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    path: str | None = None
    item: int | None = None
    group: int = -1
    members: list[dict[str, Any]] | None = None
    status: str = rejects.OK
    error: str | None = None
    video: VideoFacts | None = None

    @property
    def media(self) -> str:
        """`image` or `video`."""
        return "image" if self.video is None else "video"

    @property
    def of_frames(self) -> bool:
        """Whether it is a video that is a list of frame images."""
        return self.video is not None and bool(self.video.is_frames)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> IndexedSample:
        """The inverse of `asdict`; columns that an index of an earlier version does not have are as of an image."""
        video = row.get("video")
        return cls(**row | {"video": None if video is None else VideoFacts(**video)})

    def rejected(self, reason: str, message: str) -> IndexedSample:
        """The same sample with a status out of `rejects.STATUSES`, and what is wrong with it in words."""
        return replace(self, status=reason, error=message[:LONGEST_ERROR])
