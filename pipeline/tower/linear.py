"""Matrix products against fixed weights: the kernels that a device has for them.

    R rows, K values of a row, N output features. `linear(x_RK, weight, bias_N)` is x · weightᵀ + bias.

torch      cuBLAS on a GPU, MKL on most CPUs
openblas   numpy's OpenBLAS, for fp32 on CPUs of AMD, where MKL is the slower of the two
fp8        e4m3 with a scale for each row of x and of the weight, `torch._scaled_mm`; opt-in

The kernel follows from device, dtype and setting, never from a measurement at run time: it decides bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import functional

from ..errors import RequestError

LinearKernel = Literal["torch", "openblas", "fp8"]
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
FP8_CAPABILITY = (8, 9)
SMALLEST_SCALE = 1e-12  # of a row of zeros
# Rows of so many values are aligned for every kernel here: at a width of 3420 cuBLAS and MKL fall back to slow ones.
ALIGNMENT = {"cuda": 128, "cpu": 32}


class Fp8Rows(NamedTuple):
    """A weight's rows, or an operand's: `values_NK` in float8_e4m3fn times `scale_N1` in float32."""

    values_NK: Tensor
    scale_N1: Tensor


Weight = Tensor | Fp8Rows
Linear = Callable[[Any, Any, Tensor | None], Tensor]


def choose_linear(device: torch.device, dtype: torch.dtype, setting: str = "exact") -> LinearKernel:
    """The kernel of `model.linear: exact` or `fp8`. Raises RequestError: fp8 where there is no kernel for it."""
    if setting == "fp8":
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
            raise RequestError(f"model.linear: fp8: {torch.cuda.get_device_name(device)} has no matrix unit for it")
        if device.type == "cpu" and not has_fp8_on_cpu():
            raise RequestError(f"model.linear: fp8: torch {torch.__version__} scales fp8 by rows on GPUs only")
        return "fp8"
    if device.type == "cpu" and dtype == torch.float32 and cpu_vendor() == "AuthenticAMD" and _has_openblas():
        return "openblas"
    return "torch"


@cache
def has_fp8_on_cpu() -> bool:
    """Whether this torch's CPU kernel takes a scale for each row: 2.11 takes one for a tensor."""
    try:
        fp8_linear(torch.ones(16, 16, dtype=torch.bfloat16), quantize_rows(torch.ones(16, 16)))
    except RuntimeError:
        return False
    return True


def linear_of(kernel: LinearKernel) -> Linear:
    kernels: dict[str, Linear] = {"torch": functional.linear, "openblas": openblas_linear, "fp8": fp8_linear}
    return kernels[kernel]


def openblas_linear(x_RK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """float32 on a CPU, with as many threads as torch has been told to use."""
    _use_threads(torch.get_num_threads())
    out_RN = torch.empty(x_RK.shape[0], weight_NK.shape[0])
    np.dot(x_RK.numpy(), weight_NK.numpy().T, out=out_RN.numpy())
    return out_RN if bias_N is None else out_RN.add_(bias_N)


def quantize_rows(x_RK: Tensor) -> Fp8Rows:
    """Each row scaled so that its largest value is the largest of e4m3."""
    wide_RK = x_RK.float()
    scale_R1 = (wide_RK.abs().amax(-1, keepdim=True) / FP8_MAX).clamp_min(SMALLEST_SCALE)
    values_RK = (wide_RK / scale_R1).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return Fp8Rows(values_RK, scale_R1)


def fp8_linear(x_RK: Tensor | Fp8Rows, weight: Fp8Rows, bias_N: Tensor | None = None) -> Tensor:
    """bfloat16 in, or rows that a kernel has quantized already, and bfloat16 out; K and N must be multiples of 16."""
    x8_RK, scale_R1 = x_RK if isinstance(x_RK, Fp8Rows) else quantize_rows(x_RK)
    return torch._scaled_mm(
        x8_RK,
        weight.values_NK.t(),
        scale_a=scale_R1,
        scale_b=weight.scale_N1.t(),
        bias=bias_N,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def laid_out(weight_NK: Tensor, kernel: LinearKernel) -> Weight:
    """The weight as its kernel reads it best.

    On a CPU float32's memory is transposed, so that products need not pack it. Narrow dtypes stay as they are: torch
    has no fast product for transposed ones (ten times slower, measured).
    """
    if kernel == "fp8":
        return quantize_rows(weight_NK)
    transposed = weight_NK.device.type == "cpu" and weight_NK.dtype == torch.float32
    return weight_NK.t().contiguous().t() if transposed else weight_NK


def aligned(size: int, device: torch.device) -> int:
    step = ALIGNMENT.get(device.type, 128)
    return -(-size // step) * step


def pad_rows(tensor: Tensor, rows: int) -> Tensor:
    """Zero rows at the end. With zero rows in gate and up and zero columns in down, the MLP is the same function."""
    return functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, rows - tensor.shape[0]))


@cache
def cpu_vendor() -> str:
    """Returns the CPU's vendor as /proc/cpuinfo spells it; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


@cache
def _has_openblas() -> bool:
    return any("numpy" in str(library.filepath) for library in _controller().lib_controllers)


def openblas_version() -> str:
    """Returns the version of numpy's own copy, and its kernels' name: both decide bits."""
    library = next(library for library in _controller().lib_controllers if "numpy" in str(library.filepath))
    return f"openblas {library.version} {library.architecture}"


_threads = 0


def _use_threads(count: int) -> None:
    global _threads
    if count != _threads:
        for library in _controller().lib_controllers:
            library.set_num_threads(count)
        _threads = count
