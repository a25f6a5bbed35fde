"""fp8 error: what quantized products cost, measured on one image against bfloat16 and float32."""

from __future__ import annotations

import itertools
import threading
from typing import ClassVar

import torch
from torch import Tensor

from ..tower.config import Stage
from ..tower.pack_plan import Grid
from ..tower.tower import Tower
from .dtypes import split_streams


class Fp8Error:
    """Holds the exact towers, from the first measurement on. May be asked by several threads.

    Args:
        tower: the one whose products are in fp8.
    """

    EVERY: ClassVar[int] = 64  # units of which the first is measured

    def __init__(self, tower: Tower, stage: Stage) -> None:
        self._tower, self._stage = tower, stage
        self._exact: dict[str, Tower] = {}
        self._units = itertools.count()
        self._turn = threading.Lock()

    def is_due(self) -> bool:
        """Called once for each unit: whether this one is measured."""
        return next(self._units) % self.EVERY == 0

    def measure(self, patches_PC: Tensor, grid: Grid) -> dict[str, dict[str, object]]:
        """Cosine similarity of tokens and relative RMS of values, against each exact dtype; of the worst stream."""
        with self._turn:
            if not self._exact:
                self._exact = {
                    name: Tower(self._tower.checkpoint, getattr(torch, name), self._tower.device)
                    for name in ("bfloat16", "float32")
                }
        ours_MSO = self._tokens(self._tower, patches_PC, grid)
        result: dict[str, dict[str, object]] = {}
        for name, tower in self._exact.items():
            exact_MSO = self._tokens(tower, patches_PC, grid)
            cosine_MS = torch.nn.functional.cosine_similarity(ours_MSO, exact_MSO, dim=-1)
            away_S = (ours_MSO - exact_MSO).norm(dim=(0, 2)) / exact_MSO.norm(dim=(0, 2))
            result[name] = {
                "cosine_min": float(cosine_MS.min()),
                "cosine_mean": float(cosine_MS.mean(0).min()),
                "relative_rms": float(away_S.max()),
            }
            if len(away_S) > 1:
                result[name]["relative_rms_by_stream"] = away_S.tolist()
        return result

    def _tokens(self, tower: Tower, patches_PC: Tensor, grid: Grid) -> Tensor:
        """By stream [M, S, O], in the order of the input: towers of other kernels compute them in other orders."""
        plan = tower.plan([grid])
        tokens_MO = tower.forward_in_window_order(patches_PC.to(tower.device), plan, self._stage)
        return split_streams(tokens_MO.double()[torch.argsort(plan.order_M)], tower.config.streams)
