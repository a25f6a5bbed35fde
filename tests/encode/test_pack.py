"""Catches: an image in no pack or in two, a pack over the budget, packs that depend on anything but the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.encode.pack import Size, first_fit_decreasing, pack_images


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


def test_an_image_over_the_budget_runs_alone() -> None:
    packs = pack_images(sizes_of([10, 5000, 20]), 100)
    assert [1] in packs
    assert [0, 2] in packs


def test_no_images_no_packs() -> None:
    assert pack_images([], 100) == []
