"""Video facts: a clip's header as its index keeps it, and the plan that index and configuration make for it.

Nothing here opens a file or loads its decoder: cutting and `plan` know every token from the index.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import rejects
from ..grid import Geometry, Int64
from ..rejects import Reject
from ..source.sample import IndexedSample, VideoFacts
from ..storage.large import Encoded
from .video_frames import CONTAINER, FramesHeader, plan_of_frames, rate_of, read_frames_header
from .video_sampling import ClipPlan, plan_clip
from .video_times import span_of, times_of

if TYPE_CHECKING:  # av is loaded where a video is read
    from .header_reader import HeaderReader
    from .video_header import VideoHeader

RECENT = 64  # files whose headers are kept: several questions about one clip follow one another


def pack(values: Int64) -> bytes:
    """Ascending numbers, such as times in even steps, in a few bytes."""
    return zlib.compress(np.diff(values, prepend=np.int64(0)).astype("<i8").tobytes(), 1)


def unpack(packed: bytes | None) -> Int64:
    """The inverse of `pack`; nothing of None."""
    if packed is None:
        return np.empty(0, np.int64)
    return np.cumsum(np.frombuffer(zlib.decompress(packed), "<i8"), dtype=np.int64)


class RecentVideos:
    """Completes clips by their headers; a file that several clips in a row are of is demuxed once."""

    def __init__(self, reader: HeaderReader) -> None:
        self._reader = reader
        self._recent: OrderedDict[str, VideoHeader | FramesHeader | Reject] = OrderedDict()

    def completed(self, sample: IndexedSample, data: Encoded) -> IndexedSample:
        """A clip, whose sha256 is known, with the facts about its bytes; what is wrong with them is its status."""
        assert sample.sha256 is not None and sample.video is not None
        header = self._recent.get(sample.sha256)
        if header is None:
            try:
                header = read_clip_header(sample, data, self._reader)
            except Reject as reject:
                header = reject
            self._recent[sample.sha256] = header
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        if isinstance(header, Reject):
            return sample.rejected(header.reason, header.message)
        return completed(sample, header)


def read_clip_header(sample: IndexedSample, data: Encoded, reader: HeaderReader) -> VideoHeader | FramesHeader:
    """Reads the header of a clip, which is a file or frame images. Raises Reject."""
    if not sample.of_frames:
        return reader.video_header(sample.key, data)
    assert isinstance(data, bytes)
    return read_frames_header(sample.key, data, reader)


def completed(sample: IndexedSample, header: VideoHeader | FramesHeader) -> IndexedSample:
    """A clip, of which the span or the rate that is asked for is known, with what its bytes say."""
    assert sample.video is not None
    if isinstance(header, FramesHeader):
        facts = _facts_of_frames(sample.video, header)
        return replace(sample, format=CONTAINER, width=header.width, height=header.height, video=facts)
    facts = replace(
        sample.video,
        codec=header.codec,
        turns=header.turns,
        frames=header.frames,
        fps=header.fps,
        duration=header.duration,
        time_base_numerator=header.time_base[0],
        time_base_denominator=header.time_base[1],
        zero=header.zero,
        pts=pack(header.pts_N),
        entries=pack(header.entries_K),
    )
    return replace(sample, format=header.container, width=header.width, height=header.height, video=facts)


def _facts_of_frames(video: VideoFacts, header: FramesHeader) -> VideoFacts:
    """The facts of a row and of the bytes together."""
    fps = rate_of(video)
    seconds = None if fps is None else header.frames / fps
    if video.times and fps is not None:
        seconds = video.times[-1] - video.times[0] + 1 / fps
    return replace(
        video, codec=header.codec, frames=header.frames, fps=fps, duration=seconds, sizes=header.sizes or None
    )


def header_of(sample: IndexedSample) -> VideoHeader:
    """The header that an accepted clip's index has."""
    from .video_header import VideoHeader

    video = sample.video
    assert video is not None and sample.width is not None and sample.height is not None
    assert video.frames is not None and video.fps is not None and video.duration is not None
    return VideoHeader(
        container=str(sample.format),
        codec=str(video.codec),
        width=sample.width,
        height=sample.height,
        turns=video.turns or 0,
        frames=video.frames,
        pts_N=unpack(video.pts),
        entries_K=unpack(video.entries),
        time_base=_time_base(video),
        zero=video.zero or 0,
        fps=video.fps,
        duration=video.duration,
    )


def seconds_of(start: float | None, end: float | None, fps: float | None, duration: float | None) -> float:
    """Seconds of film that a clip asks for: its span's, as far as the file goes; at least those of one frame.

    Args:
        start, end: of the span; None: from the beginning, to the end.
        fps, duration: of the file; None where they are not known, which counts as nothing.
    """
    if not fps or duration is None:
        return 0.0
    until = duration if end is None else min(end, duration)
    return max(until - max(start or 0.0, 0.0), 1 / fps)


def times_of_clip(video: VideoFacts) -> npt.NDArray[np.float64]:
    """Seconds at which each frame of an accepted clip's file is shown."""
    assert video.frames is not None and video.fps is not None
    return times_of(unpack(video.pts), video.frames, video.fps, video.zero or 0, _time_base(video))


def _time_base(video: VideoFacts) -> tuple[int, int]:
    return video.time_base_numerator or 1, video.time_base_denominator or 1


def plan_of(video: VideoFacts, width: int, height: int, geometry: Geometry) -> ClipPlan:
    """The frames, size and grid of an accepted clip.

    Args:
        width, height: as displayed, in pixels.

    Raises:
        Reject: `too_many_pixels` in a frame, `aspect_ratio`, `missing_image` (its span is not in the file), `corrupt`
            (frame images of several sizes).
    """
    assert geometry.video is not None
    if video.is_frames:
        return plan_of_frames(video, width, height, geometry.video, geometry.max_image_pixels)
    assert video.frames is not None and video.fps is not None
    if width * height > geometry.max_image_pixels:
        limit = geometry.max_image_pixels
        raise Reject(rejects.TOO_MANY_PIXELS, f"frames of {width}x{height} are over limits.max_image_pixels {limit}")
    first, count = 0, video.frames
    if video.start is not None or video.end is not None:
        try:
            times = times_of_clip(video)
            first, count = span_of(times, video.fps, video.start, video.end, geometry.video.rule)
        except ValueError as error:
            raise Reject(rejects.MISSING_IMAGE, str(error)) from error
    try:
        return plan_clip(count, video.fps, height, width, geometry.video, first)
    except ValueError as error:
        raise Reject(rejects.ASPECT_RATIO, str(error)) from error
