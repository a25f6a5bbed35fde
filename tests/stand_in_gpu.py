"""A stand-in for a GPU where there is none: torch.cuda as our code calls it, on the CPU, with every call on record.

Tensors that are asked for on a GPU lie on the CPU; queues are names, and everything is done at once. So it shows which
device and which queue each step is given, and that the code that only a GPU runs can be run; no order of two queues.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.tower.block import NormWeights, activate, normalize, rotate
from pipeline.tower.linear import quantize_rows

FACTORIES = (
    *("empty", "zeros", "ones", "full", "tensor", "as_tensor", "arange", "rand", "randn", "randint"),
    *("empty_like", "zeros_like"),
)


def _here(value: Any) -> Any:
    """A device as it is on this machine."""
    is_gpu = isinstance(value, torch.device | str) and str(value).split(":")[0] == "cuda"
    return torch.device("cpu") if is_gpu else value


class StandInGpu:
    """What was asked of it, thread by thread.

    Attributes:
        used: (what, current device, current queue's name, thread's ident) of each step that `note` is called for.
        pinned: bytes of each block that was pinned by its address.
    """

    def __init__(self, memory_bytes: int = 1 << 40) -> None:
        self.used: list[tuple[str, int, str, int]] = []
        self.pinned: list[int] = []
        self.memory_bytes = memory_bytes
        self.emptied = 0
        self._own = threading.local()

    @property
    def device(self) -> int:
        """The current device of this thread."""
        return getattr(self._own, "device", 0)

    @property
    def queue(self) -> str:
        """The current queue of this thread."""
        return getattr(self._own, "queue", "default")

    def note(self, what: str) -> None:
        self.used.append((what, self.device, self.queue, threading.get_ident()))

    @contextmanager
    def _on_device(self, device: Any) -> Iterator[None]:
        before, self._own.device = self.device, torch.device(device).index or 0
        try:
            yield
        finally:
            self._own.device = before

    @contextmanager
    def _on_queue(self, queue: Any) -> Iterator[None]:
        before, self._own.queue = self.queue, queue.name
        try:
            yield
        finally:
            self._own.queue = before

    def _register(self, address: int, count: int, flags: int) -> int:
        self.pinned.append(count)
        return 0

    def install(self, patch: pytest.MonkeyPatch) -> StandInGpu:
        """From now on torch has a GPU, of compute capability 9.0."""
        cuda: dict[str, Any] = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: self.device,
            "get_device_name": lambda device=None: "stand-in",
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_properties": lambda device=None: SimpleNamespace(total_memory=self.memory_bytes),
            "mem_get_info": lambda device=None: (self.memory_bytes, self.memory_bytes),
            "device": self._on_device,
            "stream": self._on_queue,
            "Stream": Queue,
            "current_stream": lambda device=None: Queue(name=self.queue),
            "Event": Event,
            "synchronize": lambda device=None: None,
            "empty_cache": self._empty_cache,
            "memory_allocated": lambda device=None: 0,
            "memory_reserved": lambda device=None: 0,
            "set_per_process_memory_fraction": lambda fraction, device=None: None,
            "cudart": lambda: SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=lambda address: 0),
        }
        for name, value in cuda.items():
            patch.setattr(torch.cuda, name, value)
        for name in FACTORIES:
            patch.setattr(torch, name, _made_here(getattr(torch, name)))
        for owner in (torch.Tensor, torch.nn.Module):
            patch.setattr(owner, "to", _moved_here(owner.to))
            patch.setattr(owner, "cuda", lambda self, *rest, **more: self)
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.Tensor, "record_stream", lambda self, queue: None)
        return self

    def _empty_cache(self) -> None:
        self.emptied += 1


class Event:
    """A point in time: nothing is waited for here."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = time.perf_counter()

    def record(self, queue: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """It has been."""

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds."""
        return (later.at - self.at) * 1e3


class Queue:
    """A name."""

    numbers = itertools.count(1)

    def __init__(self, device: Any = None, name: str = "") -> None:
        self.name = name or f"queue {next(self.numbers)}"

    def record_event(self) -> Event:
        return Event()

    def wait_event(self, event: Event) -> None:
        """It has been."""

    def wait_stream(self, other: Queue) -> None:
        """It has been."""


def _made_here(real: Any) -> Any:
    def made(*arguments: Any, **named: Any) -> Any:
        named.pop("pin_memory", None)
        if "device" in named:
            named["device"] = _here(named["device"])
        return real(*arguments, **named)

    return made


def _moved_here(real: Any) -> Any:
    def moved(self: Any, *arguments: Any, **named: Any) -> Any:
        named.pop("non_blocking", None)
        if "device" in named:
            named["device"] = _here(named["device"])
        return real(self, *map(_here, arguments), **named)

    return moved


@contextmanager
def stand_in_gpu(**facts: Any) -> Iterator[StandInGpu]:
    with pytest.MonkeyPatch.context() as patch:
        yield StandInGpu(**facts).install(patch)


# Kernels


def _add_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    norm: NormWeights,
    eps: float,
    fp8: bool = False,
    offset: torch.Tensor | None = None,
) -> Any:
    if y is not None:
        x.add_(y)
    normed = normalize(x if offset is None else (x + offset).to(x.dtype), norm)
    return quantize_rows(normed) if fp8 else normed


def _rotate(qkv_PX: torch.Tensor, cos_PE: torch.Tensor, sin_PE: torch.Tensor, num_heads: int) -> None:
    heads = qkv_PX.view(len(qkv_PX), 3, num_heads, -1)
    heads[:, :2] = rotate(heads[:, :2], cos_PE, sin_PE)


def _normalized(
    patches_PC: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, padded: int, dtype: torch.dtype
) -> torch.Tensor:
    planes = patches_PC.float().view(len(patches_PC), len(mean), -1)
    values = ((planes - mean[:, None]) / std[:, None]).flatten(1).to(dtype)
    return torch.nn.functional.pad(values, (0, padded - values.shape[1]))


def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """`varlen_attn`, segment by segment."""
    parts = [
        torch.nn.functional.scaled_dot_product_attention(*(x[first:last].transpose(0, 1) for x in (q, k, v)))
        for first, last in itertools.pairwise(cu.tolist())
    ]
    return torch.cat(parts, 1).transpose(0, 1)


def eager_kernels(patch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU alone, in eager steps."""
    import torch.nn.attention.varlen

    from pipeline.tower import attention, fused

    patch.setattr(fused, "add_norm", _add_norm)
    patch.setattr(fused, "rotate_", _rotate)
    patch.setattr(fused, "activate", activate)
    patch.setattr(fused, "activate_fp8", lambda x, kind: quantize_rows(activate(x, kind)))
    patch.setattr(fused, "quantize", quantize_rows)
    patch.setattr(fused, "normalize", _normalized)
    patch.setattr(attention, "varlen_attention", lambda: varlen)
    patch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen)
