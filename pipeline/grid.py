"""Grids, and all that they decide: the resized size, the window order, segment lengths and rotary positions.

T frames (after temporal pairing), P patches, M merged tokens (P / merge_size²).
All of it is integer arithmetic on the CPU, computed once per distinct grid and cached.

Source: transformers 5.23, `models/qwen2_vl/image_processing_qwen2_vl.py` (`smart_resize`) and `vision_utils.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .sampling import VideoSampling

MAX_ASPECT_RATIO = 200
Int64 = npt.NDArray[np.int64]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int, str]:
    """The size that an image is resized to, and which branch decided it.

    Args:
        height, width: as displayed, in pixels, both at least 1.
        factor: patch_size × merge_size; both sides of the result are multiples of it.

    Returns:
        `(height, width, clamped)` with `clamped` one of `none`, `min`, `max`.

    Raises:
        ValueError: the aspect ratio is over 200.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"aspect ratio of {width}x{height} is over {MAX_ASPECT_RATIO}")
    rounded_height = round(height / factor) * factor
    rounded_width = round(width / factor) * factor
    if rounded_height * rounded_width > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        return (
            max(factor, math.floor(height / beta / factor) * factor),
            max(factor, math.floor(width / beta / factor) * factor),
            "max",
        )
    if rounded_height * rounded_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        return (
            math.ceil(height * beta / factor) * factor,
            math.ceil(width * beta / factor) * factor,
            "min",
        )
    return rounded_height, rounded_width, "none"


def smart_resize_many(
    height_N: Int64, width_N: Int64, factor: int, min_pixels: int, max_pixels: int
) -> tuple[Int64, Int64]:
    """`smart_resize` over arrays, by the same float64 operations. Sides of 0 and ratios over 200 give 0×0."""
    usable = (height_N > 0) & (width_N > 0)
    height = np.where(usable, height_N, 1).astype(np.float64)
    width = np.where(usable, width_N, 1).astype(np.float64)
    usable &= np.maximum(height, width) / np.minimum(height, width) <= MAX_ASPECT_RATIO
    sides = np.rint(np.stack([height, width]) / factor) * factor
    area = sides[0] * sides[1]
    over, under = np.flatnonzero(area > max_pixels), np.flatnonzero(area < min_pixels)
    for side, value in zip(sides, (height, width), strict=True):
        beta = np.sqrt(height[over] * width[over] / max_pixels)
        side[over] = np.maximum(factor, np.floor(value[over] / beta / factor) * factor)
        beta = np.sqrt(min_pixels / (height[under] * width[under]))
        side[under] = np.ceil(value[under] * beta / factor) * factor
    resized = np.where(usable, sides, 0).astype(np.int64)
    return resized[0], resized[1]


@dataclass(frozen=True, kw_only=True)
class GridLayout:
    """How one grid's tokens are ordered and segmented. Order within the arrays is the image's own.

    Attributes:
        window_order_M: merged token indices, window after window.
        window_lengths: patches of each window, in that order.
        frame_length: patches of one frame; attention never crosses frames.
        positions_P2: row and column of each patch of one frame, in patch order (four of a merged token together).
    """

    frames: int
    window_order_M: Int64
    window_lengths: Int64
    frame_length: int
    positions_P2: Int64


@lru_cache(maxsize=4096)
def grid_layout(grid: tuple[int, int, int], merge_size: int, window_merged: int) -> GridLayout:
    """Lays out one `(t, h, w)` grid (in patches) with windows of `window_merged`² merged tokens."""
    frames, height, width = grid
    rows, columns = height // merge_size, width // merge_size
    row, column = (index.ravel() for index in np.indices((rows, columns)))
    order = np.lexsort((column, row, column // window_merged, row // window_merged))
    heights = np.minimum(window_merged, rows - np.arange(0, rows, window_merged))
    widths = np.minimum(window_merged, columns - np.arange(0, columns, window_merged))
    lengths = np.outer(heights, widths).ravel() * merge_size**2
    offsets = np.arange(frames)[:, None] * (rows * columns)

    inner_row, inner_column = (index.ravel() for index in np.indices((merge_size, merge_size)))
    positions = np.stack(
        [
            (row[:, None] * merge_size + inner_row).ravel(),
            (column[:, None] * merge_size + inner_column).ravel(),
        ],
        axis=1,
    )
    return GridLayout(
        frames=frames,
        window_order_M=(order[None, :] + offsets).ravel().astype(np.int64),
        window_lengths=np.tile(lengths, frames).astype(np.int64),
        frame_length=height * width,
        positions_P2=positions.astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes that decide a grid: the checkpoint's, and the configuration's budgets. Pixels and patches.

    Attributes:
        video: how clips are sampled and sized; None of an output that has none.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    max_image_pixels: int
    video: VideoSampling | None = None

    @property
    def factor(self) -> int:
        return self.patch_size * self.merge_size


def offsets(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Where each of several runs begins, and where the last one ends: int64 [N + 1], of N lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
