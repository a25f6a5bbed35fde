"""What one device of this machine encodes in a second, on images of the sizes that the source has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.encoder import Tower
from pipeline.pack import Size, pack_images
from pipeline.process import keep_freed_memory
from pipeline.request import Request
from pipeline.stages import choose_device, device_name

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


def calibrate(request: Request, grids: Sequence[tuple[int, int, int]]) -> Calibration:
    """Encodes a few packs of random pixels with these grids `(t, h, w)`, after one that is not counted."""
    config, device = request.config, choose_device()
    keep_freed_memory()
    torch.set_num_threads(config.cluster.threads_per_encoder)
    on_gpu = device.type == "cuda"
    compiled = config.model.compile == "on" or (config.model.compile == "auto" and on_gpu)
    tower = Tower(
        request.checkpoint, getattr(torch, config.model.dtype), device, compile_blocks=compiled,
        linear=config.model.linear,
    )  # fmt: skip
    generator = np.random.default_rng(SEED)
    budget = config.pack.max_patches if on_gpu else min(config.pack.max_patches, CPU_PATCHES)
    chosen: list[tuple[int, int, int]] = []
    while sum(t * h * w for t, h, w in chosen) < (PACKS + 1) * budget and len(chosen) < 100_000:
        chosen += [grids[int(number)] for number in generator.permutation(len(grids))]
    sizes = [Size(patches=t * h * w, frame_patches=h * w) for t, h, w in chosen]
    packs = sorted(pack_images(sizes, budget), key=len)[-(PACKS + 1) :]
    tokens, seconds = 0, 0.0
    for number, pack in enumerate(packs):
        layout = [chosen[image] for image in pack]
        patches = sum(t * h * w for t, h, w in layout)
        values = tower.patch_weight_still.shape[1]
        patches_PC = torch.randint(0, 256, (patches, values), dtype=torch.uint8).to(device)
        started = time.perf_counter()
        tower.forward(patches_PC, tower.plan(layout), config.output.stage)
        if on_gpu:
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
        if number or len(packs) == 1 or elapsed > SECONDS:  # the first one also loads kernels
            tokens += patches // tower.config.merge_size**2
            seconds += elapsed
        if seconds > SECONDS:
            break
    return Calibration(tokens_per_second=tokens / seconds, tokens=tokens, device=device_name(device))
