"""Frame images as one video, to patches: one image after another, every one of them.

`index/video_frames.py` says which size they get.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .. import rejects
from ..index.video_frames import frame_size, of_frame
from ..index.video_sampling import ClipPlan
from ..rejects import Reject
from ..sampling import TEMPORAL, VideoSampling
from ..source.frame_bytes import split_frames
from .decode import Uint8
from .guard import ImageReader
from .video import write_frame


def prepare_frames(
    key: str, data: bytes, plan: ClipPlan, sampling: VideoSampling, rows_PC: Uint8, reader: ImageReader
) -> None:
    """Makes the patches of a video of frame images.

    Args:
        data: of the images, as `source.frame_bytes` joins them.
        rows_PC: where they are written, uint8 [P, C].

    Raises:
        Reject: of a frame, named: its bytes cannot be decoded, or not to the first one's size.
    """
    first: tuple[int, int] | None = None
    for position, frame in enumerate(split_frames(data)):
        try:
            pixels = reader.still(key, frame)
        except Reject as reject:
            raise of_frame(position, reject) from reject
        size = frame_size(pixels.shape[0], pixels.shape[1], sampling)
        first = first or size
        if size != first:
            message = f"frame {position} decodes to {size[1]}x{size[0]}, the first one to {first[1]}x{first[0]}"
            raise Reject(rejects.CORRUPT, message)
        prepare_frame(position, pixels, plan, sampling, rows_PC)


def prepare_frame(position: int, pixels: Uint8, plan: ClipPlan, sampling: VideoSampling, rows_PC: Uint8) -> None:
    """Writes the patches of one frame image, RGB uint8 [H, W, 3], into those of its video, uint8 [P, C]."""
    height, width = frame_size(pixels.shape[0], pixels.shape[1], sampling)
    if sampling.rule == "utils":
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height)))
    write_frame(pixels, plan, sampling, rows_PC, _positions(position, len(plan.frames)))


def _positions(position: int, count: int) -> Sequence[int]:
    return (position, position + 1) if position == count - 1 and count % TEMPORAL else (position,)
