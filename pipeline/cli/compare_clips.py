"""Clips as the reference has them: its own video processor, given the frames that were taken.

They come from our decoder, which the reference has not. P patches, C values of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..grid import Geometry
from ..index.video_facts import header_of, plan_of
from ..index.video_frames import frame_size
from ..index.video_sampling import ClipPlan
from ..prepare.decode import Uint8
from ..prepare.guard import ImageReader
from ..sampling import TEMPORAL, VideoSampling
from ..source.frame_bytes import split_frames
from ..source.sample import IndexedSample
from ..storage.large import Encoded
from ..tower.config import TowerConfig
from ..tower.reference import reference_video_processor


def clip_values(
    sample: IndexedSample, data: Encoded, geometry: Geometry, config: TowerConfig
) -> tuple[Tensor, tuple[int, int, int]]:
    """A clip's normalised patches, float32 [P, C], and its grid, by the reference's processor.

    Raises:
        Reject: it cannot be decoded any more.
    """
    assert sample.video is not None and sample.width is not None and sample.height is not None
    assert geometry.video is not None
    plan = plan_of(sample.video, sample.width, sample.height, geometry)
    values = _Values(plan, geometry.video, reference_video_processor(config, geometry.video))
    reader = ImageReader()
    if sample.of_frames:
        assert isinstance(data, bytes)
        for frame in split_frames(data):
            values.add(_fetched(reader.still(sample.key, frame), geometry.video))
    else:
        frames, counts = np.unique(plan.frames, return_counts=True)
        times = dict(zip(frames.tolist(), counts.tolist(), strict=True))

        def take(index: int, pixels: Uint8) -> None:
            for _ in range(times[index]):
                values.add(pixels)

        reader.frames(sample.key, data, header_of(sample), frames, take)
    return values.all()


def _fetched(pixels: Uint8, sampling: VideoSampling) -> Uint8:
    """A frame image as qwen-vl-utils fetches it; as it is, for the others."""
    height, width = frame_size(pixels.shape[0], pixels.shape[1], sampling)
    if sampling.rule != "utils":
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


class _Values:
    """The reference's values of a clip, from its frames.

    It is given a pair of frames at a time, so that no more are held. In Qwen3 the size hangs on how many there are: it
    is given all of them at once.
    """

    def __init__(self, plan: ClipPlan, sampling: VideoSampling, processor: Any) -> None:
        self._plan, self._sampling, self._processor = plan, sampling, processor
        self._frames: list[Tensor] = []
        self._values: list[Tensor] = []
        self._grids: list[tuple[int, ...]] = []

    def add(self, pixels: Uint8) -> None:
        """Takes the next frame, RGB uint8 [H, W, 3]."""
        frame = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).clone()
        self._frames.append(self._resized(frame) if self._sampling.rule == "utils" else frame)
        if len(self._frames) == TEMPORAL and self._sampling.rule != "qwen3":
            self._process()

    def _resized(self, frame: Tensor) -> Tensor:
        """By torchvision, as qwen-vl-utils calls it."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import resize

        size = [self._plan.height, self._plan.width]
        resized: Tensor = resize(frame, size, interpolation=InterpolationMode.BICUBIC, antialias=True).float()
        return resized

    def _process(self) -> None:
        frames = self._frames * (2 if len(self._frames) == 1 else 1)  # of one alone Qwen3's processor fails
        values = self._processor(videos=[torch.stack(frames)], return_tensors="pt")
        self._values.append(values["pixel_values_videos"])
        self._grids.append(tuple(values["video_grid_thw"][0].tolist()))
        self._frames = []

    def all(self) -> tuple[Tensor, tuple[int, int, int]]:
        """float32 [P, C], and the grid."""
        if self._frames:
            self._process()
        _, height, width = self._grids[0]
        return torch.cat(self._values), (sum(grid[0] for grid in self._grids), height, width)
