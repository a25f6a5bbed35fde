"""Duplicates: samples with equal bytes, by 64 bits of their sha256.

Beyond MAX_HASHES distinct images, those whose hash is a multiple of some power of two stand for all: equal images are
then all in or all out. Those that stood out by then for their number (a page's logo, "image not available") are counted
one by one, since whether they are in would decide the result.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
MAX_HASHES = 1 << 24
FREQUENT = 64  # copies
MOST_FREQUENT = 1 << 16  # such images


class Duplicates:
    """Of a whole source: a hash, a size and a count for each distinct image. Equal bytes are images of equal size.

    Args:
        most: how many are held.
    """

    def __init__(self, most: int = MAX_HASHES) -> None:
        self.one_of = 1
        self._held = 0
        self._hash = np.empty(most, np.uint64)  # untouched pages take no memory
        self._sides = np.empty((most, 2), np.int32)
        self._copies = np.empty(most, np.int32)
        self._frequent: Hashes = np.empty(0, np.uint64)  # sorted
        self._frequent_sides = np.empty((0, 2), np.int32)
        self._frequent_copies: Int64 = np.empty(0, np.int64)

    def add(self, hash_N: Hashes, height_N: Int64, width_N: Int64) -> None:
        """Adds a part; a hash of 0 is no image."""
        hash_N = self._without_frequent(hash_N)
        chosen = self._chosen(hash_N)
        while self._held + int(chosen.sum()) > len(self._hash):
            self._make_room()
            hash_N = self._without_frequent(hash_N)
            chosen = self._chosen(hash_N)
        last = self._held + int(chosen.sum())
        self._hash[self._held : last], self._copies[self._held : last] = hash_N[chosen], 1
        self._sides[self._held : last, 0], self._sides[self._held : last, 1] = height_N[chosen], width_N[chosen]
        self._held = last

    def _without_frequent(self, hash_N: Hashes) -> Hashes:
        """Counts those that are counted one by one, and takes them out."""
        if not len(self._frequent):
            return hash_N
        place_N = np.searchsorted(self._frequent, hash_N).clip(max=len(self._frequent) - 1)
        known_N = self._frequent[place_N] == hash_N
        np.add.at(self._frequent_copies, place_N[known_N], 1)
        return np.where(known_N, np.uint64(0), hash_N)

    def _chosen(self, hash_N: Hashes) -> npt.NDArray[np.bool_]:
        return ((hash_N & np.uint64(self.one_of - 1)) == 0) & (hash_N != 0)

    def _make_room(self) -> None:
        """Joins copies; where that is not enough, sets the frequent ones apart and holds half of the others."""
        hashes, sides, copies = self._joined()
        if len(hashes) > len(self._hash) // 2:
            if self.one_of == 1:
                often = np.flatnonzero(copies >= FREQUENT)
                often = np.sort(often[np.argsort(-copies[often], kind="stable")[:MOST_FREQUENT]])
                self._frequent, self._frequent_sides = hashes[often], sides[often]
                self._frequent_copies = copies[often].astype(np.int64)
                others = np.ones(len(hashes), np.bool_)
                others[often] = False
                hashes, sides, copies = hashes[others], sides[others], copies[others]
            self.one_of *= 2
            kept = self._chosen(hashes)
            hashes, sides, copies = hashes[kept], sides[kept], copies[kept]
        self._held = len(hashes)
        self._hash[: self._held], self._sides[: self._held], self._copies[: self._held] = hashes, sides, copies

    def _joined(self) -> tuple[Hashes, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """What is held, each distinct image once, by hash."""
        order = np.argsort(self._hash[: self._held])
        hashes = self._hash[order]
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else order
        copies = np.add.reduceat(self._copies[order], starts) if len(starts) else self._copies[:0]
        return hashes[starts], self._sides[order[starts]], copies.astype(np.int32)

    def again(self) -> tuple[Int64, Int64, Int64]:
        """Heights and widths of images that there are several of, and how many beside the first each stands for."""
        _, sides, copies = self._joined()
        several = np.flatnonzero(copies > 1)
        sides_D2: Int64 = np.concatenate([sides[several], self._frequent_sides]).astype(np.int64)
        more = np.concatenate([(copies[several].astype(np.int64) - 1) * self.one_of, self._frequent_copies - 1])
        return sides_D2[:, 0], sides_D2[:, 1], more


def repeated(hash_N: Hashes) -> Int64:
    """The samples whose hash stands there more than once, by hash and then in their order."""
    order = np.argsort(hash_N)
    same = hash_N[order][1:] == hash_N[order][:-1]
    found = order[np.concatenate([[False], same]) | np.concatenate([same, [False]])] if len(hash_N) else order
    return found[np.lexsort((found, hash_N[found]))]
