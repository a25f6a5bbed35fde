"""Actors on made-up GPUs: the real stages, on the CPU, and some that are bad in a way that is told."""

from __future__ import annotations

import os
import time
from typing import Any

from pipeline.run.actors import EncodeActor


class OnMadeUpGpu(EncodeActor):
    """Encodes on the CPU, whatever device it is told; a bad one fails every call."""

    def __init__(self, settings: Any, number: int, device: str, calls: int) -> None:
        import ray

        assert device == "cuda"
        self._gpus = [int(one) for one in ray.get_gpu_ids()]
        assert len(self._gpus) == 1
        super().__init__(settings, number, "cpu", calls)

    def encode(self, prepared: Any, shards: Any) -> Any:
        if os.environ.get("MADE_UP_BAD_GPU") == str(self._gpus[0]):
            with open(os.environ["MADE_UP_MARKER"], "ab") as marker:
                marker.write(b".")
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        time.sleep(float(os.environ.get("MADE_UP_SECONDS", "0")))
        return super().encode(prepared, shards)


class Holder:
    """Another job's actor, which holds what it was given."""

    def holds(self) -> bool:
        return True
