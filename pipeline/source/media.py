"""Media: which files, members and paths are images, and which are videos, by their names."""

from __future__ import annotations

from .image_formats import EXTENSIONS
from .sample import VideoFacts

VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
# How the files of frame images begin; and what stands in those that begin like others, from byte 4 or 8 on.
IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
IMAGE_KINDS = (b"WEBP", b"ftypavif", b"ftypavis")
# `source.media`, decided: one of them, or both.
IMAGE, VIDEO, BOTH = "image", "video", "auto"


def suffixes_of(media: str) -> tuple[str, ...]:
    """The suffixes of what is looked for, in lower case. A GIF is a video where nothing but videos is."""
    if media == VIDEO:
        return (*VIDEO_EXTENSIONS, ".gif")
    return (*EXTENSIONS, *VIDEO_EXTENSIONS) if media == BOTH else EXTENSIONS


def is_video(name: str, media: str) -> bool:
    """Whether what is called so is taken for a video."""
    if media == IMAGE:
        return False
    return name.lower().endswith(suffixes_of(VIDEO) if media == VIDEO else VIDEO_EXTENSIONS)


def is_still(name: str) -> bool:
    """Whether what is called so is an image that can be a frame. A GIF is a video where it stands among videos."""
    return name.lower().endswith(EXTENSIONS) and not is_video(name, VIDEO)


def begins_like_a_still(data: bytes) -> bool:
    """Whether encoded bytes are, by their first ones, an image that can be a frame."""
    return data.startswith(IMAGE_HEADS) or data[8:12] == IMAGE_KINDS[0] or data[4:12] in IMAGE_KINDS[1:]


def video_named(name: str, media: str) -> VideoFacts | None:
    """The facts of a clip of which nothing but its name is known; None of an image."""
    return VideoFacts() if is_video(name, media) else None
