"""Cut: from a part's index to units. A pure function of index and configuration.

A unit is a run of consecutive samples of one part and becomes one output shard. It closes before the sample that would
take it over `shard_tokens`, 16 384 samples, or 512 MiB of bytes to read; in Parquet before a row group that does not
fit. A small source, one of few parts, is cut finer, so that several encoders have work and a run shows how far it is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..grid import Geometry, offsets, smart_resize_many
from ..rejects import Reject
from .read import IndexArrays
from .video_facts import plan_of
from .video_sampling import ClipPlan

MAX_UNIT_SAMPLES = 16_384
MAX_UNIT_BYTES = 512 << 20
UNITS_OF_A_SOURCE = 16  # at least, where it has the tokens for units of this size
FINE_UNIT_TOKENS = 1024
_UNIT_ID = re.compile(r"([0-9]{6,9})-([0-9]{4,9})")


class UnitId(NamedTuple):
    """A unit's part, and its number within the part; as text `000003-0001`."""

    part: int
    number: int

    def __str__(self) -> str:
        return f"{self.part:06d}-{self.number:04d}"

    @classmethod
    def parse(cls, text: str) -> UnitId:
        """The inverse of `str`. Raises ValueError: it is not what `str` gives for a unit."""
        match = _UNIT_ID.fullmatch(text)
        parsed = cls(int(match[1]), int(match[2])) if match else None
        if parsed is None or str(parsed) != text:
            raise ValueError(f"{text!r} is no unit's id")
        return parsed


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows `first` to `first + count` of a part's index, with what they will take at most.

    Attributes:
        patches: in all.
        clip_patches: those of clips among them, of two frames each.
    """

    part: int
    number: int
    first: int
    count: int
    tokens: int
    patches: int
    clip_patches: int = 0

    @property
    def frame_patches(self) -> int:
        """Patches of one frame: what its memory goes by."""
        return self.patches + self.clip_patches

    @cached_property
    def id(self) -> str:
        """Its name, `000003-0001`."""
        return str(UnitId(self.part, self.number))


def resized_of(index: IndexArrays, geometry: Geometry) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Height and width that every image is resized to by its header; 0 for those that it rejects, and for clips."""
    height_N, width_N = smart_resize_many(
        index.height_N, index.width_N, geometry.factor, geometry.min_pixels, geometry.max_pixels
    )
    usable = index.accepted_N & (index.width_N * index.height_N <= geometry.max_image_pixels)
    if index.clips:
        usable[list(index.clips)] = False
    return np.where(usable, height_N, 0), np.where(usable, width_N, 0)


def clip_plans(index: IndexArrays, geometry: Geometry) -> dict[int, ClipPlan | Reject]:
    """The plan of every clip, by its row; or why it is none."""
    plans: dict[int, ClipPlan | Reject] = {}
    for row, video in index.clips.items():
        try:
            plans[row] = plan_of(video, int(index.width_N[row]), int(index.height_N[row]), geometry)
        except Reject as reject:
            plans[row] = reject
    return plans


def clip_patches_of(index: IndexArrays, geometry: Geometry) -> npt.NDArray[np.int64]:
    """Patches of every clip, 0 for images and for those that are rejects."""
    patches_N = np.zeros(len(index.width_N), np.int64)
    for row, plan in clip_plans(index, geometry).items():
        patches_N[row] = 0 if isinstance(plan, Reject) else plan.patches
    return patches_N


def cut_units(part: int, index: IndexArrays, geometry: Geometry, shard_tokens: int) -> list[Unit]:
    """Cuts one part. Every sample, rejects included, is in exactly one unit."""
    height_N, width_N = resized_of(index, geometry)
    patches_N = height_N * width_N // geometry.patch_size**2
    clip_ends = None
    if index.clips:  # of images alone nothing more is computed
        clip_patches_N = clip_patches_of(index, geometry)
        patches_N += clip_patches_N
        clip_ends = offsets(clip_patches_N).tolist()
    merged = geometry.merge_size**2
    patch_ends = offsets(patches_N).tolist()
    ends = cut_ends(index, patches_N // merged, shard_tokens)
    return [
        Unit(
            part=part,
            number=number,
            first=first,
            count=end - first,
            tokens=(patch_ends[end] - patch_ends[first]) // merged,
            patches=patch_ends[end] - patch_ends[first],
            clip_patches=clip_ends[end] - clip_ends[first] if clip_ends is not None else 0,
        )
        for number, (first, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def _fine(part_tokens: int, parts: int) -> int:
    """Tokens of a unit of a small source.

    A function of the source alone, and not of the number of encoders, as bits depend on how units are cut. `parts` was
    written down when the part was indexed, so a source that grows later changes nothing.
    """
    if not 0 < parts < UNITS_OF_A_SOURCE:
        return part_tokens + 1
    return max(FINE_UNIT_TOKENS, -(-part_tokens * parts // UNITS_OF_A_SOURCE))


def cut_ends(index: IndexArrays, tokens_N: npt.NDArray[np.int64], shard_tokens: int) -> list[int]:
    """Returns the end index of each unit in a part. Lists and bisection: a tenth of the time that arrays take here."""
    token_ends: list[int] = offsets(tokens_N).tolist()
    shard_tokens = min(shard_tokens, _fine(token_ends[-1], index.of))
    byte_ends, starts = index.byte_ends, index.group_starts
    total = len(tokens_N)
    ends: list[int] = []
    first = 0
    while first < total:
        last = min(first + MAX_UNIT_SAMPLES, total)
        end = bisect_right(token_ends, token_ends[first] + shard_tokens, first, last + 1) - 1
        if byte_ends[end] - byte_ends[first] > MAX_UNIT_BYTES:
            end = int(np.searchsorted(byte_ends, byte_ends[first] + MAX_UNIT_BYTES, side="right")) - 1
        end = max(first + 1, end)
        if starts is not None and end < total and starts[end] > first:
            # A row group is read as a whole: cut before one that does not fit, unless it does not fit by itself.
            end = int(starts[end])
        ends.append(end)
        first = end
    return ends
