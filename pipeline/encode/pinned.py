"""Pinned blocks: memory of this machine that a GPU copies into, of about the size that is asked for.

torch's own allocator rounds to powers of two: a unit of 448 MiB would take 512, one of 560 MiB 1024. A block here is
rounded to 16 MiB, and is given again once nobody holds what it was given for.
"""

from __future__ import annotations

import mmap
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

_Block = tuple[Any, weakref.ref[Any] | None]  # uint8 of a block, and of what it is given for
ROUND_TO = 16 << 20
SMALLEST = 1 << 20  # bytes below which torch's own rounding wastes nothing to speak of


class PinnedBlocks:
    """The blocks of one thread."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def like(self, tensor: Tensor) -> Tensor:
        """Uninitialised memory for a tensor's values: the caller's for as long as it, or a view of it, is held."""
        count = tensor.numel() * tensor.element_size()
        if count < SMALLEST:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        given = self._take(count)[:count]
        self._blocks[-1] = self._blocks[-1][0], weakref.ref(given)
        return torch.from_numpy(given).view(tensor.dtype).view(tensor.shape)

    def reserve(self, count: int) -> None:
        """Pins a block of so many bytes, for later."""
        if count >= SMALLEST:
            self._take(count)

    def _take(self, count: int) -> Any:
        """The smallest free block that is large enough, else a new one in place of the free ones; put last."""
        free = [block for block, given in self._blocks if given is None or given() is None]
        held = [one for one in self._blocks if not any(one[0] is block for block in free)]
        chosen = min((block for block in free if len(block) >= count), key=len, default=None)
        if chosen is None:
            free = []  # too small: a new one takes their place
            self._blocks = held
            chosen = _pinned(-(-count // ROUND_TO) * ROUND_TO)
        self._blocks = [*held, *((block, None) for block in free if block is not chosen), (chosen, None)]
        return chosen


def _pinned(count: int) -> Any:
    """uint8 [count], whole pages. Where they cannot be pinned, copies into them are only slower."""
    block = np.frombuffer(mmap.mmap(-1, count), np.uint8)
    address = block.ctypes.data
    runtime = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(address, count, 0)) == 0:
        weakref.finalize(block, runtime.cudaHostUnregister, address)  # called before the pages go
    return block
