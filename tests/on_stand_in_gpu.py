"""A plugin: the tests that need a GPU, on the stand-in and with small towers. `pytest -p on_stand_in_gpu -m cuda`.

It shows that they run, and that what they ask holds where everything is exact; nothing of a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stand_in_gpu import StandInGpu, eager_kernels

from pipeline.tower import random_tower
from pipeline.tower.tower import Tower

PATCHES_THAT_FIT = 20_000  # in a forward, while memory is limited

patch = pytest.MonkeyPatch()
gpu = StandInGpu().install(patch)
eager_kernels(patch)


def smaller(config: Any) -> Any:
    """A tower of the same family, of fewer and narrower blocks; two heads as wide as they are."""
    changes: dict[str, Any] = {"depth": 4, "width": 2 * config.head_dim, "num_heads": 2}
    if config.window_pixels:
        changes["full_attention_blocks"] = (1, 3)
    if config.deepstack_blocks:
        changes["deepstack_blocks"] = (0, 1, 3)
    return replace(config, **changes, intermediate=2 * changes["width"], out_width=64)


random_tower.SIZES.update({name: smaller(config) for name, config in random_tower.SIZES.items()})
forward = Tower.forward_in_window_order
limited: list[float] = [1.0]


def forward_within_memory(self: Tower, patches_PC: torch.Tensor, *rest: Any) -> torch.Tensor:
    if limited[-1] < 1 and len(patches_PC) > PATCHES_THAT_FIT:
        raise torch.OutOfMemoryError("CUDA out of memory (made by a stand-in)")
    return forward(self, patches_PC, *rest)


patch.setattr(Tower, "forward_in_window_order", forward_within_memory)
patch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, device=None: limited.append(fraction))
