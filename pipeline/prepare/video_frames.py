"""Frame images as one video: every one is taken, none is sampled.

Source: transformers 5.23, `video_processing_utils.py`, `_decode_and_sample_videos`; qwen-vl-utils 0.0.14,
`vision_process.py`, `fetch_video` of a list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..index.video_rules import UTILS_MAX_TOKENS, UTILS_MIN_TOKENS
from ..index.video_sampling import ClipPlan, clip_size, grid_frames, size_utils
from ..sampling import TEMPORAL, VideoSampling
from .decode import Uint8
from .video import write_frame

FETCH_MIN_TOKENS, FETCH_MAX_TOKENS = 4, 16_384


def plan_frames(count: int, width: int, height: int, sampling: VideoSampling) -> ClipPlan:
    """Plans a video of `count` frame images; the first one's size, in pixels, decides that of all.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    counted = count
    if sampling.rule == "utils":
        height, width = _fetched_size(height, width, sampling)
        counted = math.ceil(count / TEMPORAL) * TEMPORAL
    resized_height, resized_width, clamped = clip_size(counted, height, width, sampling)
    patch = sampling.patch_size
    return ClipPlan(
        frames=np.arange(count, dtype=np.int64),
        height=resized_height,
        width=resized_width,
        grid=(grid_frames(count), resized_height // patch, resized_width // patch),
        clamped=clamped,
    )


def prepare_frame(position: int, pixels: Uint8, plan: ClipPlan, sampling: VideoSampling, rows_PC: Uint8) -> None:
    """Writes the patches of one frame image, RGB uint8 [H, W, 3], into those of its video, uint8 [P, C]."""
    if sampling.rule == "utils":
        height, width = _fetched_size(pixels.shape[0], pixels.shape[1], sampling)
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
    write_frame(pixels, plan, sampling, rows_PC, _positions(position, len(plan.frames)))


def _positions(position: int, count: int) -> Sequence[int]:
    return (position, position + 1) if position == count - 1 and count % TEMPORAL else (position,)


def _fetched_size(height: int, width: int, sampling: VideoSampling) -> tuple[int, int]:
    """The size that qwen-vl-utils gives a frame image first: its sides are multiples of two factors.

    It takes a budget that is set for the video for this too; one that is its own default counts as not set.
    """
    area, factor = sampling.factor**2, 2 * sampling.factor
    low, high = FETCH_MIN_TOKENS * factor**2, FETCH_MAX_TOKENS * factor**2
    if sampling.min_pixels != UTILS_MIN_TOKENS * area:
        low = sampling.min_pixels
    if sampling.max_pixels != UTILS_MAX_TOKENS * area:
        high = max(low, sampling.max_pixels)
    return size_utils(height, width, factor, low, high)[:2]
