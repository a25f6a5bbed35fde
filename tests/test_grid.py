"""Against transformers itself: the size, the window order, the segments and the positions of a grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference_resize
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from pipeline.grid import grid_layout, smart_resize, smart_resize_many

BUDGETS = [(3136, 12_845_056), (3136, 1_003_520), (784, 784), (50_000, 60_000)]


@pytest.mark.parametrize("budget", BUDGETS)
def test_sizes_are_the_references(budget: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    sides = np.exp(generator.uniform(0, np.log(9000), (3000, 2))).astype(np.int64)
    extra = [(14, 2800), (2800, 14), (42, 42), (70, 98), (1, 1), (1, 200), (600, 800), (13, 13), (126, 154)]
    sides = np.concatenate([sides, extra])
    many = smart_resize_many(sides[:, 0], sides[:, 1], 28, *budget)
    refused = 0
    for (height, width), *ours in zip(sides.tolist(), many[0].tolist(), many[1].tolist(), strict=True):
        try:
            expected = reference_resize(height, width, 28, *budget)
        except ValueError:
            refused += 1
            assert ours == [0, 0]
            with pytest.raises(ValueError, match="aspect ratio"):
                smart_resize(height, width, 28, *budget)
            continue
        assert smart_resize(height, width, 28, *budget)[:2] == expected
        assert tuple(ours) == expected
    assert refused > 10


@pytest.mark.parametrize(
    ("height", "width", "low", "high", "clamped"),
    [
        (900, 1130, 3136, 1_003_520, "none"),  # 896×1120
        (900, 1130, 1_003_520, 2_000_000, "none"),
        (900, 1130, 3136, 1_003_519, "max"),
        (900, 1130, 1_003_521, 2_000_000, "min"),
        (28, 5600, 3136, 12_845_056, "none"),  # a ratio of 200
    ],
)
def test_at_its_exact_limits(height: int, width: int, low: int, high: int, clamped: str) -> None:
    assert smart_resize(height, width, 28, low, high)[2] == clamped
    expected = reference_resize(height, width, 28, low, high)
    assert smart_resize(height, width, 28, low, high)[:2] == expected
    many = smart_resize_many(np.array([height]), np.array([width]), 28, low, high)
    assert (int(many[0][0]), int(many[1][0])) == expected


def test_clamped_names_the_branch() -> None:
    assert smart_resize(600, 800, 28, 3136, 12_845_056) == (588, 812, "none")
    assert smart_resize(2800, 14, 28, 3136, 12_845_056) == (812, 28, "min")
    assert smart_resize(4000, 6000, 28, 3136, 1_003_520)[2] == "max"


@pytest.mark.parametrize(
    "grid", [(1, 42, 58), (1, 2, 2), (1, 2, 200), (1, 8, 8), (1, 10, 6), (3, 14, 22), (2, 4, 16), (1, 72, 72)]
)
def test_windows_and_positions_are_the_references(grid: tuple[int, int, int]) -> None:
    layout = grid_layout(grid, 2, 4)
    thw = torch.tensor([grid])
    order, cu_seqlens = get_vision_window_index(thw, spatial_merge_size=2, window_size=112, patch_size=14)
    assert layout.window_order_M.tolist() == order.tolist()
    assert layout.window_lengths.tolist() == torch.unique_consecutive(cu_seqlens).diff().tolist()
    positions = get_vision_position_ids(thw, 2)
    assert np.tile(layout.positions_P2, (grid[0], 1)).tolist() == positions.tolist()
