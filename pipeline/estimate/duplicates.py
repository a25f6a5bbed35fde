"""Duplicates: samples with equal bytes, by 64 bits of their sha256.

Beyond MAX_HASHES distinct images, those whose hash is a multiple of some power of two stand for all: equal images are
then all in or all out. Those that stood out by then for their number (a page's logo, "image not available") are counted
one by one, since whether they are in would decide the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
MAX_HASHES = 1 << 24
FREQUENT = 64  # copies
MOST_FREQUENT = 1 << 16  # such images
SHARES = 16
SHARED_BY = 5  # which byte of a hash: not one that decides which hashes are held


class Duplicates:
    """The distinct images of a whole source: a hash, a size and a count for each. Equal bytes are images of equal size.

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
        self._hold(list(self._joined()))
        if self._held > len(self._hash) // 2:
            if self.one_of == 1:
                self._set_frequent_apart()
            self.one_of *= 2
            kept = self._chosen(self._hash[: self._held])
            self._hold([tuple(values[: self._held][kept] for values in (self._hash, self._sides, self._copies))])

    def _set_frequent_apart(self) -> None:
        often = np.flatnonzero(self._copies[: self._held] >= FREQUENT)
        often = often[np.argsort(-self._copies[often], kind="stable")[:MOST_FREQUENT]]
        often = often[np.argsort(self._hash[often])]
        self._frequent, self._frequent_sides = self._hash[often], self._sides[often]
        self._frequent_copies = self._copies[often].astype(np.int64)
        self._hash[often] = 0  # is no image

    def _hold(self, pieces: Sequence[tuple[npt.NDArray[Any], ...]]) -> None:
        first = 0
        for hashes, sides, copies in pieces:
            last = first + len(hashes)
            self._hash[first:last], self._sides[first:last], self._copies[first:last] = hashes, sides, copies
            first = last
        self._held = first

    def _joined(self) -> Iterator[tuple[Hashes, npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Yields all that is held, each distinct image once, a share at a time: little memory beside them."""
        hash_N = self._hash[: self._held]
        for share in range(SHARES):
            rows = np.flatnonzero(hash_N.view(np.uint8)[SHARED_BY::8] % SHARES == share)
            order = rows[np.argsort(hash_N[rows])]
            hashes = hash_N[order]
            if len(hashes):
                starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
                copies = np.add.reduceat(self._copies[order], starts).astype(np.int32)
                yield hashes[starts], self._sides[order[starts]], copies

    def again(self) -> tuple[Int64, Int64, Int64]:
        """Heights and widths of images that there are several of, and how many beside the first each stands for."""
        sides, more = [self._frequent_sides], [self._frequent_copies - 1]
        for _, sides_N2, copies_N in self._joined():
            several = copies_N > 1
            sides.append(sides_N2[several])
            more.append((copies_N[several].astype(np.int64) - 1) * self.one_of)
        sides_D2: Int64 = np.concatenate(sides).astype(np.int64)
        return sides_D2[:, 0], sides_D2[:, 1], np.concatenate(more)


def repeated(hash_N: Hashes) -> Int64:
    """The samples whose hash stands there more than once, by hash and then in their order."""
    order = np.argsort(hash_N)
    same = hash_N[order][1:] == hash_N[order][:-1]
    found = order[np.concatenate([[False], same]) | np.concatenate([same, [False]])] if len(hash_N) else order
    return found[np.lexsort((found, hash_N[found]))]
