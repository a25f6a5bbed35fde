"""Videos to patches: two frames each, uint8, in the reference's patch order.

    frame uint8 [H, W, 3] ─▶ resized uint8 [3, H', W'] ─▶ its half of the rows uint8 [P, C], C = 3·2·patch_size²

A frame's patches are written where they will lie as soon as it is decoded, so that one frame is in memory, however long
a clip is. Several clips of one file (spans, or other sizes of the same) are made in one pass over it.

Source: transformers 5.23, `models/qwen2_vl/video_processing_qwen2_vl.py`, `patchify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..index.video_file import VideoSource
from ..index.video_header import VideoHeader
from ..index.video_sampling import ClipPlan
from ..rejects import Reject
from ..sampling import TEMPORAL, VideoSampling
from .decode import Uint8
from .guard import ImageReader
from .patches import cut_patches, resize


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A file of which clips are made: its key in messages, its bytes or where they are, and their header."""

    key: str
    source: VideoSource
    header: VideoHeader


def prepare_clips(
    file: VideoFile,
    plans: Sequence[ClipPlan],
    sampling: VideoSampling,
    rows_PC: Sequence[Uint8],
    reader: ImageReader,
) -> list[Reject | None]:
    """Makes the patches of clips of one file, which is read once.

    Args:
        plans: of the file's frames.
        rows_PC: where each clip's patches are written, uint8 [P, C].

    Returns:
        For each clip None, or why it is not whole: of one whose frames came before the damage, None.

    Raises:
        ReaderLost: no memory, or the process that decodes was killed from outside.
        OSError: the source cannot be read.
    """
    wanted = np.unique(np.concatenate([plan.frames for plan in plans]))
    slots = [_slots(plan) for plan in plans]
    waiting = {number: int(plan.frames[-1]) for number, plan in enumerate(plans)}

    def take(index: int, pixels: Uint8) -> None:
        for number, plan in enumerate(plans):
            if index in slots[number]:
                write_frame(pixels, plan, sampling, rows_PC[number], slots[number][index])
            if waiting.get(number) == index:
                del waiting[number]

    try:
        reader.frames(file.key, file.source, file.header, wanted, take)
    except Reject as reject:
        return [reject if number in waiting else None for number in range(len(plans))]
    return [None] * len(plans)


def _slots(plan: ClipPlan) -> dict[int, list[int]]:
    """Where in its clip each frame stands; the last one twice where their number is odd."""
    positions: dict[int, list[int]] = {}
    for position, index in enumerate(plan.frames.tolist()):
        positions.setdefault(index, []).append(position)
    if len(plan.frames) % TEMPORAL:
        positions[int(plan.frames[-1])].append(len(plan.frames))
    return positions


def write_frame(
    pixels: Uint8, plan: ClipPlan, sampling: VideoSampling, rows_PC: Uint8, positions: Sequence[int]
) -> None:
    """Writes one frame's half of the rows of each temporal patch that it stands in."""
    in_float = sampling.rule == "utils"
    planes = (resize_in_float if in_float else resize)(pixels, plan.height, plan.width)
    length = plan.grid[1] * plan.grid[2]
    for position in positions:
        pair, half = divmod(position, TEMPORAL)
        rows = rows_PC[pair * length : (pair + 1) * length]
        cut_patches(planes, sampling.patch_size, sampling.merge_size, rows, half, TEMPORAL)


def resize_in_float(pixels: Uint8, height: int, width: int) -> Uint8:
    """Bicubic with antialiasing as qwen-vl-utils has it: in float32, then rounded.

    `resize` differs from it by one level at times.

    Source: torchvision 0.28, `transforms/_functional_tensor.py`, `resize`.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        uint8 [3, height, width], contiguous.
    """
    import torch  # here, so that a process which only indexes does not load it
    from torch.nn import functional

    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].float()
    planes = functional.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)[0]
    resized: Uint8 = planes.clamp(0, 255).round().to(torch.uint8).numpy()
    return resized
