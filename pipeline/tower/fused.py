"""The tower's passes through memory on a GPU, fused: what lies between two matrix products is one Triton kernel.

    P patches, D width of the tower, H heads, E width of a head, I width of the MLP, C values of a patch.

Each kernel reads what it needs once and writes its result once, with fp32 in between. A program handles whole rows, so
a row's bits depend on neither the number of rows nor its neighbours, and no kernel is chosen or tuned by timing. What
is no multiple of 16 (half a head of 40, a patch of 588 values) is a compile-time constant: only so can the compiler
tell that vectors of 16 bytes, or of 8, are aligned.
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
from .linear import FP8_MAX, SMALLEST_SCALE, Fp8Rows

ACTIVATION_BLOCK = 1024
LARGEST = tl.constexpr(FP8_MAX)
SMALLEST = tl.constexpr(SMALLEST_SCALE)


@triton.jit
def _quantized(value):
    """A row's values and its scale, as `linear.quantize_rows` has them: a NaN makes the whole row NaN there as here."""
    largest = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)  # as bits, in which a NaN is above all numbers
    scale = tl.div_rn(largest.to(tl.float32, bitcast=True), LARGEST)
    scale = tl.maximum(scale, SMALLEST, propagate_nan=tl.PropagateNan.ALL)
    scaled = tl.clamp(tl.div_rn(value, scale), -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return scaled.to(tl.float8e4nv), scale


@triton.jit
def _add_norm(
    x_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    scale_ptr,
    offset_ptr,
    width,
    eps,
    ADD: tl.constexpr,
    OFFSET: tl.constexpr,
    LAYER: tl.constexpr,
    FP8: tl.constexpr,
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
    if OFFSET:
        x += tl.load(offset_ptr + columns, mask=inside, other=0.0)
    if LAYER:
        x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    value = x * scale * weight
    if LAYER:
        value += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if FP8:
        # The norm as it would be kept is what is quantized.
        value, row_scale = _quantized(value.to(x_ptr.dtype.element_ty).to(tl.float32))
        tl.store(scale_ptr + row, row_scale)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    row_stride,
    VECTORS: tl.constexpr,
    HALF: tl.constexpr,
    VECTORS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    vector = tl.arange(0, VECTORS_BLOCK)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (vector < VECTORS) & (pair < HALF)
    angle = row * HALF + pair
    cos = tl.load(cos_ptr + angle, mask=pair < HALF, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=pair < HALF, other=0.0)
    first_ptr = qkv_ptr + row * row_stride + vector * (2 * HALF) + pair
    second_ptr = first_ptr + HALF
    first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(second_ptr, mask=inside, other=0.0).to(tl.float32)
    tl.store(first_ptr, (first * cos - second * sin).to(qkv_ptr.dtype.element_ty), mask=inside)
    tl.store(second_ptr, (second * cos + first * sin).to(qkv_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _silu(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _gelu_of(x, TANH: tl.constexpr):
    # 0.5 · (1 + tanh(z)) is the logistic function of 2·z, z = √(2/π) · (x + 0.044715 · x³).
    steep = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x) if TANH else 1.702 * x
    return x / (1.0 + tl.exp(-steep))


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + columns, _silu(gate, up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x_ptr, width, TANH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    place = x_ptr + row * width + columns
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, _gelu_of(x, TANH).to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _activate_fp8(x_ptr, out_ptr, scale_ptr, width, GATED: tl.constexpr, TANH: tl.constexpr, BLOCK: tl.constexpr):
    """A row in one program, because its scale is of all its values."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    if GATED:
        gate = tl.load(x_ptr + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(x_ptr + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
        value = _silu(gate, up)
    else:
        value = _gelu_of(tl.load(x_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32), TANH)
    quantized, scale = _quantized(value.to(x_ptr.dtype.element_ty).to(tl.float32))
    tl.store(out_ptr + row * width + columns, quantized, mask=inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _quantize(x_ptr, out_ptr, scale_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    place = row * width + columns
    quantized, scale = _quantized(tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32))
    tl.store(out_ptr + place, quantized, mask=inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def _normalize(
    patches_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    VALUES: tl.constexpr,
    CHANNEL_VALUES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < VALUES
    value = tl.load(patches_ptr + row * VALUES + columns, mask=inside, other=0).to(tl.float32)
    mean = tl.load(mean_ptr + columns // CHANNEL_VALUES, mask=inside, other=0.0)
    std = tl.load(std_ptr + columns // CHANNEL_VALUES, mask=inside, other=1.0)
    normal = tl.div_rn(value - mean, std)  # a plain division is an approximate one on a GPU
    normal = tl.where(inside, normal, 0.0)
    tl.store(out_ptr + row * PADDED + columns, normal.to(out_ptr.dtype.element_ty), mask=columns < PADDED)


def add_norm(
    x_PD: Tensor,
    y_PD: Tensor | None,
    norm: NormWeights,
    eps: float,
    fp8: bool = False,
    offset_D: Tensor | None = None,
) -> Tensor | Fp8Rows:
    """Adds `y` to the residual stream `x` in place, if given; returns its norm, [P, D], rounded once at the end.

    Args:
        offset_D: float32, what the stream lacks: the norm is of their sum, and the stream stays without it.
        fp8: the norm is quantized by rows, as `quantize_rows` would.
    """
    rows, width = x_PD.shape
    out_PD, scale_P1 = _rows_like(x_PD, width, fp8)
    _add_norm[(rows,)](
        x_PD,
        x_PD if y_PD is None else y_PD,
        norm.weight,
        norm.weight if norm.bias is None else norm.bias,
        out_PD,
        scale_P1,
        norm.weight if offset_D is None else offset_D,
        width,
        eps,
        ADD=y_PD is not None,
        OFFSET=offset_D is not None,
        LAYER=norm.bias is not None,
        FP8=fp8,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
    )
    return Fp8Rows(out_PD, scale_P1) if fp8 else out_PD


def _rows_like(x_PX: Tensor, width: int, fp8: bool) -> tuple[Tensor, Tensor]:
    """Room for rows of a kernel's result, and for their scales."""
    rows, device = x_PX.shape[0], x_PX.device
    out_PX = torch.empty(rows, width, dtype=torch.float8_e4m3fn if fp8 else x_PX.dtype, device=device)
    return out_PX, torch.empty(rows if fp8 else 0, 1, dtype=torch.float32, device=device)


def quantize(x_PX: Tensor) -> Fp8Rows:
    """`linear.quantize_rows` in one pass, of contiguous rows."""
    rows, width = x_PX.shape
    out_PX, scale_P1 = _rows_like(x_PX, width, True)
    _quantize[(rows,)](x_PX, out_PX, scale_P1, width, BLOCK=triton.next_power_of_2(width), num_warps=4)
    return Fp8Rows(out_PX, scale_P1)


def rotate_(qkv_PX: Tensor, cos_PE: Tensor, sin_PE: Tensor, num_heads: int) -> None:
    """Rotary positions on the queries and keys of [P, 3·D], in place."""
    vectors, half = 2 * num_heads, cos_PE.shape[1]
    _rotate[(qkv_PX.shape[0],)](
        qkv_PX,
        cos_PE,
        sin_PE,
        qkv_PX.stride(0),
        VECTORS=vectors,
        HALF=half,
        VECTORS_BLOCK=triton.next_power_of_2(vectors),
        HALF_BLOCK=triton.next_power_of_2(half),
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


def activate_fp8(x_PI: Tensor, activation: Activation) -> Fp8Rows:
    """`activate`, quantized by rows: what a product in fp8 takes."""
    gated = activation == "silu_gated"
    width = x_PI.shape[1] // 2 if gated else x_PI.shape[1]
    out_PI, scale_P1 = _rows_like(x_PI, width, True)
    _activate_fp8[(x_PI.shape[0],)](
        x_PI,
        out_PI,
        scale_P1,
        width,
        GATED=gated,
        TANH=activation == "gelu_tanh",
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
    )
    return Fp8Rows(out_PI, scale_P1)


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
        VALUES=values,
        CHANNEL_VALUES=values // len(mean),
        PADDED=padded,
        BLOCK=triton.next_power_of_2(padded),
        num_warps=4,
    )
    return out_PC
