"""Drawing from files whose records can only be found by reading them from the start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .drawing import Draw, Drawing, groups_of
from .listing import Listing
from .named_image import NamedImage


def draws_of(
    listing: Listing,
    drawing: Drawing,
    starts: Callable[[str], Iterator[int]],
    images: Callable[[str, Sequence[int]], list[NamedImage]],
) -> Iterator[Draw]:
    """Draws files as often as they are large, and of each some records, every one as likely as any other.

    Args:
        starts: the first bytes of a file's records.
        images: of the records that begin at these bytes, in ascending order.
    """
    files = [file for file in listing if file.size]
    ends = np.cumsum([file.size for file in files], dtype=np.int64)
    sizes_of: dict[int, list[int]] = {}  # of the draws from each file
    for size in drawing.sizes if files else ():
        sizes_of.setdefault(drawing.one_of(ends), []).append(size)
    for number, sizes in sorted(sizes_of.items()):
        path = os.path.join(listing.place.root, files[number].path)
        total, chosen = _some(starts(path), sum(sizes), drawing)
        for group in groups_of(chosen, sizes):
            found = drawing.headers.drawn_of(images(path, sorted(group)))
            weight = int(ends[-1]) / files[number].size * total / max(1, len(group))
            yield Draw(weight=weight, samples=tuple(found))


def _some(starts: Iterator[int], count: int, drawing: Drawing) -> tuple[int, list[int]]:
    """How many records there are, and where some of them begin, in no order."""
    kept: list[int] = []
    total = 0
    for start in starts:  # each so far is in `kept` with the same probability
        total += 1
        if len(kept) < count:
            kept.append(start)
        elif (place := drawing.generator.randrange(total)) < count:
            kept[place] = start
    drawing.generator.shuffle(kept)
    return total, kept
