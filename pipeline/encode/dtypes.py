"""How tokens are stored: a float dtype, or int8 or fp8 with a scale for each token and stream.

M tokens, O values of a token. Those are of 1 + `streams` streams of equal width: the main one and the further ones
behind it. S is their number. A stored value times its token's scale for the stream is the value.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
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


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """Returns a NumPy view of a tensor on the CPU: of bfloat16, which NumPy has not, as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def is_scaled(name: str) -> bool:
    return name in LARGEST


def store(tokens_MO: Tensor, name: str, streams: int = 0) -> tuple[Tensor, Tensor | None]:
    """Tokens in a stored dtype; for int8 and fp8 with float32 scales [M, S]: the largest value over the dtype's.

    Float16 is clamped to its range; what is not finite stays so, or makes its token's scale so.
    """
    if is_scaled(name):
        wide_MSO = split_streams(tokens_MO.float(), streams)
        scale_MS1 = (wide_MSO.abs().amax(-1, keepdim=True) / LARGEST[name]).clamp_min(SMALLEST_SCALE)
        values_MO = (wide_MSO / scale_MS1).clamp(-LARGEST[name], LARGEST[name]).flatten(1)
        if name == "int8":
            values_MO = torch.nan_to_num(values_MO).round()
        return values_MO.to(STORED[name]), scale_MS1.squeeze(-1)
    if name == "float16" and tokens_MO.dtype != torch.float16:
        wide_MO = tokens_MO.float()  # bfloat16 has no 65504: it would be clamped to 65536, and stored as infinite
        clamped_MO = wide_MO.clamp(-FLOAT16_MAX, FLOAT16_MAX)
        return torch.where(torch.isfinite(wide_MO), clamped_MO, wide_MO).to(torch.float16), None
    return tokens_MO.to(STORED[name]), None


def restore(values_MO: Tensor, scale_MS: Tensor | None) -> Tensor:
    """The float32 values that stored ones stand for."""
    wide_MO = values_MO.float()
    if scale_MS is None:
        return wide_MO
    return (split_streams(wide_MO, scale_MS.shape[1] - 1) * scale_MS[:, :, None]).flatten(1)


def split_streams(rows_MO: Tensor, streams: int) -> Tensor:
    """Rows as their streams, [M, S, O / S]: the main one first."""
    return rows_MO.unflatten(-1, (1 + streams, -1))


def scale_bytes(tokens: int, streams: int) -> int:
    """Bytes of the scales of an image's tokens, float32 each."""
    return 4 * tokens * (1 + streams)


def scale_of(data: bytes | bytearray, streams: int) -> Tensor:
    """Scales [M, S] from an image's bytes: token after token, each with its streams in order."""
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(-1, 1 + streams)


def norms_of(values_MO: Tensor, streams: int) -> Tensor:
    """The L2 norms of each token's streams; float32 [M, S]. One that is not finite says that a value is not."""
    return torch.linalg.vector_norm(split_streams(values_MO, streams), dim=-1, dtype=torch.float32)


def overflows(tokens_MO: Tensor) -> Tensor:
    """How many values of each token are over float16's range; int64 [M]."""
    wide_MO = tokens_MO.float()
    return ((wide_MO.abs() > FLOAT16_MAX) & torch.isfinite(wide_MO)).sum(-1)
