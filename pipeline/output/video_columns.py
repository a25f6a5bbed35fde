"""Video columns: what is kept of a clip beside what an image has, for what a language model is told of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..index.video_facts import times_of_clip
from ..index.video_frames import timing_of_frames
from ..index.video_times import second_per_grid, span_of, timestamps
from ..prepare.unit import PreparedSample, PreparedUnit
from ..sampling import VideoSampling
from .video_schema import VIDEO_COLUMNS

OF_FRAMES = ("frames", "times", "timestamps", "second_per_grid")  # which hang on what was taken


def video_columns(prepared: PreparedUnit, samples: Sequence[PreparedSample]) -> dict[str, list[Any]]:
    """The columns of clips, of some of a unit's samples."""
    assert prepared.geometry is not None and prepared.geometry.video is not None
    rows = [_row(sample, prepared.geometry.video) for sample in samples]
    return {name: [row.get(name) for row in rows] for name in VIDEO_COLUMNS.names}


def _row(sample: PreparedSample, sampling: VideoSampling) -> dict[str, Any]:
    video = sample.facts.video
    row: dict[str, Any] = {"media": sample.facts.media}
    if video is None:
        return row
    row |= {"start": video.start, "end": video.end, "fps": video.fps, "duration": _float32(video.duration)}
    if sample.frames is None:
        return row
    if video.is_frames:
        timing = timing_of_frames(video, sampling)
        return row | {
            "frames": list(sample.frames),
            "times": None if timing.times is None else np.array(timing.times, np.float32).tolist(),
            "timestamps": list(timing.timestamps),
            "second_per_grid": timing.second_per_grid,
        }
    assert video.fps is not None
    times = times_of_clip(video)
    _, total = span_of(times, video.fps, video.start, video.end, sampling.rule)
    return row | {
        "frames": list(sample.frames),
        "times": times[list(sample.frames)].astype(np.float32).tolist(),
        "timestamps": timestamps(sample.frames, video.fps),
        "second_per_grid": second_per_grid(len(sample.frames), total, video.fps, sampling),
    }


def _float32(value: float | None) -> float | None:
    """A value as it comes back from a column of its type."""
    return None if value is None else float(np.float32(value))
