"""Drawing: some samples of a source for an estimate, and how much of the source each draw stands for.

A source is drawn from in DRAWS draws (of few samples, as many as those) that know nothing of each other, so that the
spread between them is the uncertainty of their mean, whatever the source is made of.

Source for the estimators: Cochran, Sampling Techniques, 3rd edition (1977), 9A.3 (drawing with unequal probabilities).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .media import IMAGE
from .named_image import NamedImage
from .sample import VideoFacts

DRAWS = 32


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sample: `ok` with its size, or a reject's reason. `video`: of a clip that is accepted."""

    status: str
    width: int = 0
    height: int = 0
    video: VideoFacts | None = None


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
    """Reads the headers of images and clips that were drawn."""

    def drawn(self, data: bytes | None, video: VideoFacts | None = None) -> Drawn: ...

    def drawn_of(self, images: Sequence[NamedImage]) -> list[Drawn]: ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How to draw: `count` samples in all, at least one a draw, with this generator's numbers.

    Attributes:
        members: the rule by which a tar's members form samples (`tar_samples`).
        media: what is looked for; `video_column`: of rows, where it may be.
    """

    count: int
    generator: random.Random
    headers: HeaderReader
    image_column: str
    members: str = "grouped"
    media: str = IMAGE
    video_column: str = "video"

    @property
    def sizes(self) -> list[int]:
        """How many samples each draw has: `count` in all."""
        return self._shared_by(DRAWS)

    def sizes_of_groups(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
        """The same, where a draw is from one of several groups: of small ones there are more draws."""
        rows_G = np.asarray(rows, np.float64)
        total = float(rows_G.sum())
        # What is drawn as often as it has rows has, on average, so many.
        return self._shared_by(max(DRAWS, math.ceil(self.count * total / float((rows_G**2).sum())))) if total else []

    def _shared_by(self, most: int) -> list[int]:
        draws = min(most, self.count)
        return [self.count // draws + (number < self.count % draws) for number in range(draws)]

    def one_of(self, ends: npt.NDArray[np.int64]) -> int:
        """One of several, each as likely as it is long. `ends`: where each of them ends."""
        return int(np.searchsorted(ends, self.generator.randrange(int(ends[-1])), side="right"))


def wrapped(start: int, length: int, size: int) -> list[tuple[int, int]]:
    """The ranges of a window that begins anywhere in a file and goes on at the file's start."""
    pieces = [(start, min(start + length, size)), (0, max(0, start + length - size))]
    return [(first, last) for first, last in pieces if first < last]


def groups_of(chosen: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """Shares out what was chosen, in no order, in groups of these sizes; where it is less, in about equal ones."""
    if len(chosen) < sum(sizes):
        return [chosen[first :: len(sizes)] for first in range(len(sizes))]
    ends = np.cumsum(sizes).tolist()
    return [chosen[end - size : end] for end, size in zip(ends, sizes, strict=True)]
