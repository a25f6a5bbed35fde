"""Block: one transformer block, `x + project(attend(q, k, v))`, then `x + mlp(norm(x))`; its weights, and its steps.

The steps before and after attention are functions of their own: a CPU runs them over rows in chunks, and torch.compile
takes each as one graph. Another family's norm or MLP goes here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .linear import Linear, LinearKernel, Weight, aligned, laid_out, pad_rows

Rotary = tuple[Tensor, Tensor]  # cosines and sines, float32 [P, E/2]

RMS_NORM_EPS = 1e-6  # the reference hard-codes it, whatever the checkpoint's rms_norm_eps says


class BlockWeights(NamedTuple):
    """The weights of one transformer block; gate and up as one matrix, their rows padded to an aligned number.

    A tuple, so that a compiled function takes the weights of every block without being compiled again.
    """

    norm1: Tensor
    qkv: Weight
    qkv_bias: Tensor
    proj: Weight
    proj_bias: Tensor
    norm2: Tensor
    gate_up: Weight
    gate_up_bias: Tensor
    down: Weight
    down_bias: Tensor


def take_block(weights: dict[str, Tensor], number: int, kernel: LinearKernel) -> BlockWeights:
    """Takes one block's tensors out of a tower's, each laid out as the products' kernel wants it."""

    def take(name: str) -> Tensor:
        return weights.pop(f"blocks.{number}.{name}")

    def gate_and_up(kind: str) -> Tensor:
        return torch.cat([pad_rows(take(f"mlp.{name}_proj.{kind}"), rows) for name in ("gate", "up")])

    down = take("mlp.down_proj.weight")
    rows = aligned(down.shape[1], down.device)
    return BlockWeights(
        norm1=take("norm1.weight"),
        qkv=laid_out(take("attn.qkv.weight"), kernel),
        qkv_bias=take("attn.qkv.bias"),
        proj=laid_out(take("attn.proj.weight"), kernel),
        proj_bias=take("attn.proj.bias"),
        norm2=take("norm2.weight"),
        gate_up=laid_out(gate_and_up("weight"), kernel),
        gate_up_bias=gate_and_up("bias"),
        down=laid_out(pad_rows(down.t(), rows).t().contiguous(), kernel),
        down_bias=take("mlp.down_proj.bias"),
    )


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


def queries_keys_values(
    x_PD: Tensor, block: BlockWeights, rotary: Rotary, num_heads: int, linear: Linear = functional.linear
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, qkv and rotary: three [P, H, E] tensors; the values are a view of the qkv product."""
    qkv = linear(rms_norm(x_PD, block.norm1), block.qkv, block.qkv_bias).view(x_PD.shape[0], 3, num_heads, -1)
    turned = rotate(qkv[:, :2], *rotary)
    return turned[:, 0], turned[:, 1], qkv[:, 2]


def project_and_mlp(
    x_PD: Tensor, attended_PD: Tensor, block: BlockWeights, linear: Linear = functional.linear
) -> Tensor:
    """Adds the projected attention, then the MLP, to the residual stream."""
    x_PD = x_PD + linear(attended_PD, block.proj, block.proj_bias)
    return x_PD + gated_mlp(rms_norm(x_PD, block.norm2), block, linear)


def gated_mlp(x_PD: Tensor, block: BlockWeights, linear: Linear = functional.linear) -> Tensor:
    """The SiLU-gated MLP."""
    gate, up = linear(x_PD, block.gate_up, block.gate_up_bias).chunk(2, dim=-1)
    return linear(functional.silu(gate).mul_(up), block.down, block.down_bias)
