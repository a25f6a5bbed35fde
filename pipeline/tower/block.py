"""Block: one transformer block's weights, and its two halves around attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .linear import Linear, LinearKernel, Weight, aligned, laid_out, pad_rows

RMS_NORM_EPS = 1e-6  # the reference hard-codes it, whatever the checkpoint's rms_norm_eps says


class _Block:
    """The weights of one transformer block; gate and up as one matrix, their rows padded to an aligned number."""

    def __init__(self, weights: dict[str, Tensor], number: int, kernel: LinearKernel) -> None:
        def take(name: str) -> Tensor:
            return weights.pop(f"blocks.{number}.{name}")

        def gate_and_up(kind: str) -> Tensor:
            return torch.cat([pad_rows(take(f"mlp.{name}_proj.{kind}"), rows) for name in ("gate", "up")])

        down = take("mlp.down_proj.weight")
        rows = aligned(down.shape[1], down.device)
        self.norm1, self.norm2 = take("norm1.weight"), take("norm2.weight")
        self.qkv: Weight = laid_out(take("attn.qkv.weight"), kernel)
        self.proj: Weight = laid_out(take("attn.proj.weight"), kernel)
        self.gate_up: Weight = laid_out(gate_and_up("weight"), kernel)
        self.down: Weight = laid_out(pad_rows(down.t(), rows).t().contiguous(), kernel)
        self.qkv_bias, self.proj_bias = take("attn.qkv.bias"), take("attn.proj.bias")
        self.gate_up_bias, self.down_bias = gate_and_up("bias"), take("mlp.down_proj.bias")


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Mean square in fp32, rounded to the input's dtype, times the weight."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_NORM_EPS)
    return (wide * scale).to(x.dtype) * weight


def rotate(x_PHE: Tensor, cos_PE: Tensor, sin_PE: Tensor) -> Tensor:
    """Rotary positions on pairs (i, i + E/2), in fp32. `x` may hold queries and keys at once, [P, 2, H, E]."""
    shape = (x_PHE.shape[0], *([1] * (x_PHE.dim() - 2)), cos_PE.shape[1])
    cos, sin = cos_PE.view(shape), sin_PE.view(shape)
    first, second = x_PHE.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_PHE.dtype)


def before_attention(
    x_PD: Tensor,
    norm: Tensor,
    weight: Weight,
    bias: Tensor,
    cos_PE: Tensor,
    sin_PE: Tensor,
    num_heads: int,
    linear: Linear = functional.linear,
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, qkv and rotary: three [P, H, E] tensors; the values are a view of the qkv product."""
    qkv = linear(rms_norm(x_PD, norm), weight, bias).view(x_PD.shape[0], 3, num_heads, -1)
    turned = rotate(qkv[:, :2], cos_PE, sin_PE)
    return turned[:, 0], turned[:, 1], qkv[:, 2]


def after_attention(
    x_PD: Tensor,
    attended_PD: Tensor,
    proj: Weight,
    proj_bias: Tensor,
    norm: Tensor,
    gate_up: Weight,
    gate_up_bias: Tensor,
    down: Weight,
    down_bias: Tensor,
    linear: Linear = functional.linear,
) -> Tensor:
    """Projection, residual, and the SiLU-gated MLP with its residual."""
    x_PD = x_PD + linear(attended_PD, proj, proj_bias)
    gate, up = linear(rms_norm(x_PD, norm), gate_up, gate_up_bias).chunk(2, dim=-1)
    return x_PD + linear(functional.silu(gate).mul_(up), down, down_bias)
