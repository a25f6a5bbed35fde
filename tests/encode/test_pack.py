"""Catches: an image in no pack or in two, a pack over the budget, packs that depend on anything but the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.encode.pack import Size, first_fit_decreasing, pack_images
from pipeline.tower.random_tower import SIZES


def sizes_of(patches: list[int]) -> list[Size]:
    return [Size(patches=count, frame_patches=count) for count in patches]


@pytest.mark.parametrize("seed", range(20))
def test_every_image_is_in_exactly_one_pack_within_the_budget(seed: int) -> None:
    generator = np.random.default_rng(seed)
    patches = (4 * generator.integers(1, 400, generator.integers(1, 300))).tolist()
    for budget in (200, 1024, 4096):
        packs = pack_images(sizes_of(patches), budget)
        assert sorted(index for pack in packs for index in pack) == list(range(len(patches)))
        for pack in packs:
            assert sum(patches[index] for index in pack) <= budget or len(pack) == 1
            assert pack == sorted(pack)
        assert packs == pack_images(sizes_of(patches), budget)


def naive_first_fit(sizes: list[int], budget: int) -> list[list[int]]:
    packs: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        for pack in packs:
            if sum(sizes[other] for other in pack) + sizes[index] <= budget:
                pack.append(index)
                break
        else:
            packs.append([index])
    return packs


@pytest.mark.parametrize("seed", range(10))
def test_the_tree_finds_what_a_scan_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 100, 120).tolist()
    assert first_fit_decreasing(sizes, 128) == naive_first_fit(sizes, 128)


def test_balancing_leaves_no_small_last_pack() -> None:
    patches = [100] * 21  # first-fit alone: 10, 10, 1
    assert [len(pack) for pack in first_fit_decreasing(patches, 1000)] == [10, 10, 1]
    assert [len(pack) for pack in pack_images(sizes_of(patches), 1000)] == [7, 7, 7]


def naive_balance(packs: int, sizes: list[Size], budget: int) -> list[list[int]] | None:
    """By a scan over all packs: the dearest image first, onto the cheapest pack that has room for it."""
    costs = [size.patches + size.patches * size.frame_patches / 63_000 for size in sizes]
    result: list[list[int]] = [[] for _ in range(packs)]
    for index in sorted(range(len(sizes)), key=lambda index: (-costs[index], index)):
        fits = [
            number
            for number, pack in enumerate(result)
            if sum(sizes[other].patches for other in [*pack, index]) <= budget
        ]
        if not fits:
            return None
        best = min(fits, key=lambda number: (sum(costs[other] for other in result[number]), number))
        result[best].append(index)
    return [sorted(pack) for pack in result]


def test_packs_are_balanced_as_a_scan_would() -> None:
    """Also where they are exactly full, and where attention, and not its patches, makes an image dear."""
    balanced = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        unit = 500 if seed % 2 else 20_000
        patches = (unit * generator.integers(1, 5, generator.integers(2, 40))).tolist()
        frames = generator.integers(1, 6, len(patches)).tolist()
        sizes = [Size(patches=p, frame_patches=p // t) for p, t in zip(patches, frames, strict=True)]
        packs = pack_images(sizes, 8 * unit)
        expected = naive_balance(len(first_fit_decreasing(patches, 8 * unit)), sizes, 8 * unit)
        balanced += expected is not None
        assert packs == (expected or [sorted(pack) for pack in first_fit_decreasing(patches, 8 * unit)])
    assert 10 < balanced < 40


def test_what_attention_costs_is_the_towers() -> None:
    """Where every block attends to whole frames, attention is as dear as the rest at a ninth of the patches."""
    assert {SIZES[size].linear_patches for size in ("tiny", "3b", "7b")} == {63_000}  # packs of earlier versions
    assert SIZES["qwen3_vl_8b"].linear_patches == pytest.approx(7000, rel=0.1)
    assert SIZES["qwen2_vl_7b"].linear_patches == pytest.approx(7900, rel=0.1)
    sizes = sizes_of([8000, *[2000] * 8])
    windows, whole = (pack_images(sizes, 16_000, SIZES[size].linear_patches) for size in ("7b", "qwen3_vl_8b"))
    assert windows != whole
    costs = [sum(sizes[image].cost(SIZES["qwen3_vl_8b"].linear_patches) for image in pack) for pack in whole]
    assert max(costs) < 1.35 * min(costs)


def test_an_image_over_the_budget_runs_alone() -> None:
    packs = pack_images(sizes_of([10, 5000, 20]), 100)
    assert [1] in packs
    assert [0, 2] in packs


def test_no_images_no_packs() -> None:
    assert pack_images([], 100) == []
