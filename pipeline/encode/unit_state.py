"""UnitState: a unit while its packs are encoded, and what is told of its images from what was fetched."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..prepare.unit import PreparedUnit
from .queues import Mark

MAIN = 0  # the stream that norms are stated of


@dataclass(kw_only=True)
class UnitState:
    """One unit while its packs are encoded; its tensors lie on the device."""

    prepared: PreparedUnit
    tokens_N: npt.NDArray[np.int64]
    token_ends: npt.NDArray[np.int64]  # [N + 1], from 0
    unit_MO: Tensor
    norms_MS: Tensor
    scale_MS: Tensor | None
    error_MS2: Tensor | None
    over_M: Tensor | None
    halvings: int = 0
    turns: list[tuple[Mark, Mark]] = field(default_factory=list)  # from where to where its packs were launched

    @property
    def launched(self) -> Mark:
        """The end of its packs."""
        return self.turns[-1][1]


def copy_rows(unit_MO: Tensor, rows_M: Tensor, values_MO: Tensor) -> None:
    """index_copy_, by bytes where torch has none for the dtype."""
    if unit_MO.dtype == torch.float8_e4m3fn:
        unit_MO, values_MO = unit_MO.view(torch.uint8), values_MO.view(torch.uint8)
    unit_MO.index_copy_(0, rows_M, values_MO)


def image_norms(norms_MS: Tensor, state: UnitState) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the mean and the largest norm of each image's tokens, in their main stream."""
    norms = norms_MS[:, MAIN].numpy().astype(np.float64)
    starts = state.token_ends[:-1]
    if not len(starts):
        return norms, norms
    return np.add.reduceat(norms, starts) / np.maximum(state.tokens_N, 1), np.maximum.reduceat(norms, starts)


def finite_images(norms_MS: Tensor, state: UnitState) -> npt.NDArray[np.bool_]:
    """Whether all tokens of each image are finite, in every stream."""
    if not len(state.tokens_N):
        return np.ones(0, np.bool_)
    finite_M = torch.isfinite(norms_MS).all(-1).numpy()
    return np.logical_and.reduceat(finite_M, state.token_ends[:-1])


def storage_error(error_M2: Tensor, finite_N: npt.NDArray[np.bool_], tokens: npt.NDArray[np.int64]) -> float:
    """Returns the relative RMS of storing, over the images that are finite: √(Σ error² / Σ value²)."""
    squares = error_M2.numpy().astype(np.float64)[np.repeat(finite_N, tokens)] ** 2
    error, value = squares.sum(0) if len(squares) else (0.0, 0.0)
    return float(np.sqrt(error / value)) if value else 0.0


def key_of(prepared: PreparedUnit, image: int) -> str:
    return next(sample.facts.key for sample in prepared.samples if sample.image == image)
