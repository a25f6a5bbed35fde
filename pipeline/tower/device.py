"""Device: which one a process takes, and what it is called in a fingerprint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..errors import RequestError
from ..process import name_caches


def device_name(device: torch.device) -> str:
    """The device's model; for a CPU its instruction set, which is what decides bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the calling thread's current one, for as long as it is entered; nothing for a CPU.

    Triton launches on the current device and its queue, torch on the tensor's: on two GPUs they must be the same.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FAST_BFLOAT16 = (8, 0)  # compute capability of the first GPUs that multiply it


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and computation.

    Args:
        wanted: `bfloat16`, `float32`, or `auto`: bfloat16 where the device multiplies it fast (GPUs since Ampere, CPUs
            with AMX or AVX512-BF16), else float32; on other CPUs it runs at an eighth of the speed.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= FAST_BFLOAT16
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as the configuration spells it."""
    return str(dtype).removeprefix("torch.")


def device_named(wanted: str | torch.device) -> torch.device:
    """A device as Python's callers name it: `cpu`, `cuda`, `cuda:1`. Raises RequestError: there is no such one here."""
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise RequestError(f"device: {wanted}: must be cpu, cuda, or a GPU's number as in cuda:0") from error
    count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda" and not count:
        raise RequestError(
            f"device: {wanted}: torch {torch.__version__} sees no GPU here; device='cpu' encodes without"
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RequestError(f"device: {wanted}: there are {count} GPUs here, from cuda:0 on")
    return device


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
