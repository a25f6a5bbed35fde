"""Packing: which images of a unit share one forward pass. A pure function of the sizes and the budget.

First-fit-decreasing fills packs to the budget; the same number of packs is then balanced by cost (longest first onto
the cheapest pack that still has room), so that no unit ends in one small pack that leaves the device idle. Cost of a
frame of N patches is N + N² / `linear_patches`: the linear layers against full attention, see `TowerConfig`.

First-fit is found through a tree of free room, O(N log N) for N images.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

from ..tower.config import LINEAR_PATCHES


@dataclass(frozen=True, kw_only=True)
class Size:
    """An image's size to the packer: patches in all, and patches of one frame."""

    patches: int
    frame_patches: int

    def cost(self, linear_patches: int) -> float:
        return self.patches * (1 + self.frame_patches / linear_patches)


def first_fit_decreasing(sizes: list[int], budget: int) -> list[list[int]]:
    """Packs of indices, each within the budget, or a lone index that is larger than it."""
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    leaves = 1
    while leaves < max(1, len(sizes)):
        leaves *= 2
    room = [0] * leaves + [budget] * leaves
    for node in range(leaves - 1, 0, -1):
        room[node] = max(room[2 * node], room[2 * node + 1])
    packs: list[list[int]] = []
    alone: list[list[int]] = []
    for index in order:
        if sizes[index] > budget:
            alone.append([index])
            continue
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= sizes[index] else 2 * node + 1
        pack = node - leaves
        if pack == len(packs):
            packs.append([])
        packs[pack].append(index)
        room[node] -= sizes[index]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return alone + packs


def pack_images(sizes: list[Size], budget: int, linear_patches: int = LINEAR_PATCHES) -> list[list[int]]:
    """Chooses the forwards of one unit.

    Args:
        sizes: of the unit's distinct images, in order.
        budget: patches per forward. A larger image runs alone.
        linear_patches: of the tower: patches of a frame whose full attention costs as much as everything else.

    Returns:
        Lists of indices into `sizes`, each in increasing order; every index exactly once.
    """
    packs = first_fit_decreasing([size.patches for size in sizes], budget)
    shared = [pack for pack in packs if sizes[pack[0]].patches <= budget]
    costs = [size.cost(linear_patches) for size in sizes]
    balanced = _balance(shared, sizes, costs, budget)
    alone = [pack for pack in packs if sizes[pack[0]].patches > budget]
    return alone + [sorted(pack) for pack in (balanced or shared)]


def _balance(packs: list[list[int]], sizes: list[Size], costs: list[float], budget: int) -> list[list[int]] | None:
    """The same images over the same number of packs, evened out; None where the budget leaves no room to."""
    indices = sorted((index for pack in packs for index in pack), key=lambda index: (-costs[index], index))
    heap = [(0.0, number, 0) for number in range(len(packs))]  # cost, pack, patches
    heapify(heap)
    result: list[list[int]] = [[] for _ in packs]
    for index in indices:
        full: list[tuple[float, int, int]] = []
        while heap and heap[0][2] + sizes[index].patches > budget:
            full.append(heappop(heap))
        if not heap:
            return None
        cost, number, patches = heap[0]
        heapreplace(heap, (cost + costs[index], number, patches + sizes[index].patches))
        result[number].append(index)
        for entry in full:
            heappush(heap, entry)
    return result
