"""fp8 error: what quantized products cost, measured on one image against bfloat16 and float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tower.config import Stage
from ..tower.pack_plan import Grid
from ..tower.tower import Tower


class Fp8Error:
    """Holds the exact towers, from the first measurement on.

    Args:
        tower: the one whose products are in fp8.
    """

    def __init__(self, tower: Tower, stage: Stage) -> None:
        self._tower, self._stage = tower, stage
        self._exact: dict[str, Tower] = {}

    def measure(self, patches_PC: Tensor, grid: Grid) -> dict[str, dict[str, float]]:
        """Cosine similarity of tokens and relative RMS of values, against each exact dtype."""
        if not self._exact:
            self._exact = {
                name: Tower(self._tower.checkpoint, getattr(torch, name), self._tower.device)
                for name in ("bfloat16", "float32")
            }
        ours_MO = self._tokens(self._tower, patches_PC, grid)
        result: dict[str, dict[str, float]] = {}
        for name, tower in self._exact.items():
            exact_MO = self._tokens(tower, patches_PC, grid)
            cosine_M = torch.nn.functional.cosine_similarity(ours_MO, exact_MO, dim=-1)
            result[name] = {
                "cosine_min": float(cosine_M.min()),
                "cosine_mean": float(cosine_M.mean()),
                "relative_rms": float((ours_MO - exact_MO).norm() / exact_MO.norm()),
            }
        return result

    def _tokens(self, tower: Tower, patches_PC: Tensor, grid: Grid) -> Tensor:
        """In the order of the input: towers of other kernels compute them in other orders."""
        plan = tower.plan([grid])
        tokens_MO = tower.forward_in_window_order(patches_PC.to(tower.device), plan, self._stage)
        return tokens_MO.double()[torch.argsort(plan.order_M)]
