"""Block: one transformer block, `x + project(attend(q, k, v))`, then `x + mlp(norm(x))`; its weights, and its steps.

The steps before and after attention are functions of their own: a CPU runs them over rows in chunks, and torch.compile
takes each as one graph. The norms and activations of all families are here; which it is, the configuration says.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .families.family import Activation
from .linear import Linear, LinearKernel, Weight, aligned, laid_out, pad_rows

Rotary = tuple[Tensor, Tensor]  # cosines and sines, float32 [P, E/2]

NORM_EPS = 1e-6  # the reference hard-codes it, whatever the checkpoint's rms_norm_eps says
QUICK_GELU = 1.702


class NormWeights(NamedTuple):
    """Without a bias an RMSNorm, with one a LayerNorm."""

    weight: Tensor
    bias: Tensor | None


class BlockKind(NamedTuple):
    """Facts that the blocks of a tower have in common, besides their shapes."""

    num_heads: int
    activation: Activation


class BlockWeights(NamedTuple):
    """The weights of one transformer block, the rows of the MLP's first matrix padded to an aligned number.

    `up` is gate and up as one matrix where the MLP is gated. A tuple, so that a compiled function takes the weights of
    every block without being compiled again.
    """

    norm1: NormWeights
    qkv: Weight
    qkv_bias: Tensor
    proj: Weight
    proj_bias: Tensor
    norm2: NormWeights
    up: Weight
    up_bias: Tensor
    down: Weight
    down_bias: Tensor


def take_block(weights: dict[str, Tensor], number: int, kernel: LinearKernel) -> BlockWeights:
    """Takes one block's tensors out of a tower's, each laid out as the products' kernel wants it."""

    def take(name: str) -> Tensor:
        return weights.pop(f"blocks.{number}.{name}")

    gated = f"blocks.{number}.mlp.gate_proj.weight" in weights
    first, last = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj") if gated else (("mlp.fc1",), "mlp.fc2")
    down = take(f"{last}.weight")
    rows = aligned(down.shape[1], down.device)

    def up(kind: str) -> Tensor:
        return torch.cat([pad_rows(take(f"{name}.{kind}"), rows) for name in first])

    return BlockWeights(
        norm1=take_norm(weights, f"blocks.{number}.norm1"),
        qkv=laid_out(take("attn.qkv.weight"), kernel),
        qkv_bias=take("attn.qkv.bias"),
        proj=laid_out(take("attn.proj.weight"), kernel),
        proj_bias=take("attn.proj.bias"),
        norm2=take_norm(weights, f"blocks.{number}.norm2"),
        up=laid_out(up("weight"), kernel),
        up_bias=up("bias"),
        down=laid_out(pad_rows(down.t(), rows).t().contiguous(), kernel),
        down_bias=take(f"{last}.bias"),
    )


def take_norm(weights: dict[str, Tensor], name: str) -> NormWeights:
    return NormWeights(weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias", None))


def normalize(x: Tensor, norm: NormWeights) -> Tensor:
    """The norm over the last dimension, in fp32 within and rounded as the reference rounds."""
    if norm.bias is None:
        return rms_norm(x, norm.weight)
    return functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, NORM_EPS)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Mean square in fp32, rounded to the input's dtype, times the weight."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
    return (wide * scale).to(x.dtype) * weight


def rotate(x_PHE: Tensor, cos_PE: Tensor, sin_PE: Tensor) -> Tensor:
    """Rotary positions on pairs (i, i + E/2), in fp32. `x` may hold queries and keys at once, [P, 2, H, E]."""
    shape = (x_PHE.shape[0], *([1] * (x_PHE.dim() - 2)), cos_PE.shape[1])
    cos, sin = cos_PE.view(shape), sin_PE.view(shape)
    first, second = x_PHE.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_PHE.dtype)


def queries_keys_values(
    x_PD: Tensor, block: BlockWeights, rotary: Rotary, kind: BlockKind, linear: Linear = functional.linear
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, qkv and rotary: three [P, H, E] tensors; the values are a view of the qkv product."""
    qkv = linear(normalize(x_PD, block.norm1), block.qkv, block.qkv_bias).view(x_PD.shape[0], 3, kind.num_heads, -1)
    turned = rotate(qkv[:, :2], *rotary)
    return turned[:, 0], turned[:, 1], qkv[:, 2]


def project_and_mlp(
    x_PD: Tensor, attended_PD: Tensor, block: BlockWeights, kind: BlockKind, linear: Linear = functional.linear
) -> Tensor:
    """Adds the projected attention, then the MLP, to the residual stream."""
    x_PD = x_PD + linear(attended_PD, block.proj, block.proj_bias)
    inner_PI = activate(linear(normalize(x_PD, block.norm2), block.up, block.up_bias), kind.activation)
    return x_PD + linear(inner_PI, block.down, block.down_bias)


def activate(x_PI: Tensor, activation: Activation) -> Tensor:
    """The MLP's activation; gate and up side by side where it is gated, [P, 2·I] in."""
    if activation == "silu_gated":
        gate, up = x_PI.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)
    if activation == "quick_gelu":
        return torch.sigmoid(x_PI * QUICK_GELU).mul_(x_PI)
    return functional.gelu(x_PI, approximate="tanh")
