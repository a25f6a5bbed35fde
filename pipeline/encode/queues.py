"""Queues: what a unit uploads to a device, launches there and fetches from it. On a CPU each step is a plain copy.

On a GPU there is a queue for uploads, one for forwards, and one for each thread's fetches: with a single one for all, a
unit's last rows would wait behind the copy of another's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .pinned import PinnedBlocks

# Packs launched ahead of the device. A full launch queue would block its thread, and with it all of Python.
PACKS_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point that the device's queue had reached: by its own clock on a GPU, by this machine's on a CPU."""

    at: float
    event: torch.cuda.Event | None = None

    def seconds_until(self, later: Mark) -> float:
        """Seconds between two marks; the device must have reached the second."""
        if self.event is None or later.event is None:
            return later.at - self.at
        return self.event.elapsed_time(later.event) / 1e3


class Queues:
    """One device's. Uploading and launching is for one thread at a time; each thread may fetch at any time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_gpu = device, device.type == "cuda"
        self._upload = torch.cuda.Stream(device) if self._on_gpu else None
        self._ahead: deque[torch.cuda.Event] = deque()
        self._own = threading.local()

    def upload(self, pieces: Sequence[npt.NDArray[np.uint8]], rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """A pack's patches [P, C] and rows [M] on the device, for what is launched next."""
        if self._upload is None:
            return torch.from_numpy(np.concatenate(pieces)).to(self._device), torch.from_numpy(rows)
        count = sum(map(len, pieces))
        pinned_PC = torch.empty(count, pieces[0].shape[1], dtype=torch.uint8, pin_memory=True)
        np.concatenate(pieces, out=pinned_PC.numpy())
        with torch.cuda.stream(self._upload):
            patches_PC = pinned_PC.to(self._device, non_blocking=True)
            rows_M = torch.from_numpy(rows).pin_memory().to(self._device, non_blocking=True)
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._upload)
        for tensor in (patches_PC, rows_M):
            tensor.record_stream(compute)
        return patches_PC, rows_M

    def pace(self) -> None:
        """Called after each pack: waits while more than `PACKS_AHEAD` are launched ahead of the device."""
        if self._on_gpu:
            self._ahead.append(torch.cuda.current_stream(self._device).record_event())
            if len(self._ahead) > PACKS_AHEAD:
                self._ahead.popleft().synchronize()

    def mark(self) -> Mark:
        """The point that the device's queue has reached."""
        if not self._on_gpu:
            return Mark(at=time.perf_counter())
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return Mark(at=time.perf_counter(), event=event)

    def free_memory(self) -> None:
        """Gives back what torch keeps of the device's memory for later."""
        if self._on_gpu:
            torch.cuda.empty_cache()

    def fetch(self, tensors: Sequence[Tensor], launched: Mark) -> list[Tensor]:
        """Copies on the CPU, once what was launched is done; what was launched since goes on meanwhile."""
        if launched.event is None:
            return list(tensors)
        queue, blocks = self._of_this_thread()
        queue.wait_event(launched.event)
        with torch.cuda.stream(queue):
            copies = [blocks.like(tensor).copy_(tensor, non_blocking=True) for tensor in tensors]
            done = queue.record_event()
        for tensor in tensors:
            tensor.record_stream(queue)
        done.synchronize()
        return copies

    def reserve(self, count: int) -> None:
        """Pins memory for this thread's fetches beforehand, so many bytes in one."""
        if self._on_gpu:
            self._of_this_thread()[1].reserve(count)

    def _of_this_thread(self) -> tuple[torch.cuda.Stream, PinnedBlocks]:
        if not hasattr(self._own, "fetching"):
            self._own.fetching = torch.cuda.Stream(self._device), PinnedBlocks()
        fetching: tuple[torch.cuda.Stream, PinnedBlocks] = self._own.fetching
        return fetching
