"""Histograms: counts of values, by their logarithm or in bins of equal width, and their percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
PERCENTILES = (5, 50, 95, 99)
STEPS = 200  # bins of a histogram of ratios or sizes, each 1/STEPS of a power of two wide: 0.35 %
BINS = 12  # of a histogram of tokens


class LogHistogram:
    """How often values from 1 up occur, by their logarithm."""

    def __init__(self) -> None:
        self.counts: Int64 = np.zeros(64 * STEPS, np.int64)

    def add(self, values: npt.NDArray[np.float64], counts: Int64 | None = None) -> None:
        """Adds values, each as often as `counts` says, or once."""
        bins = np.minimum((np.log2(np.maximum(values, 1)) * STEPS).astype(np.int64), len(self.counts) - 1)
        self.counts += np.bincount(bins, counts, minlength=len(self.counts)).astype(np.int64)

    def percentile(self, percent: float) -> float:
        ends = np.cumsum(self.counts)
        if not ends[-1]:
            return 0.0
        return float(2 ** ((int(np.searchsorted(ends, ends[-1] * percent / 100)) + 0.5) / STEPS))


def bins_of(images_T: npt.NDArray[Any], count: int = BINS) -> list[dict[str, float]]:
    """A histogram of images by tokens in about `count` bins of equal width: from, up to (exclusive), images."""
    width = max(1, -(-len(images_T) // count))
    return [
        {"from": first, "to": first + width, "images": float(images_T[first : first + width].sum())}
        for first in range(0, len(images_T), width)
    ]


def added(one: Int64, other: Int64) -> Int64:
    """The sum of two histograms, the shorter one taken to go on with zeros."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    result = longer.copy()
    result[: len(shorter)] += shorter
    return result


def percentile_of(counts_T: Int64, percent: float) -> int:
    """A percentile of values that a histogram counts one by one; 0 where there is none."""
    total = int(counts_T.sum())
    return int(np.searchsorted(np.cumsum(counts_T), total * percent / 100)) if total else 0
