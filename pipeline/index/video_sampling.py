"""Video sampling: which frames of a clip are taken, and the size that they are resized to. Nothing is decoded here.

It is a pure function of a clip's facts and of `preprocess.video`: a clip's tokens are known from the index alone.
Each sampler has a rule of its own. Where its reference fails, the function says what holds instead.

Source: transformers 5.23, `models/qwen2_vl/video_processing_qwen2_vl.py` and the same of Qwen3; qwen-vl-utils 0.0.14,
`vision_process.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..grid import MAX_ASPECT_RATIO, Int64, smart_resize
from ..sampling import TEMPORAL, VideoSampling
from .video_rules import UTILS_MAX_TOKENS


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A clip's frames and size, known before it is decoded.

    Attributes:
        frames: indices into the clip's frames, ascending; an odd number of them has the last one doubled.
        grid: `(t, h, w)` in patches.
        clamped: `none`, `min` or `max`: which budget decided the size.
    """

    frames: Int64
    height: int
    width: int
    grid: tuple[int, int, int]
    clamped: str

    @property
    def patches(self) -> int:
        return math.prod(self.grid)


def plan_clip(total: int, fps: float, height: int, width: int, sampling: VideoSampling, first: int = 0) -> ClipPlan:
    """Plans a clip: its frames, their size and its grid.

    Args:
        total: frames of the clip, or of the span of it that is asked for; at least 1.
        fps: average rate of the file.
        height, width: as displayed, in pixels.
        first: where the span begins, in frames of the file.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    count = frame_count(total, fps, sampling)
    frames = frame_indices(total, count, sampling) + first
    resized_height, resized_width, clamped = clip_size(len(frames), height, width, sampling)
    patch = sampling.patch_size
    grid = (grid_frames(len(frames)), resized_height // patch, resized_width // patch)
    return ClipPlan(frames=frames, height=resized_height, width=resized_width, grid=grid, clamped=clamped)


def grid_frames(count: int) -> int:
    """Temporal patches of so many frames: an odd one is doubled."""
    return -(-count // TEMPORAL)


def frame_count(total: int, fps: float, sampling: VideoSampling) -> int:
    """How many frames the sampler asks for. Where its reference would fail: all that there are, but at least one."""
    if sampling.rule == "qwen3":
        return _count_qwen3(total, fps, sampling)
    if sampling.num_frames is not None:
        wanted: float = round(sampling.num_frames / TEMPORAL) * TEMPORAL
    elif sampling.fps is None:
        return total
    else:
        assert sampling.min_frames is not None and sampling.max_frames is not None
        least = sampling.min_frames
        if sampling.rule == "utils":
            least = math.ceil(least / TEMPORAL) * TEMPORAL
        most = math.floor(min(sampling.max_frames, total) / TEMPORAL) * TEMPORAL
        wanted = min(max(total / fps * sampling.fps, least), most)
    return max(1, math.floor(min(wanted, total) / TEMPORAL) * TEMPORAL)


def _count_qwen3(total: int, fps: float, sampling: VideoSampling) -> int:
    if sampling.num_frames is not None:
        return sampling.num_frames
    assert sampling.fps is not None and sampling.min_frames is not None and sampling.max_frames is not None
    return min(max(int(total / fps * sampling.fps), sampling.min_frames), sampling.max_frames, total)


def frame_indices(total: int, count: int, sampling: VideoSampling) -> Int64:
    """Which frames they are, of `total`. The `qwen2` rule gives one more than `count` at times, like its reference."""
    if sampling.rule == "qwen2":
        every_frame = sampling.fps is None and sampling.num_frames is None
        return np.arange(total, dtype=np.int64) if every_frame else float_range(total, count)
    if sampling.rule == "qwen3":
        return np.linspace(0, total - 1, count).round().astype(np.int64)
    return float_linspace(total - 1, count)


def float_range(total: int, count: int) -> Int64:
    """`torch.arange(0, total, total / count).int()`, to the index.

    It counts in float32, sixteen values a turn in two runs of eight, each run from its own rounded start; the rest one
    by one. Over long clips this decides which frame is taken, so it is repeated here, not left to a library's build.
    """
    step = total / count
    size = math.ceil(total / step)
    whole = size // 16 * 16
    starts = (np.arange(0, whole, 8) * step).astype(np.float32).astype(np.float64)
    runs = (starts[:, None] + np.arange(8) * step).astype(np.float32).ravel()
    rest = (np.arange(whole, size) * step).astype(np.float32)
    return np.concatenate([runs, rest]).astype(np.int64)


def float_linspace(last: int, count: int) -> Int64:
    """`torch.linspace(0, last, count).round()` on a CPU with fused multiply-add (AVX2, NEON), to the index.

    It counts in float32, from both ends. Without that instruction another frame is taken in one of twenty long clips,
    so one of the two had to be chosen.
    """
    if count == 1:
        return np.zeros(1, np.int64)
    step = np.float64(np.float32(np.float32(last) / np.float32(count - 1)))
    index = np.arange(count, dtype=np.float64)
    from_start = (step * index).astype(np.float32)
    from_end = (np.float64(np.float32(last)) - step * (count - 1 - index)).astype(np.float32)
    return np.where(index < count // 2, from_start, from_end).round().astype(np.int64)


def clip_size(count: int, height: int, width: int, sampling: VideoSampling) -> tuple[int, int, str]:
    """`(height, width, clamped)` that the frames are resized to; a single frame counts as the pair that it becomes.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    count = max(count, TEMPORAL)
    low, high = sampling.min_pixels, sampling.max_pixels
    if sampling.rule == "qwen2":
        return smart_resize(height, width, sampling.factor, low, high)
    if sampling.rule == "qwen3":
        return _size_qwen3(count, height, width, sampling)
    assert sampling.total_pixels is not None
    ceiling = min(UTILS_MAX_TOKENS * sampling.factor**2, sampling.total_pixels / count * TEMPORAL)
    return size_utils(height, width, sampling.factor, low, min(high, max(ceiling, int(low * 1.05))))


def _size_qwen3(count: int, height: int, width: int, sampling: VideoSampling) -> tuple[int, int, str]:
    factor = sampling.factor
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    rounded = round(height / factor) * factor, round(width / factor) * factor
    volume = round(count / TEMPORAL) * TEMPORAL * rounded[0] * rounded[1]
    if volume > sampling.max_pixels:
        beta = math.sqrt(count * height * width / sampling.max_pixels)
        sides = [max(factor, math.floor(side / beta / factor) * factor) for side in (height, width)]
        return sides[0], sides[1], "max"
    if volume < sampling.min_pixels:
        beta = math.sqrt(sampling.min_pixels / (count * height * width))
        sides = [math.ceil(side * beta / factor) * factor for side in (height, width)]
        return sides[0], sides[1], "min"
    return (*rounded, "none")


def size_utils(height: int, width: int, factor: int, low: int, high: float) -> tuple[int, int, str]:
    """The size by qwen-vl-utils' rule; a side that it rounds down to nothing keeps one `factor`.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    _check_ratio(height, width)
    rounded = [max(factor, round(side / factor) * factor) for side in (height, width)]
    area = rounded[0] * rounded[1]
    clamped = "none"
    if area > high:
        beta = math.sqrt((height * width) / high)
        rounded = [max(factor, math.floor(side / beta / factor) * factor) for side in (height, width)]
        clamped = "max"
    elif area < low:
        beta = math.sqrt(low / (height * width))
        rounded = [math.ceil(side * beta / factor) * factor for side in (height, width)]
        clamped = "min"
    return rounded[0], rounded[1], clamped


def _check_ratio(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"aspect ratio of {width}x{height} is over {MAX_ASPECT_RATIO}")
