"""Mixes: photos and mixes of image sizes, how much arithmetic they are, and timing side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.bench.peers import pixel_values
from pipeline.encode.pack import Size, pack_images
from pipeline.errors import RequestError
from pipeline.grid import Geometry, grid_layout, smart_resize
from pipeline.source.image_formats import EXTENSIONS
from pipeline.tower.pack_plan import Grid
from pipeline.tower.tower import Tower

SEED = 7
SHIPPED_PHOTOS = Path("tests/data/photos")
MIN_PIXELS, MAX_PIXELS = 3136, 1_003_520
PATCH = 14
UNIT_TOKENS, PACK_PATCHES = 65_536, 32_768
MATRIX_SIDE = {"cuda": 8192, "cpu": 2048}
MATRICES = 50
CPU_PATCHES = 4000
IDLE_UNITS = 20
LARGE: Grid = (1, 256, 256)
Call = Callable[[], Tensor]
GEOMETRY = Geometry(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=MIN_PIXELS,
    max_pixels=MAX_PIXELS,
    max_image_pixels=178_956_970,
)


def log_normal_grids(count: int, median_mpx: float = 0.5, sigma: float = 0.5, patch: int = PATCH) -> list[Grid]:
    """Grids of photos with log-normal areas and common aspect ratios, capped at MAX_PIXELS. Seeded."""
    generator = np.random.default_rng(SEED)
    areas = np.exp(generator.normal(np.log(median_mpx * 1e6), sigma, count))
    ratios = generator.choice([1.0, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3], count)
    grids: list[Grid] = []
    for area, ratio in zip(areas.tolist(), ratios.tolist(), strict=True):
        height, width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        height, width, _ = smart_resize(height, width, 2 * patch, MIN_PIXELS, MAX_PIXELS)
        grids.append((1, height // patch, width // patch))
    return grids


def patches_of(grids: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in grids)


def packed(grids: Sequence[Grid], budget: int, count: int) -> list[list[Grid]]:
    """The first packs that our packer makes of one unit of these images."""
    unit: list[Grid] = []
    for grid in grids:
        if patches_of([*unit, grid]) // 4 > UNIT_TOKENS:
            break
        unit.append(grid)
    packs = pack_images([Size(patches=t * h * w, frame_patches=h * w) for t, h, w in unit], budget)
    return [[unit[image] for image in pack] for pack in packs[:count]]


def mixes() -> dict[str, list[list[Grid]]]:
    """A: log-normal photos. B: squares of 1008. C: half of the patches in images of 65 536, half as A."""
    photos = packed(log_normal_grids(1000, 0.48), PACK_PATCHES, 2)
    return {"A": photos, "B": packed([(1, 72, 72)] * 100, PACK_PATCHES, 1), "C": [[LARGE], *photos]}


def useful_flops(grids: Sequence[Grid], tower: Tower) -> float:
    """Multiply-adds counted twice: linear layers, patch embedding of one frame, attention, mergers; no padding."""
    config = tower.config
    width, merged = config.width, config.merged_width
    matrices = 3 if config.activation == "silu_gated" else 2
    linear = config.depth * (4 * width**2 + matrices * width * config.intermediate)
    mergers = (1 + config.streams) * (merged**2 + merged * config.out_width) / config.merge_size**2
    linear_flops = 2.0 * patches_of(grids) * (linear + tower.patch_weight_still.numel() + mergers)
    return linear_flops + attention_flops(grids, tower)


def attention_flops(grids: Sequence[Grid], tower: Tower) -> float:
    """The part of the useful arithmetic that is attention's."""
    config = tower.config
    full = sum(map(config.attends_fully, range(config.depth)))
    total = full * frame_flops(grids, tower)
    if full < config.depth:
        total += 4.0 * config.width * (config.depth - full) * sum(window_pairs(grid, tower) for grid in grids)
    return total


def frame_flops(grids: Sequence[Grid], tower: Tower) -> float:
    """Attention over whole frames in one block."""
    return 4.0 * tower.config.width * sum(t * (h * w) ** 2 for t, h, w in grids)


def window_pairs(grid: Grid, tower: Tower) -> float:
    """Pairs of patches that attend to each other within windows."""
    layout = grid_layout(grid, tower.config.merge_size, tower.config.window_merged)
    return float((layout.window_lengths.astype(np.float64) ** 2).sum())


def seconds_of(calls: dict[str, Call], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, taken in turns after one warm-up each; by events on a GPU."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of the device, or of this thread on a CPU."""
    if device.type != "cuda":  # one thread's own time: what else the machine does meets it less
        started = time.thread_time()
        call()
        return time.thread_time() - started
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


class Packs:
    """A mix on a device: fresh random patches for every call, over three sets so that no cache holds them."""

    def __init__(self, tower: Tower, packs: list[list[Grid]]) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.tower, self.packs = tower, packs
        self.plans = [tower.plan(grids) for grids in packs]
        values = tower.patch_weight_still.shape[1]
        self.patches = [
            [
                torch.randint(0, 256, (patches_of(grids), values), dtype=torch.uint8, generator=generator).to(
                    tower.device
                )
                for grids in packs
            ]
            for _ in range(3 if tower.device.type == "cuda" else 1)
        ]
        self._turn = 0

    def next(self) -> list[Tensor]:
        self._turn += 1
        return self.patches[self._turn % len(self.patches)]

    def ours(self) -> Tensor:
        return [self.tower.forward(one, plan) for one, plan in zip(self.next(), self.plans, strict=True)][-1]

    def reference(self, run: Callable[[Tensor, list[Grid]], Tensor]) -> Call:
        """The same packs, normalised beforehand: the reference's processor has done that part."""
        values = [pixel_values(self.tower, one).to(self.tower.dtype) for one in self.patches[0]]
        return lambda: [run(one, grids) for one, grids in zip(values, self.packs, strict=True)][-1]


def matrix_call(device: torch.device, dtype: torch.dtype) -> tuple[Call, float]:
    """A square matrix product of random values, and its floating-point operations."""
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right, 2.0 * side**3


def matrices_call(one: Call) -> Call:
    """Many products one after the other: at the clock that a device keeps, where a single one may run at a higher."""
    return lambda: [one() for _ in range(MATRICES)][-1]


def photos_of(folder: Path | None) -> list[Path]:
    """The photos to measure on. Raises RequestError if there are none."""
    chosen = folder or SHIPPED_PHOTOS
    found = sorted(path for path in chosen.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise RequestError(f"--photos: {chosen} holds no photo")
    return found


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns, after one warm-up each: noise then meets all of them alike."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
