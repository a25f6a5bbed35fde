"""Attention within segments: the kernels, and which of them a device takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import RequestError
from .pack_plan import Kernel, Run, Segments

FA4_PACKAGE = "flash-attn-4"
FA4_CAPABILITIES = (9, 10)  # the major numbers of GPUs that it has kernels for


@cache
def varlen_attention() -> Callable[..., Any] | None:
    """`torch.nn.attention.varlen.varlen_attn`, None before torch 2.10.

    Imported on first use: its module loads Dynamo and sympy, some five seconds that a process without a GPU has no use
    for.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if "num_splits" in inspect.signature(varlen_attn).parameters:  # since torch 2.12
        return partial(varlen_attn, num_splits=1)  # an image's bits do not depend on its neighbours
    return varlen_attn


def choose_kernel(device: torch.device, dtype: torch.dtype, wanted: str = "auto") -> Kernel:
    """The kernel of `model.attention`: auto is varlen where torch has it for this device and dtype, else dense.

    Raises:
        RequestError: another one is wanted than there can be here.
    """
    auto = _choose_auto(device, dtype)
    if wanted == "auto":
        return auto
    if auto == "dense":
        raise RequestError(
            f"model.attention: {wanted}: needs a GPU since Ampere, dtype bfloat16 and torch 2.10; here it is {device} "
            f"in {str(dtype).removeprefix('torch.')} with torch {torch.__version__}"
        )
    if wanted == "fa4":
        if torch.cuda.get_device_capability(device)[0] not in FA4_CAPABILITIES:
            raise RequestError(
                f"model.attention: fa4: {torch.cuda.get_device_name(device)} has no kernel of it; use auto"
            )
        _activate_fa4()
        return "fa4"
    return "cudnn" if wanted == "cudnn" else "varlen"


def kernel_version(kernel: Kernel) -> str:
    """The kernel's name, and the version of the library that it comes from where that is not torch: it decides bits."""
    if kernel == "fa4":
        return f"fa4 {metadata.version(FA4_PACKAGE)}"
    return f"cudnn {torch.backends.cudnn.version()}" if kernel == "cudnn" else kernel


def _activate_fa4() -> None:
    """From now on torch's varlen attention is FA4's in this process. Raises RequestError: its package is not here."""
    try:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl("FA4")
    except Exception as error:
        raise RequestError(
            f"model.attention: fa4: {type(error).__name__}: {error}; pip install {FA4_PACKAGE}, or use auto"
        ) from error


def _choose_auto(device: torch.device, dtype: torch.dtype) -> Kernel:
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "dense"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "dense"
    return "varlen" if varlen_attention() is not None else "dense"


def attend(q_PHE: Tensor, k_PHE: Tensor, v_PHE: Tensor, segments: Segments) -> Tensor:
    """Attention within segments; [P, H, E] in, [P, H·E] out."""
    if segments.cu_seqlens is not None:
        return (_attend_cudnn if segments.by_cudnn else _attend_varlen)(q_PHE, k_PHE, v_PHE, segments)
    if len(segments.runs) == 1 and segments.runs[0].rows is None:
        (run,) = segments.runs
        q, k, v = (x_PHE.unflatten(0, (run.count, run.length)).transpose(1, 2) for x_PHE in (q_PHE, k_PHE, v_PHE))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(q_PHE.shape[0], -1)
    out_PD = torch.empty(q_PHE.shape[0], q_PHE.shape[1] * q_PHE.shape[2], dtype=q_PHE.dtype, device=q_PHE.device)
    for run in segments.runs:
        size = run.count * run.length

        def batch(x_PHE: Tensor, run: Run = run, size: int = size) -> Tensor:
            rows = x_PHE[run.start : run.start + size] if run.rows is None else x_PHE.index_select(0, run.rows)
            return rows.unflatten(0, (run.count, run.length)).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(batch(q_PHE), batch(k_PHE), batch(v_PHE))
        attended = attended.transpose(1, 2).reshape(size, -1)
        if run.rows is None:
            out_PD[run.start : run.start + size] = attended
        else:
            out_PD.index_copy_(0, run.rows, attended)
    return out_PD


def _attend_cudnn(q_PHE: Tensor, k_PHE: Tensor, v_PHE: Tensor, segments: Segments) -> Tensor:
    """By cuDNN: its dense kernel for a lone segment, else the one for segments of unequal length."""
    assert segments.cu_seqlens is not None
    if len(segments.cu_seqlens) == 2:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            q, k, v = (x_PHE.transpose(0, 1)[None] for x_PHE in (q_PHE, k_PHE, v_PHE))
            return functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
    ends, longest = segments.cu_seqlens, segments.max_length
    out: Any = cudnn_varlen()(q_PHE, k_PHE, v_PHE, None, ends, ends, longest, longest, False)
    return out[0].flatten(1)


def cudnn_varlen() -> Any:
    return torch.ops.aten._cudnn_attention_forward


def _attend_varlen(q_PHE: Tensor, k_PHE: Tensor, v_PHE: Tensor, segments: Segments) -> Tensor:
    attention = varlen_attention()
    assert attention is not None and segments.cu_seqlens is not None
    cu_seqlens, longest = segments.cu_seqlens, segments.max_length
    out_PHE = attention(q_PHE, k_PHE, v_PHE, cu_seqlens, cu_seqlens, longest, longest)
    assert isinstance(out_PHE, Tensor)
    return out_PHE.flatten(1)
