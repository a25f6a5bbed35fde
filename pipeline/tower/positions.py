"""Learned positions: a square table, interpolated to the grid of each image, the same for each of its frames.

Bilinear, with corners aligned: row i of h rows lies at i · (side - 1) / (h - 1) in the table. Summed in fp32 and
rounded where the reference rounds, which a tower in bfloat16 shows.

Source: transformers 5.23, `vision_utils.py` (`get_vision_interpolation_indices_and_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """For each patch four entries of the table, row before column, and their weights.

    Attributes:
        entries_4P: int64.
        weights_4P1: float32.
    """

    entries_4P: Tensor
    weights_4P1: Tensor


def interpolate_positions(
    positions_P2: np.ndarray, sides_P2: np.ndarray, count: int, device: torch.device
) -> Interpolation:
    """Where patches at these rows and columns, of grids with these sides, lie in a table of `count` entries."""
    side = round(count**0.5)
    sides = np.maximum(sides_P2 - 1, 1).astype(np.float32)
    place_P2 = positions_P2.astype(np.float32) * np.float32(side - 1) / sides
    floor_P2 = np.floor(place_P2)
    taps_P22 = np.clip(floor_P2.astype(np.int64)[..., None] + np.arange(2), 0, side - 1)
    distance_P22 = np.abs((place_P2 - floor_P2)[..., None] - np.arange(2, dtype=np.float32))
    weights_P22 = np.maximum(np.float32(1) - distance_P22, np.float32(0))
    entries_P4 = (taps_P22[:, 0, :, None] * side + taps_P22[:, 1, None, :]).reshape(-1, 4)
    weights_P4 = (weights_P22[:, 0, :, None] * weights_P22[:, 1, None, :]).reshape(-1, 4)
    return Interpolation(
        entries_4P=to_device(torch.from_numpy(np.ascontiguousarray(entries_P4.T)), device),
        weights_4P1=to_device(torch.from_numpy(np.ascontiguousarray(weights_P4.T)[..., None]), device),
    )


def learned_positions(table_ND: Tensor, learned: Interpolation) -> Tensor:
    """Interpolated positions [P, D] in the table's dtype: summed in fp32, rounded once."""
    sum_PD = table_ND[learned.entries_4P[0]] * learned.weights_4P1[0]
    for entries_P, weights_P1 in zip(learned.entries_4P[1:], learned.weights_4P1[1:], strict=True):
        sum_PD += table_ND[entries_P] * weights_P1
    return sum_PD.to(table_ND.dtype)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that neither waits for the device nor makes it wait: through pinned memory, which torch keeps until it is
    read."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
