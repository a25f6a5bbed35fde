"""Merger: the residual stream to tokens, four patches to one. A tower has one for each stream of its output.

The main stream's merger norms patches and then puts four side by side (the shuffle); the further streams' norm what
lies side by side already. `pre_merger` is the same for all: the residual stream side by side, before any norm.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from .block import NormWeights, normalize, take_norm
from .linear import Linear, LinearKernel, Weight, laid_out


class Merger(NamedTuple):
    """A merger's weights. Its norm is over one patch, or over the whole row where it comes after the shuffle."""

    norm: NormWeights
    first: Weight
    first_bias: Tensor
    second: Weight
    second_bias: Tensor


def take_merger(weights: dict[str, Tensor], name: str, kernel: LinearKernel) -> Merger:
    """Takes one merger's tensors out of a tower's."""
    return Merger(
        norm=take_norm(weights, f"{name}.ln_q"),
        first=laid_out(weights.pop(f"{name}.mlp.0.weight"), kernel),
        first_bias=weights.pop(f"{name}.mlp.0.bias"),
        second=laid_out(weights.pop(f"{name}.mlp.2.weight"), kernel),
        second_bias=weights.pop(f"{name}.mlp.2.bias"),
    )


def merge(x_PD: Tensor, merger: Merger, linear: Linear) -> Tensor:
    """The residual stream [P, D] to tokens [M, O]."""
    norm_width, merged_width = merger.norm.weight.shape[0], merger.first_bias.shape[0]
    return merge_normed(normalize(x_PD.view(-1, norm_width), merger.norm).view(-1, merged_width), merger, linear)


def merge_normed(x_MX: Tensor, merger: Merger, linear: Linear) -> Tensor:
    """`merge` behind its norm. The activation is the exact GELU, whatever `hidden_act` says."""
    return linear(functional.gelu(linear(x_MX, merger.first, merger.first_bias)), merger.second, merger.second_bias)
