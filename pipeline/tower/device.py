"""Device: which one a process takes, and what it is called in a fingerprint."""

from __future__ import annotations

import torch

from ..errors import RequestError
from ..process import name_caches


def device_name(device: torch.device) -> str:
    """The device's model; for a CPU its instruction set, which is what decides bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to encode on.

    Args:
        wanted: auto: the GPU where torch sees one; cuda; cpu.

    Raises:
        RequestError: a GPU is wanted, and torch sees none: never the CPU instead, without a word.
    """
    name_caches()
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"cluster.device: cuda: torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees no GPU here; "
            "cluster.device: cpu encodes on the CPU"
        )
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
