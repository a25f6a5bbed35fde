"""The tower's passes through memory on a GPU, fused: what lies between two matrix products is one Triton kernel.

    P patches, D width of the tower, H heads, E width of a head, I width of the MLP, C values of a patch.

Each kernel reads what it needs once and writes its result once, with fp32 in between. A program handles whole rows, so
a row's bits depend on neither the number of rows nor its neighbours, and no kernel is chosen or tuned by timing.
Bytes for a patch and a block of the 7B tower in bf16: norms 2 · 4 · D · 2, rotary 4 · D · 2, SwiGLU 3 · I · 2: 51 KB.

Imported only where these kernels run, because Triton is not everywhere where torch is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block import NormWeights
from .families.family import Activation

ACTIVATION_BLOCK = 1024


@triton.jit
def _add_norm(
    x_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    width,
    eps,
    ADD: tl.constexpr,
    LAYER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    place = row * width + columns
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + place, rounded, mask=inside)
        x = rounded.to(tl.float32)  # the norm is of the residual stream as it is kept
    if LAYER:
        x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    value = x * scale * weight
    if LAYER:
        value += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    row_stride,
    vectors,
    half,
    VECTORS: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    vector = tl.arange(0, VECTORS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    inside = (vector < vectors) & (pair < half)
    angle = row * half + pair
    cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0)
    first_ptr = qkv_ptr + row * row_stride + vector * (2 * half) + pair
    second_ptr = first_ptr + half
    first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(second_ptr, mask=inside, other=0.0).to(tl.float32)
    tl.store(first_ptr, (first * cos - second * sin).to(qkv_ptr.dtype.element_ty), mask=inside)
    tl.store(second_ptr, (second * cos + first * sin).to(qkv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + columns, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x_ptr, width, TANH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    place = x_ptr + row * width + columns
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    # 0.5 · (1 + tanh(z)) is the logistic function of 2·z, z = √(2/π) · (x + 0.044715 · x³).
    steep = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x) if TANH else 1.702 * x
    tl.store(place, (x / (1.0 + tl.exp(-steep))).to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _normalize(
    patches_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    values,
    channel_values,
    padded,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < values
    value = tl.load(patches_ptr + row * values + columns, mask=inside, other=0).to(tl.float32)
    mean = tl.load(mean_ptr + columns // channel_values, mask=inside, other=0.0)
    std = tl.load(std_ptr + columns // channel_values, mask=inside, other=1.0)
    normal = tl.div_rn(value - mean, std)  # a plain division is an approximate one on a GPU
    normal = tl.where(inside, normal, 0.0)
    tl.store(out_ptr + row * padded + columns, normal.to(out_ptr.dtype.element_ty), mask=columns < padded)


def add_norm(x_PD: Tensor, y_PD: Tensor | None, norm: NormWeights, eps: float) -> Tensor:
    """Adds `y` to the residual stream `x` in place, if given; returns its norm, [P, D], rounded once at the end."""
    rows, width = x_PD.shape
    out_PD = torch.empty_like(x_PD)
    _add_norm[(rows,)](
        x_PD,
        x_PD if y_PD is None else y_PD,
        norm.weight,
        norm.weight if norm.bias is None else norm.bias,
        out_PD,
        width,
        eps,
        ADD=y_PD is not None,
        LAYER=norm.bias is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
    )
    return out_PD


def rotate_(qkv_PX: Tensor, cos_PE: Tensor, sin_PE: Tensor, num_heads: int) -> None:
    """Rotary positions on the queries and keys of [P, 3·D], in place."""
    vectors, half = 2 * num_heads, cos_PE.shape[1]
    _rotate[(qkv_PX.shape[0],)](
        qkv_PX,
        cos_PE,
        sin_PE,
        qkv_PX.stride(0),
        vectors,
        half,
        VECTORS=triton.next_power_of_2(vectors),
        HALF=triton.next_power_of_2(half),
        num_warps=4,
    )


def activate(x_PI: Tensor, activation: Activation) -> Tensor:
    """The MLP's activation, `block.activate`: gated [P, 2·I] to [P, I], else in place."""
    if activation == "silu_gated":
        return silu_mul(x_PI)
    rows, width = x_PI.shape
    grid = (rows, triton.cdiv(width, ACTIVATION_BLOCK))
    _gelu[grid](x_PI, width, TANH=activation == "gelu_tanh", BLOCK=ACTIVATION_BLOCK, num_warps=4)
    return x_PI


def silu_mul(gate_up_PX: Tensor) -> Tensor:
    """silu(gate) · up: [P, 2·I] in, [P, I] out."""
    rows, width = gate_up_PX.shape[0], gate_up_PX.shape[1] // 2
    out_PI = torch.empty(rows, width, dtype=gate_up_PX.dtype, device=gate_up_PX.device)
    _silu_mul[(rows, triton.cdiv(width, ACTIVATION_BLOCK))](
        gate_up_PX, out_PI, width, BLOCK=ACTIVATION_BLOCK, num_warps=4
    )
    return out_PI


def normalize(patches_PC: Tensor, mean: Tensor, std: Tensor, padded: int, dtype: torch.dtype) -> Tensor:
    """uint8 [P, C] to normalised [P, padded], zeros behind the C values; mean and std float32 [channels]."""
    rows, values = patches_PC.shape
    out_PC = torch.empty(rows, padded, dtype=dtype, device=patches_PC.device)
    _normalize[(rows,)](
        patches_PC,
        mean,
        std,
        out_PC,
        values,
        values // len(mean),
        padded,
        BLOCK=triton.next_power_of_2(padded),
        num_warps=4,
    )
    return out_PC
