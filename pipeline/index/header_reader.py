"""Header readers: the headers of images and videos, read in this process or by who reads what may crash it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .headers import Header, read_header

if TYPE_CHECKING:  # av is loaded where a video is read
    from .video_file import VideoSource
    from .video_header import VideoHeader


class HeaderReader(Protocol):
    """Reads headers here, or where bytes that crash their decoder do no harm (`prepare.guard`)."""

    def header(self, key: str, data: bytes) -> Header: ...

    def video_header(self, key: str, source: VideoSource) -> VideoHeader: ...


class PlainReader:
    """Reads headers in this process, with no limit of time."""

    def header(self, key: str, data: bytes) -> Header:
        return read_header(data)

    def video_header(self, key: str, source: VideoSource) -> VideoHeader:
        from .video_header import read_video_header

        return read_video_header(source)
