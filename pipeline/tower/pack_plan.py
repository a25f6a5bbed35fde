"""Pack plan: everything that the grids of one pack decide, computed before its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..grid import grid_layout, offsets
from .config import ROPE_THETA, TowerConfig
from .positions import Interpolation, interpolate_positions, to_device

WHOLE_FRAME = 1 << 20  # merged tokens along the side of a window that holds any frame
# On a CPU, rows go through a windowed block in chunks whose intermediates stay in cache, instead of through memory.
CPU_CHUNK_ROWS = 512
Grid = tuple[int, int, int]
Kernel = Literal["varlen", "dense", "cudnn", "fa4"]  # all but dense take segments of unequal length


@dataclass(frozen=True, kw_only=True)
class Run:
    """Segments of equal length for the dense kernel: `count` segments of `length` patches.

    `rows` is None where they lie one after the other from `start` on, else their row numbers.
    """

    start: int
    count: int
    length: int
    rows: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Segments that attention must not cross. `runs` for the dense kernel, `cu_seqlens` int32 [S + 1] for others.

    `by_cudnn`: whole frames where `model.attention` is cudnn; windows are too short for it to be faster.
    """

    runs: tuple[Run, ...] = ()
    cu_seqlens: Tensor | None = None
    max_length: int = 0
    by_cudnn: bool = False


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows that go through a windowed block together, and their windows, counted from `rows.start`."""

    rows: slice
    windows: Segments


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """Everything that the grids of one pack decide, on the device.

    Attributes:
        order_M: int64 [M], input token of each computed token.
        cos_PE, sin_PE: float32 [P, E/2], of the computed order.
        chunks: of all rows; a single one but on a CPU.
        learned: how the learned positions are interpolated, in the computed order; None for a tower without.
    """

    order_M: Tensor
    cos_PE: Tensor
    sin_PE: Tensor
    chunks: tuple[Chunk, ...]
    frames: Segments
    learned: Interpolation | None = None


def plan_pack(
    grids: Sequence[Grid], config: TowerConfig, kernel: Kernel, device: torch.device, chunk_rows: int = CPU_CHUNK_ROWS
) -> PackPlan:
    """Lays out one pack of images, in the order in which their patches follow each other.

    For varlen, images stay together and windows lie in order within them. For dense, windows are sorted by length over
    the whole pack, so that windowed attention, most of the blocks, runs over views and gathers nothing. Where there are
    no windows, a window is a frame, and the same holds for every block.
    """
    unit = config.merge_size**2
    layouts = [grid_layout(grid, config.merge_size, config.window_merged or WHOLE_FRAME) for grid in grids]
    tokens = [len(layout.window_order_M) for layout in layouts]
    starts = offsets(tokens)
    order = np.concatenate([layout.window_order_M + start for layout, start in zip(layouts, starts, strict=False)])
    lengths = np.concatenate([layout.window_lengths for layout in layouts])
    frame_lengths = np.repeat([layout.frame_length for layout in layouts], [layout.frames for layout in layouts])
    positions = np.concatenate([np.tile(layout.positions_P2, (layout.frames, 1)) for layout in layouts])

    if kernel == "dense":
        by_length = np.argsort(-lengths, kind="stable")
        window_starts = offsets(lengths // unit)[:-1]
        sorted_lengths = lengths[by_length]
        ends = np.cumsum(sorted_lengths // unit)
        within = np.arange(len(order)) - np.repeat(ends - sorted_lengths // unit, sorted_lengths // unit)
        order = order[np.repeat(window_starts[by_length], sorted_lengths // unit) + within]
        max_rows = chunk_rows if device.type == "cpu" else len(order) * unit
        if config.window_pixels:
            chunks = _chunks(sorted_lengths, max_rows)
            frames = Segments(runs=_runs_gathered(frame_lengths, order, unit, device))
        else:
            chunks = _slices(len(order) * unit, max_rows)
            frames = Segments(runs=_runs(sorted_lengths))
    else:
        frames = replace(_cu_seqlens(frame_lengths, device), by_cudnn=kernel == "cudnn")
        windows = _cu_seqlens(lengths, device) if config.window_pixels else frames
        chunks = (Chunk(rows=slice(0, len(order) * unit), windows=windows),)

    computed = positions.reshape(-1, unit, 2)[order].reshape(-1, 2)
    learned = None
    if config.positions:
        sides = np.repeat([grid[1:] for grid in grids], tokens, axis=0)[order].repeat(unit, axis=0)
        learned = interpolate_positions(computed, sides, config.positions, device)
    frequencies = 1.0 / ROPE_THETA ** (
        torch.arange(0, config.head_dim // 2, 2, dtype=torch.float32) / (config.head_dim // 2)
    )
    table = torch.arange(int(positions.max()) + 1, dtype=torch.float32)[:, None] * frequencies
    indices = to_device(torch.from_numpy(computed), device)

    def of_patches(values: Tensor) -> Tensor:
        return to_device(values, device)[indices].flatten(1)  # row frequencies, then column frequencies

    return PackPlan(
        order_M=to_device(torch.from_numpy(order), device),
        cos_PE=of_patches(table.cos()),
        sin_PE=of_patches(table.sin()),
        chunks=chunks,
        frames=frames,
        learned=learned,
    )


def _chunks(lengths: np.ndarray, max_rows: int) -> tuple[Chunk, ...]:
    """Groups sorted windows into chunks of at most `max_rows` rows (or one window), with runs of equal length."""
    chunks: list[Chunk] = []
    ends = np.cumsum(lengths)
    first, start = 0, 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(ends, start + max_rows, side="right")))
        runs = _runs(lengths[first:last])
        size = sum(run.length * run.count for run in runs)
        chunks.append(Chunk(rows=slice(start, start + size), windows=Segments(runs=runs)))
        first, start = last, start + size
    return tuple(chunks)


def _runs(lengths: np.ndarray) -> tuple[Run, ...]:
    """Sorted segments that lie one after the other, as runs of equal length."""
    runs: list[Run] = []
    start = 0
    negative, counts = np.unique(-lengths, return_counts=True)  # longest first, as they are sorted
    for length, count in zip((-negative).tolist(), counts.tolist(), strict=True):
        runs.append(Run(start=start, count=count, length=length))
        start += length * count
    return tuple(runs)


def _slices(rows: int, max_rows: int) -> tuple[Chunk, ...]:
    """Chunks of rows that have no windows."""
    return tuple(
        Chunk(rows=slice(first, min(first + max_rows, rows)), windows=Segments()) for first in range(0, rows, max_rows)
    )


def _runs_gathered(lengths: np.ndarray, order: np.ndarray, unit: int, device: torch.device) -> tuple[Run, ...]:
    """Frames of equal length, by the rows that their patches have in the computed order."""
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    rows = (position[:, None] * unit + np.arange(unit)).ravel()
    starts = offsets(lengths)[:-1]
    runs: list[Run] = []
    for length in sorted(set(lengths.tolist()), reverse=True):
        chosen = starts[lengths == length]
        index = to_device(torch.from_numpy(rows[chosen[:, None] + np.arange(length)].ravel()), device)
        runs.append(Run(start=0, count=len(chosen), length=length, rows=index))
    return tuple(runs)


def _cu_seqlens(lengths: np.ndarray, device: torch.device) -> Segments:
    ends = offsets(lengths).astype(np.int32)
    return Segments(cu_seqlens=to_device(torch.from_numpy(ends), device), max_length=int(lengths.max()))
