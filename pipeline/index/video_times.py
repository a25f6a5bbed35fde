"""Video times: the frames of a span, and the times that a family's language model is told."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..grid import Int64
from ..sampling import TEMPORAL, Rule, VideoSampling


def times_of(pts_N: Int64, frames: int, fps: float, zero: int, time_base: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Seconds at which each frame is shown; by the average rate where `pts_N` is empty, as of a file without times."""
    if not len(pts_N):
        return np.arange(frames) / fps
    return (pts_N - zero) * time_base[0] / time_base[1]


def span_of(
    times: npt.NDArray[np.float64], fps: float, start: float | None, end: float | None, rule: Rule
) -> tuple[int, int]:
    """The frames of a span: its first one, and how many.

    `utils` counts by the average rate, as that package does; the others take the frames that are shown within the
    span, both ends included. A span without any holds the frame that is shown when it begins.

    Args:
        times: of all frames of the file, in seconds, ascending.
        start, end: in seconds; None: from the beginning, to the end.

    Raises:
        ValueError: the span begins behind the clip's end, or ends before it begins.
    """
    total = len(times)
    if start is None and end is None:
        return 0, total
    begin, until = max(0.0, start or 0.0), math.inf if end is None else end
    asked = f"the span begins at {begin:g} s" + ("" if end is None else f" and ends at {end:g} s")
    clip = f"the clip is {total / fps:.2f} s long ({total} frames)"
    if until < begin:
        raise ValueError(f"{asked}, before it begins; {clip}")
    if begin > 0 and begin >= max(total / fps, float(times[-1])):
        raise ValueError(f"{asked}, behind the clip's end; {clip}")
    if rule == "utils":
        longest = total / fps
        first = math.ceil(min(begin, longest) * fps) if start is not None else 0
        last = total - 1 if end is None else min(math.floor(max(0.0, min(until, longest)) * fps), total - 1)
    else:
        first = int(np.searchsorted(times, begin, "left"))
        last = int(np.searchsorted(times, until, "right")) - 1
    if first >= last and not 0 <= first == last < total:
        shown = int(np.searchsorted(times, begin, "right")) - 1
        first = last = max(0, min(shown, total - 1))
    return first, last - first + 1


def timestamps(frames: Sequence[int] | Int64, fps: float) -> list[float]:
    """Seconds of each temporal patch, by index and average rate: the mean of its two frames.

    Source: transformers 5.23, `models/qwen3_vl/processing_qwen3_vl.py`, `_calculate_timestamps`.
    """
    indices = [int(index) for index in frames]
    indices += indices[-1:] * (-len(indices) % TEMPORAL)
    seconds = [index / fps for index in indices]
    return [(seconds[i] + seconds[i + TEMPORAL - 1]) / 2 for i in range(0, len(seconds), TEMPORAL)]


def second_per_grid(count: int, total: int, fps: float, sampling: VideoSampling) -> float:
    """Seconds of a temporal patch, as the family's processor tells its language model.

    Args:
        count: frames that were taken, of `total`.
    """
    if sampling.second_per_grid is not None:
        return sampling.second_per_grid
    return TEMPORAL / (count / total * fps)
