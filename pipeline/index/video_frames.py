"""Frame images as one video: what their headers say, and the plan and the times that come of it.

Every frame is taken, none is sampled; the first one decides the size. N frames.

Source: transformers 5.23, `video_processing_utils.py`, `_decode_and_sample_videos`; qwen-vl-utils 0.0.14,
`vision_process.py`, `fetch_video` of a list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import rejects
from ..rejects import Reject
from ..sampling import TEMPORAL, VideoSampling
from ..source.frame_bytes import split_frames
from ..source.sample import VideoFacts
from .video_rules import UTILS_MAX_TOKENS, UTILS_MIN_TOKENS
from .video_sampling import ClipPlan, clip_size, grid_frames, size_utils
from .video_times import timestamps

if TYPE_CHECKING:
    from .header_reader import HeaderReader

CONTAINER = "frames"  # the format of such a clip
FETCH_MIN_TOKENS, FETCH_MAX_TOKENS = 4, 16_384
# Frames a second that the references take where nobody says it: `VideoMetadata.sampled_fps`, `sample_fps`.
UNTOLD_FPS = {"qwen2": 24.0, "qwen3": 24.0, "utils": 2.0}


@dataclass(frozen=True, kw_only=True)
class FramesHeader:
    """Facts about the bytes of frame images.

    Attributes:
        codec: the formats of the images.
        width, height: of the first one, as displayed.
        frames: how many there are.
        sizes: `[frame, width, height]` of the first one of every other size.
    """

    codec: str
    width: int
    height: int
    frames: int
    sizes: list[list[int]]


def read_frames_header(key: str, data: bytes, reader: HeaderReader) -> FramesHeader:
    """Reads the header of every frame image. Raises Reject, naming the frame, as `read_header` does.

    Args:
        data: of all of them, as `source.frame_bytes` joins them.
    """
    sizes: dict[tuple[int, int], int] = {}
    formats: set[str] = set()
    count = 0
    for number, frame in enumerate(split_frames(data)):
        try:
            header = reader.header(key, frame)
        except Reject as reject:
            raise of_frame(number, reject) from reject
        sizes.setdefault((header.width, header.height), number)
        formats.add(header.format)
        count = number + 1
    (width, height), *others = sizes
    return FramesHeader(
        codec="+".join(sorted(formats)),
        width=width,
        height=height,
        frames=count,
        sizes=[[sizes[size], *size] for size in others],
    )


def of_frame(number: int, reject: Reject) -> Reject:
    """Makes the reject of one frame image that of its clip."""
    return Reject(reject.reason, f"frame {number}: {reject.message}")


def rate_of(video: VideoFacts) -> float | None:
    """Frames a second: what stands beside the frame images, or what their times come to; None where nothing says it."""
    if not video.times:
        return video.fps
    seconds = video.times[-1] - video.times[0]
    return (len(video.times) - 1) / seconds if seconds > 0 else None


def frame_size(height: int, width: int, sampling: VideoSampling) -> tuple[int, int]:
    """Height and width that a frame image has before it gets its clip's size: all of a clip must have the same.

    Those of qwen-vl-utils are multiples of two factors. It takes a budget that is set for the video for this too; one
    that is its own default counts as not set.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    if sampling.rule != "utils":
        return height, width
    area, factor = sampling.factor**2, 2 * sampling.factor
    low, high = FETCH_MIN_TOKENS * factor**2, FETCH_MAX_TOKENS * factor**2
    if sampling.min_pixels != UTILS_MIN_TOKENS * area:
        low = sampling.min_pixels
    if sampling.max_pixels != UTILS_MAX_TOKENS * area:
        high = max(low, sampling.max_pixels)
    return size_utils(height, width, factor, low, high)[:2]


def plan_frames(count: int, width: int, height: int, sampling: VideoSampling) -> ClipPlan:
    """Plans a video of `count` frame images; the first one's size, in pixels, decides that of all.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    height, width = frame_size(height, width, sampling)
    counted = math.ceil(count / TEMPORAL) * TEMPORAL if sampling.rule == "utils" else count
    resized_height, resized_width, clamped = clip_size(counted, height, width, sampling)
    patch = sampling.patch_size
    return ClipPlan(
        frames=np.arange(count, dtype=np.int64),
        height=resized_height,
        width=resized_width,
        grid=(grid_frames(count), resized_height // patch, resized_width // patch),
        clamped=clamped,
    )


def plan_of_frames(
    video: VideoFacts, width: int, height: int, sampling: VideoSampling, max_image_pixels: int
) -> ClipPlan:
    """Plans an indexed video of frame images.

    Raises:
        Reject: `too_many_pixels` in a frame, `aspect_ratio`, `corrupt` (frames of several sizes, which the references
            refuse).
    """
    assert video.frames is not None
    for frame, *size in [[0, width, height], *(video.sizes or [])]:
        if size[0] * size[1] > max_image_pixels:
            message = f"frame {frame} of {size[0]}x{size[1]} is over limits.max_image_pixels {max_image_pixels}"
            raise Reject(rejects.TOO_MANY_PIXELS, message)
    try:
        plan = plan_frames(video.frames, width, height, sampling)
        first = frame_size(height, width, sampling)
        for frame, *size in video.sizes or []:
            if frame_size(size[1], size[0], sampling) != first:
                message = f"frame {frame} is {size[0]}x{size[1]}, the first one {width}x{height}"
                raise Reject(rejects.CORRUPT, message)
    except ValueError as error:
        raise Reject(rejects.ASPECT_RATIO, str(error)) from error
    return plan


@dataclass(frozen=True, kw_only=True)
class FramesTiming:
    """The times of frame images, in seconds.

    Attributes:
        times: when each is shown; None where nothing says it.
        timestamps: of each temporal patch, as the family's language model is told; `second_per_grid` likewise.
    """

    times: list[float] | None
    timestamps: list[float]
    second_per_grid: float


def timing_of_frames(video: VideoFacts, sampling: VideoSampling) -> FramesTiming:
    """The times of an accepted video of frame images; where nothing says them, the reference's default counts."""
    assert video.frames is not None
    count = video.frames
    untold = UNTOLD_FPS[sampling.rule]
    if video.times:
        ends = [*video.times, *video.times[-1:] * (-count % TEMPORAL)]
        told = [(first + second) / 2 for first, second in zip(ends[::2], ends[1::2], strict=True)]
    else:
        # qwen-vl-utils counts the frame that makes them even; the others repeat the last one's time.
        counted = count + (count % TEMPORAL if sampling.rule == "utils" else 0)
        told = timestamps(range(counted), video.fps or untold)
    per_grid = TEMPORAL / video.fps if video.fps else sampling.second_per_grid or TEMPORAL / untold
    shown = video.times or ([index / video.fps for index in range(count)] if video.fps else None)
    return FramesTiming(times=shown, timestamps=told, second_per_grid=per_grid)
