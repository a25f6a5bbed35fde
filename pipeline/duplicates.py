"""Duplicates: samples with equal bytes, by 64 bits of their sha256.

Beyond MAX_HASHES samples those whose hash is a multiple of some power of two stand for all: equal images are then all
in or all out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
MAX_HASHES = 1 << 24
SHARES = 16
SHARED_BY = 5  # which byte of a hash: not one that decides which hashes are held


class Duplicates:
    """Of a whole source: a hash and a size for each sample. Equal bytes are images of equal size.

    Args:
        most: how many are held.
    """

    def __init__(self, most: int = MAX_HASHES) -> None:
        self.one_of = 1
        self._held = 0
        self._hash = np.empty(most, np.uint64)  # untouched pages take no memory
        self._sides = np.empty((most, 2), np.int32)

    def add(self, hash_N: Hashes, height_N: Int64, width_N: Int64) -> None:
        """Adds a part; a hash of 0 is no image."""
        chosen = self._chosen(hash_N)
        while self._held + int(chosen.sum()) > len(self._hash):
            self.one_of *= 2
            kept = self._chosen(self._hash[: self._held])
            hashes, sides = self._hash[: self._held][kept], self._sides[: self._held][kept]
            self._held = len(hashes)
            self._hash[: self._held], self._sides[: self._held] = hashes, sides
            chosen = self._chosen(hash_N)
        last = self._held + int(chosen.sum())
        self._hash[self._held : last] = hash_N[chosen]
        self._sides[self._held : last, 0], self._sides[self._held : last, 1] = height_N[chosen], width_N[chosen]
        self._held = last

    def _chosen(self, hash_N: Hashes) -> npt.NDArray[np.bool_]:
        return ((hash_N & np.uint64(self.one_of - 1)) == 0) & (hash_N != 0)

    def again(self) -> tuple[Int64, Int64]:
        """Heights and widths of those that are another one's equal; each stands for `one_of`."""
        hash_N, sides_N2 = self._hash[: self._held], self._sides[: self._held]
        found: list[npt.NDArray[np.int32]] = []
        for share in range(SHARES):  # sorted a share at a time, which takes little memory beside them
            places = np.flatnonzero(hash_N.view(np.uint8)[SHARED_BY::8] % SHARES == share)
            order = np.argsort(hash_N[places])
            hashes = hash_N[places[order]]
            found.append(sides_N2[places[order[1:][hashes[1:] == hashes[:-1]]]])
        sides = np.concatenate(found).astype(np.int64)
        return sides[:, 0], sides[:, 1]


def repeated(hash_N: Hashes) -> Int64:
    """The samples whose hash stands there more than once, by hash and then in their order."""
    order = np.argsort(hash_N)
    same = hash_N[order][1:] == hash_N[order][:-1]
    found = order[np.concatenate([[False], same]) | np.concatenate([same, [False]])] if len(hash_N) else order
    return found[np.lexsort((found, hash_N[found]))]
