"""Calibration: what one device of this machine encodes in a second, on images and clips of the source's sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..encode.pack import Size, pack_images
from ..errors import RequestError
from ..estimate.film import planned_clips
from ..grid import Geometry, smart_resize_many
from ..process import keep_freed_memory
from ..run.request import Request
from ..source.drawing import Drawn
from ..tower.device import choose_device, choose_dtype, device_name
from ..tower.tower import Tower
from .plan_cases import PlanCase

SEED = 5
PACKS = 4
SECONDS = 30.0
CPU_PATCHES = 8192  # of a pack: on a CPU a full one may take minutes, and goes no faster


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A measured rate, and of what."""

    tokens_per_second: float
    tokens: int
    device: str


class Calibrator:
    """Holds the tower, so that several budgets of pixels are measured with one.

    Args:
        request: whose tower, dtype and packs are measured.
    """

    def __init__(self, request: Request) -> None:
        self._config, device = request.config, choose_device()
        keep_freed_memory()
        torch.set_num_threads(self._config.cluster.threads_per_encoder)
        model = self._config.model
        compiled = model.compile == "on" or (model.compile == "auto" and device.type == "cuda")
        self._tower = Tower(
            request.checkpoint,
            choose_dtype(model.dtype, device),
            device,
            compile_blocks=compiled,
            linear=model.linear,
            attention=model.attention,
        )

    def measure(self, grids: Sequence[tuple[int, int, int]]) -> Calibration:
        """Encodes packs of random pixels with grids `(t, h, w)` drawn from these; the first one is not counted."""
        tower, on_gpu = self._tower, self._tower.device.type == "cuda"
        most = self._config.pack.max_patches
        packs = packs_of(grids, most if on_gpu else min(most, CPU_PATCHES), tower.config.linear_patches)
        tokens, seconds = 0, 0.0
        for number, layout in enumerate(packs):
            patches = sum(t * h * w for t, h, w in layout)
            values = tower.patch_weight_still.shape[1]
            patches_PC = torch.randint(0, 256, (patches, values), dtype=torch.uint8).to(tower.device)
            started = time.perf_counter()
            tower.forward(patches_PC, tower.plan(layout), self._config.output.stage)
            if on_gpu:
                torch.cuda.synchronize(tower.device)
            elapsed = time.perf_counter() - started
            if number or len(packs) == 1 or elapsed > SECONDS:  # the first one also loads kernels
                tokens += patches // tower.config.merge_size**2
                seconds += elapsed
            if seconds > SECONDS:
                break
        return Calibration(tokens_per_second=tokens / seconds, tokens=tokens, device=device_name(tower.device))


def calibrated(cases: Sequence[PlanCase], seen: Sequence[Drawn]) -> tuple[str, list[float]]:
    """Measures each case, on samples of these sizes; one tower at a time.

    Returns:
        The device, and tokens per second of each case.

    Raises:
        RequestError: there is nothing to measure with.
    """
    calibrator, model, device, found = None, "", "", []
    for one in cases:
        grids = grids_of(one.case.geometry, seen)
        if calibrator is None or one.request.checkpoint.path != model:
            calibrator, model = Calibrator(one.request), one.request.checkpoint.path
        result = calibrator.measure(grids)
        device = result.device
        found.append(result.tokens_per_second)
    return device, found


def grids_of(geometry: Geometry, seen: Sequence[Drawn]) -> list[tuple[int, int, int]]:
    """The grids of samples of these sizes, of clips one for each frame pair. Raises RequestError: there are none."""
    height_N, width_N = (np.array([getattr(one, side) for one in seen], np.int64) for side in ("height", "width"))
    is_image_N = np.array([one.video is None for one in seen], bool)
    sides = smart_resize_many(height_N, width_N, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    patch = geometry.patch_size
    grids = [
        (1, int(h) // patch, int(w) // patch)
        for h, w, is_image in zip(*sides, is_image_N, strict=True)
        if h and is_image
    ]
    clips = {row: one.video for row, one in enumerate(seen) if one.video is not None}
    for plan in planned_clips(clips, height_N, width_N, geometry).plans:
        t, h, w = plan.grid
        grids += [(1, h, w)] * t
    if not grids:
        raise RequestError("--calibrate: the source has no image or clip to measure with")
    return grids


def cores_text() -> str:
    """One core of this machine, in words."""
    return f"one core, {device_name(torch.device('cpu'))}"


def packs_of(
    grids: Sequence[tuple[int, int, int]], budget: int, linear_patches: int
) -> list[list[tuple[int, int, int]]]:
    """PACKS + 1 packs of about `budget` patches, or fewer, of images as likely as they are in the source.

    Images are drawn until they fill so many packs: packs chosen among many would hold small images, or large ones.
    """
    generator = np.random.default_rng(SEED)
    chosen: list[tuple[int, int, int]] = []
    while sum(t * h * w for t, h, w in chosen) < (PACKS + 1) * budget:
        chosen.append(grids[int(generator.integers(len(grids)))])
    sizes = [Size(patches=t * h * w, frame_patches=h * w) for t, h, w in chosen]
    packs = [[chosen[image] for image in pack] for pack in pack_images(sizes, budget, linear_patches)]
    return [packs[int(number)] for number in generator.permutation(len(packs))]
