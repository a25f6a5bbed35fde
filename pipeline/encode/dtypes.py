"""How tokens are stored: a float dtype, or int8 or fp8 with a scale for each token.

M tokens, O values of a token. A stored value times its token's scale is the value.
"""

from __future__ import annotations

import torch
from torch import Tensor

STORED = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}
SMALLEST_SCALE = 1e-30  # of a token of zeros
FLOAT16_MAX = torch.finfo(torch.float16).max


def is_scaled(name: str) -> bool:
    return name in LARGEST


def store(tokens_MO: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Tokens in a stored dtype; for int8 and fp8 with float32 scales [M]: a token's largest value over the dtype's.

    Float16 is clamped to its range; what is not finite stays so, or makes its token's scale so.
    """
    if is_scaled(name):
        wide_MO = tokens_MO.float()
        scale_M1 = (wide_MO.abs().amax(-1, keepdim=True) / LARGEST[name]).clamp_min(SMALLEST_SCALE)
        values_MO = (wide_MO / scale_M1).clamp(-LARGEST[name], LARGEST[name])
        if name == "int8":
            values_MO = torch.nan_to_num(values_MO).round()
        return values_MO.to(STORED[name]), scale_M1.squeeze(-1)
    if name == "float16" and tokens_MO.dtype != torch.float16:
        wide_MO = tokens_MO.float()  # bfloat16 has no 65504: it would be clamped to 65536, and stored as infinite
        clamped_MO = wide_MO.clamp(-FLOAT16_MAX, FLOAT16_MAX)
        return torch.where(torch.isfinite(wide_MO), clamped_MO, wide_MO).to(torch.float16), None
    return tokens_MO.to(STORED[name]), None


def restore(values_MO: Tensor, scale_M: Tensor | None) -> Tensor:
    """The float32 values that stored ones stand for."""
    wide_MO = values_MO.float()
    return wide_MO if scale_M is None else wide_MO * scale_M[:, None]


def overflows(tokens_MO: Tensor) -> Tensor:
    """How many values of each token are over float16's range; int64 [M]."""
    wide_MO = tokens_MO.float()
    return ((wide_MO.abs() > FLOAT16_MAX) & torch.isfinite(wide_MO)).sum(-1)
