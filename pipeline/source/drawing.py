"""Drawing: some samples of a source for an estimate, and how much of the source each draw stands for.

A source is drawn from in DRAWS draws that know nothing of each other, so that the spread between them is the
uncertainty of their mean, whatever the source is made of.

Source for the estimators: Cochran, Sampling Techniques, 3rd edition (1977), 9A.3 (drawing with unequal probabilities).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .named_image import NamedImage

DRAWS = 32


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sample: `ok` with its size, or a reject's reason."""

    status: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Some samples, and how many of the source's each stands for, if this were the only draw."""

    weight: float
    samples: tuple[Drawn, ...]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """All draws of one source. `unseen` is the share of it that was not read: nothing is uncertain where it is 0."""

    draws: tuple[Draw, ...]
    files: int
    unseen: float = 1.0

    @property
    def samples(self) -> int:
        return sum(len(draw.samples) for draw in self.draws)


class HeaderReader(Protocol):
    """Reads the headers of images that were drawn."""

    def drawn(self, data: bytes | None) -> Drawn: ...

    def drawn_of(self, images: Sequence[NamedImage]) -> list[Drawn]: ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How to draw: about `count` samples in all, at least one a draw, with this generator's numbers.

    Attributes:
        members: the rule by which a tar's members form samples (`tar_samples`).
    """

    count: int
    generator: random.Random
    headers: HeaderReader
    image_column: str
    members: str = "grouped"

    @property
    def per_draw(self) -> int:
        return max(1, self.count // DRAWS)

    def one_of(self, ends: npt.NDArray[np.int64]) -> int:
        """One of several, each as likely as it is long. `ends`: where each of them ends."""
        return int(np.searchsorted(ends, self.generator.randrange(int(ends[-1])), side="right"))


def wrapped(start: int, length: int, size: int) -> list[tuple[int, int]]:
    """The ranges of a window that begins anywhere in a file and goes on at the file's start."""
    pieces = [(start, min(start + length, size)), (0, max(0, start + length - size))]
    return [(first, last) for first, last in pieces if first < last]
