"""Cut: from a part's index to units. A pure function of index and configuration.

A unit is a run of consecutive samples of one part and becomes one output shard. It closes before the sample that would
take it over `shard_tokens`, 16 384 samples, or 512 MiB of bytes to read; in Parquet before a row group that does not
fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.grid import smart_resize_many
from pipeline.index import IndexArrays, read_index_arrays

MAX_UNIT_SAMPLES = 16_384
MAX_UNIT_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What decides an image's grid: the checkpoint's sizes and the configuration's budgets. Pixels and patches."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    max_image_pixels: int

    @property
    def factor(self) -> int:
        return self.patch_size * self.merge_size


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows `first` to `first + count` of a part's index, with what they will take at most."""

    part: int
    number: int
    first: int
    count: int
    tokens: int
    patches: int

    @property
    def id(self) -> str:
        return f"{self.part:06d}-{self.number:04d}"


def resized_of(index: IndexArrays, geometry: Geometry) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Height and width that every sample is resized to by its header, 0 for those that the header alone rejects."""
    height_N, width_N = smart_resize_many(
        index.height_N, index.width_N, geometry.factor, geometry.min_pixels, geometry.max_pixels
    )
    usable = index.accepted_N & (index.width_N * index.height_N <= geometry.max_image_pixels)
    return np.where(usable, height_N, 0), np.where(usable, width_N, 0)


def patches_of(index: IndexArrays, geometry: Geometry) -> npt.NDArray[np.int64]:
    """Patches of every sample, 0 for those that the header alone rejects."""
    height_N, width_N = resized_of(index, geometry)
    return height_N * width_N // geometry.patch_size**2


def cut_units(
    part: int, index: IndexArrays, geometry: Geometry, shard_tokens: int, patches_N: npt.NDArray[np.int64] | None = None
) -> list[Unit]:
    """Cuts one part. Every sample, rejects included, is in exactly one unit. `patches_N`: if they are known."""
    if patches_N is None:
        patches_N = patches_of(index, geometry)
    tokens_N = patches_N // geometry.merge_size**2
    token_ends = np.concatenate([[0], np.cumsum(tokens_N)])
    # What is read for a sample: in a tar everything since the one before it, since a unit is one range.
    read_N = np.maximum(index.length_N, np.diff(index.end_N, prepend=index.end_N[:1]))
    byte_ends = np.concatenate([[0], np.cumsum(read_N)])
    patch_ends = np.concatenate([[0], np.cumsum(patches_N)])
    total = len(tokens_N)
    starts = _group_starts(index.group_N)
    units: list[Unit] = []
    first = 0
    while first < total:
        by_tokens = int(np.searchsorted(token_ends, token_ends[first] + shard_tokens, side="right")) - 1
        by_bytes = int(np.searchsorted(byte_ends, byte_ends[first] + MAX_UNIT_BYTES, side="right")) - 1
        end = max(first + 1, min(by_tokens, by_bytes, first + MAX_UNIT_SAMPLES, total))
        if end < total:
            # A row group is read as a whole: cut before one that does not fit, unless it does not fit by itself.
            end = int(starts[end]) if starts[end] > first else end
        units.append(
            Unit(
                part=part,
                number=len(units),
                first=first,
                count=end - first,
                tokens=int(token_ends[end] - token_ends[first]),
                patches=int(patch_ends[end] - patch_ends[first]),
            )
        )
        first = end
    return units


def _group_starts(group_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each sample the first of its row group; itself where there are no row groups."""
    number = np.arange(len(group_N))
    starts = group_N != np.concatenate([[-2], group_N[:-1]])
    return np.where(group_N < 0, number, np.maximum.accumulate(np.where(starts, number, 0)))


def units_of(path: Path, part: int, geometry: Geometry, shard_tokens: int) -> Iterator[Unit]:
    """Cuts the part whose index lies at `path`."""
    yield from cut_units(part, read_index_arrays(path), geometry, shard_tokens)
