"""Estimate: from indices alone, what a run would write and cost, for several budgets of pixels at once.

Sums and histograms only, a part at a time. Duplicates need a number for each distinct image; beyond MAX_HASHES samples
those whose hash is a multiple of some power of two stand for all: equal images are then all in or all out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pipeline import rejects
from pipeline.index import IndexArrays
from pipeline.units import Geometry, Unit, cut_units, resized_of

Int64 = npt.NDArray[np.int64]
PERCENTILES = (5, 50, 95, 99)
MAX_HASHES = 1 << 24
STEPS = 200  # bins of a histogram of ratios or sizes, each 1/STEPS of a power of two wide: 0.35 %
LANGUAGE_MODEL_EXTRA = 2  # <|vision_start|> and <|vision_end|> around an image's tokens


class LogHistogram:
    """How often values from 1 up occur, by their logarithm."""

    def __init__(self) -> None:
        self.counts: Int64 = np.zeros(64 * STEPS, np.int64)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        bins = np.minimum((np.log2(np.maximum(values, 1)) * STEPS).astype(np.int64), len(self.counts) - 1)
        self.counts += np.bincount(bins, minlength=len(self.counts))

    def percentile(self, percent: float) -> float:
        ends = np.cumsum(self.counts)
        if not ends[-1]:
            return 0.0
        return float(2 ** ((int(np.searchsorted(ends, ends[-1] * percent / 100)) + 0.5) / STEPS))


class Duplicates:
    """Samples with equal bytes.

    Args:
        budgets: how many token counts come with each.
        most: how many hashes are held.
    """

    def __init__(self, budgets: int, most: int = MAX_HASHES) -> None:
        self.one_of = 1
        self._most, self._held = most, 0
        self._kept: list[tuple[npt.NDArray[np.uint64], list[npt.NDArray[np.int32]]]] = []
        self._budgets = budgets

    def add(self, hash_N: npt.NDArray[np.uint64], tokens: Sequence[Int64]) -> None:
        """A hash of 0 is no image."""
        self._keep(hash_N, [tokens_N.astype(np.int32) for tokens_N in tokens])
        while self._held > self._most:
            self.one_of *= 2
            kept, self._kept, self._held = self._kept, [], 0
            for hashes, counts in kept:
                self._keep(hashes, counts)

    def _keep(self, hash_N: npt.NDArray[np.uint64], tokens: list[npt.NDArray[np.int32]]) -> None:
        chosen = ((hash_N & np.uint64(self.one_of - 1)) == 0) & (hash_N != 0)
        self._kept.append((hash_N[chosen], [tokens_N[chosen] for tokens_N in tokens]))
        self._held += len(self._kept[-1][0])

    def totals(self) -> tuple[int, list[int]]:
        """How many samples are another one's equal, and for each budget the tokens of those."""
        if not self._held:
            return 0, [0] * self._budgets
        hashes = np.concatenate([kept for kept, _ in self._kept])
        order = np.argsort(hashes)
        hashes = hashes[order]
        again = order[1:][hashes[1:] == hashes[:-1]]
        tokens = [
            int(np.concatenate([kept[budget] for _, kept in self._kept])[again].sum(dtype=np.int64)) * self.one_of
            for budget in range(self._budgets)
        ]
        return len(again) * self.one_of, tokens


@dataclass(kw_only=True)
class Estimate:
    """What one budget of pixels would give. `histogram` counts images by their number of tokens."""

    max_pixels: int
    samples: int = 0
    units: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    histogram: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))
    clamped_min: int = 0
    clamped_max: int = 0
    scaled_up: int = 0
    duplicates: int = 0
    duplicate_tokens: int = 0
    unit_duplicates: int = 0
    unit_duplicate_tokens: int = 0

    def add(self, index: IndexArrays, geometry: Geometry, part: int, shard_tokens: int) -> tuple[Int64, list[Unit]]:
        """Adds a part; returns its samples' tokens, 0 for rejects, and its units."""
        geometry = replace(geometry, max_pixels=self.max_pixels)
        height_N, width_N = resized_of(index, geometry)
        tokens_N = height_N * width_N // geometry.factor**2
        units = cut_units(part, index, geometry, shard_tokens, tokens_N * geometry.merge_size**2)
        self.samples += len(tokens_N)
        self.units += len(units)
        pixels_N = index.width_N * index.height_N
        large_N = index.accepted_N & (pixels_N > geometry.max_image_pixels)
        self.rejects[rejects.TOO_MANY_PIXELS] += int(large_N.sum())
        self.rejects[rejects.ASPECT_RATIO] += int((index.accepted_N & ~large_N & (tokens_N == 0)).sum())
        usable = tokens_N > 0
        factor = geometry.factor
        rounded_N = (np.rint(index.height_N / factor) * np.rint(index.width_N / factor)).astype(np.int64) * factor**2
        self.clamped_max += int((usable & (rounded_N > geometry.max_pixels)).sum())
        self.clamped_min += int((usable & (rounded_N < geometry.min_pixels)).sum())
        self.scaled_up += int((usable & (height_N * width_N > pixels_N)).sum())
        counts = np.bincount(tokens_N[usable], minlength=len(self.histogram))
        counts[: len(self.histogram)] += self.histogram
        self.histogram = counts.astype(np.int64)
        return tokens_N, units

    def add_unit_duplicates(
        self, hash_N: npt.NDArray[np.uint64], candidates: Int64, tokens_N: Int64, units: Sequence[Unit]
    ) -> None:
        """Those that `pack.deduplicate` encodes once, among samples whose hash stands in the part more than once."""
        unit_N = np.repeat(np.arange(len(units)), [unit.count for unit in units])
        unit_N, tokens_N = unit_N[candidates], tokens_N[candidates]
        hash_N = hash_N[candidates]
        order = np.lexsort((unit_N, hash_N))
        hash_N, unit_N, tokens_N = hash_N[order], unit_N[order], tokens_N[order]
        again = (hash_N[1:] == hash_N[:-1]) & (unit_N[1:] == unit_N[:-1]) & (hash_N[1:] != 0) & (tokens_N[1:] > 0)
        self.unit_duplicates += int(again.sum())
        self.unit_duplicate_tokens += int(tokens_N[1:][again].sum())

    @property
    def images(self) -> int:
        return int(self.histogram.sum())

    @property
    def tokens(self) -> int:
        return int((self.histogram * np.arange(len(self.histogram))).sum())

    def percentile(self, percent: float) -> int:
        """Of the tokens of an image."""
        return int(np.searchsorted(np.cumsum(self.histogram), self.images * percent / 100)) if self.images else 0

    def bins(self, count: int = 12) -> list[dict[str, int]]:
        """The histogram in about `count` bins of equal width: from, up to (exclusive), images."""
        width = max(1, -(-len(self.histogram) // count))
        return [
            {"from": first, "to": first + width, "images": int(self.histogram[first : first + width].sum())}
            for first in range(0, len(self.histogram), width)
        ]

    def as_dict(
        self, row_bytes: dict[str, int], dtype: str, rate: float | None, price: float | None
    ) -> dict[str, object]:
        """The numbers by name.

        Args:
            row_bytes: bytes of a token by storage dtype; `dtype` is the configured one.
            rate: tokens a second of one device. price: an hour of it.
        """
        images, tokens = self.images, self.tokens
        result: dict[str, object] = {
            "max_pixels": self.max_pixels,
            "samples": self.samples,
            "units": self.units,
            "rejects": {name: count for name, count in sorted(self.rejects.items()) if count},
            "tokens": tokens,
            "tokens_mean": tokens / images if images else 0.0,
            **{f"tokens_p{percent}": self.percentile(percent) for percent in PERCENTILES},
            "tokens_max": len(self.histogram) - 1 if images else 0,
            "tokens_histogram": self.bins(),
            "language_model_tokens": tokens + LANGUAGE_MODEL_EXTRA * images,
            "share_clamped_min": self.clamped_min / images if images else 0.0,
            "share_clamped_max": self.clamped_max / images if images else 0.0,
            "share_scaled_up": self.scaled_up / images if images else 0.0,
            "duplicates": self.duplicates,
            "duplicate_tokens": self.duplicate_tokens,
            "duplicates_within_units": self.unit_duplicates,
            "duplicate_tokens_within_units": self.unit_duplicate_tokens,
            "embedding_bytes": tokens * row_bytes[dtype],
            "bytes_by_dtype": {name: tokens * size for name, size in row_bytes.items()},
        }
        if rate:
            encoded = tokens - self.unit_duplicate_tokens
            result["device_hours"] = encoded / rate / 3600
            if price is not None:
                cost = encoded / rate / 3600 * price
                result["price"] = cost
                # Break-even: a cached token is cheaper than encoding it again while keeping a terabyte costs less than
                # this between two epochs; at a price of s it pays from epoch 1 + s / this on.
                size = tokens * row_bytes[dtype] / 1e12
                result["break_even_price_per_terabyte"] = cost / size if size else 0.0
        return result


def repeated(hash_N: npt.NDArray[np.uint64]) -> Int64:
    """The samples whose hash stands there more than once."""
    order = np.argsort(hash_N)
    same = hash_N[order][1:] == hash_N[order][:-1]
    return order[np.concatenate([[False], same]) | np.concatenate([same, [False]])] if len(hash_N) else order
