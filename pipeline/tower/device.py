"""Device: which one a process takes, and what it is called in a fingerprint."""

from __future__ import annotations

import torch


def device_name(device: torch.device) -> str:
    """The device's model; for a CPU its instruction set, which is what decides bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def choose_device() -> torch.device:
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
