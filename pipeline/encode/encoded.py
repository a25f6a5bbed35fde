"""The hand-off from encoding to writing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EncodedUnit:
    """The hand-off from encoding to writing. N distinct images, M tokens of them all.

    Attributes:
        tokens_MO: in the stored dtype, on the CPU, image after image; a row is `[main | stream 0 | stream 1 | …]`.
        ends_N: where each image's tokens end.
        norm_mean_N, norm_max_N: float32, of the L2 norms of the tokens as stored, of their main stream.
        finite_N: False for an image of which a stream stayed non-finite alone: a reject.
        halvings: how often a pack was halved for lack of device memory.
        overflows: values clamped to fit float16.
        packs: patches of each forward.
        seconds: by step.
        scale_MS: float32, of tokens stored as int8 or fp8: one for each stream of each.
        errors: measured ones, of a lossy setting: relative RMS of storing, cosine and relative RMS of fp8 products. Of
            several streams the worst counts, and each is stated.
    """

    tokens_MO: Tensor
    ends_N: npt.NDArray[np.int64]
    norm_mean_N: npt.NDArray[np.float32]
    norm_max_N: npt.NDArray[np.float32]
    finite_N: npt.NDArray[np.bool_]
    halvings: int
    overflows: int
    packs: tuple[int, ...]
    seconds: dict[str, float]
    scale_MS: npt.NDArray[np.float32] | None = None
    errors: dict[str, object] = field(default_factory=dict)
