"""Media: which files, members and paths are images, and which are videos, by their names."""

from __future__ import annotations

from .image_formats import EXTENSIONS
from .sample import VideoFacts

VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
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


def video_named(name: str, media: str) -> VideoFacts | None:
    """The facts of a clip of which nothing but its name is known; None of an image."""
    return VideoFacts() if is_video(name, media) else None
