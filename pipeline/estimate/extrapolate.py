"""Extrapolate: from the draws of `sampling.py` to what the whole source would give, each number with its interval.

Source: Cochran, Sampling Techniques, 3rd edition (1977), 9A.3 (drawing with unequal probabilities).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rejects
from ..grid import Geometry
from ..output.output_size import FORMATS, VALUE_BYTES, image_bytes, shard_bytes
from ..source.drawing import Draws
from .estimate import LANGUAGE_MODEL_EXTRA, PERCENTILES, Rates, Writing, bins_of, branches_of, tokens_of_sizes

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
FEW = (12.706, 4.303, 3.182, 2.776, 2.571)
CONFIDENT = 1.959964  # of a normal distribution, 95 % of which lie within so many standard deviations


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float

    def scaled(self, by: float) -> dict[str, float]:
        return {"estimate": self.estimate * by, "low": self.low * by, "high": self.high * by}


def extrapolated(draws: Draws, geometry: Geometry, budgets: Mapping[int, Rates], writing: Writing) -> dict[str, Any]:
    """Estimates from some samples what `estimate_plan` counts: totals with intervals, shares and percentiles without.

    Duplicates are not seen: device hours are those of encoding every image.
    """
    weights = np.concatenate([np.full(len(one.samples), one.weight) for one in draws.draws])
    height_N, width_N = (
        np.array([getattr(sample, side) for one in draws.draws for sample in one.samples], np.int64)
        for side in ("height", "width")
    )
    sizes = _Sizes(draws=draws, height_N=height_N, width_N=width_N, weights=weights)
    seen = height_N > 0
    shapes = {
        "megapixels": height_N * width_N / 1e6,
        "aspect_ratio": np.maximum(height_N, width_N) / np.maximum(np.minimum(height_N, width_N), 1),
    }
    return {
        "sampled": draws.samples,
        "files": draws.files,
        "samples": interval(draws, np.ones(draws.samples)).scaled(1),
        "no_image": interval(draws, _statuses(draws) == rejects.NO_IMAGE).estimate,
        **{
            f"{name}_p{percent}": quantile(values[seen], weights[seen], percent)
            for name, values in shapes.items()
            for percent in PERCENTILES
        },
        "budgets": [
            _of_budget(sizes, replace(geometry, max_pixels=budget), writing, rates) for budget, rates in budgets.items()
        ],
    }


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """The N samples that were drawn: their sizes, 0 for a reject, and how many of the source's each stands for."""

    draws: Draws
    height_N: Int64
    width_N: Int64
    weights: Float64


def _of_budget(sizes: _Sizes, geometry: Geometry, writing: Writing, rates: Rates) -> dict[str, Any]:
    draws, height_N, width_N, weights = sizes.draws, sizes.height_N, sizes.width_N, sizes.weights
    tokens_N = tokens_of_sizes(height_N, width_N, geometry)
    usable = tokens_N > 0
    total, images = interval(draws, tokens_N), interval(draws, usable)
    every = float(weights[usable].sum())
    branches = branches_of(height_N, width_N, tokens_N * geometry.factor**2, geometry)

    def size(kind: str, dtype: str) -> Interval:
        shards_N = tokens_N / writing.shard_tokens  # if all were full
        images_N = image_bytes(tokens_N, writing.row, kind, dtype) * usable
        return interval(draws, images_N + shards_N * shard_bytes(kind))

    stored = size(writing.format, writing.dtype)
    costs = {name: rates.costs(getattr(total, name), getattr(stored, name)) for name in ("estimate", "low", "high")}
    large_N = width_N * height_N > geometry.max_image_pixels
    by_size = {rejects.TOO_MANY_PIXELS: large_N, rejects.ASPECT_RATIO: (height_N > 0) & ~usable & ~large_N}
    return {
        "max_pixels": geometry.max_pixels,
        "rejects": rejected(draws)
        | {reason: interval(draws, where_N).estimate for reason, where_N in by_size.items() if where_N.any()},
        "images": images.scaled(1),
        "tokens": total.scaled(1),
        "tokens_mean": total.estimate / images.estimate if images.estimate else 0.0,
        **{f"tokens_p{p}": int(quantile(tokens_N[usable], weights[usable], p)) for p in PERCENTILES},
        "tokens_histogram": bins_of(np.bincount(tokens_N[usable], weights[usable] / len(draws.draws), minlength=1)),
        "language_model_tokens": interval(draws, tokens_N + LANGUAGE_MODEL_EXTRA * usable).scaled(1),
        **{
            f"share_{name}": float(weights[usable & branch_N].sum()) / every if every else 0.0
            for name, branch_N in branches.items()
        },
        "embedding_bytes": total.scaled(writing.width * VALUE_BYTES[writing.dtype]),
        **{name: total.scaled(each) for name, each in writing.streams_of(1).items()},
        "data_bytes": stored.scaled(1),
        **{f"{kind}_bytes_by_dtype": {dtype: size(kind, dtype).estimate for dtype in VALUE_BYTES} for kind in FORMATS},
        **({"tokens_per_second": rate} if (rate := rates.tokens_per_second) else {}),
        **{
            name: costs["estimate"][name] if name.startswith("break_even") else {key: costs[key][name] for key in costs}
            for name in costs["estimate"]
        },
    }


def interval(draws: Draws, values_N: npt.NDArray[Any]) -> Interval:
    """Estimates the source's total of a value that each sample has: the draws' mean of what each says it is."""
    ends = np.cumsum([len(one.samples) for one in draws.draws])[:-1]
    totals = np.array(
        [one.weight * float(values.sum()) for one, values in zip(draws.draws, np.split(values_N, ends), strict=True)]
    )
    mean = float(totals.mean())
    if len(totals) < 2 or not draws.unseen:
        return Interval(estimate=mean, low=mean, high=mean)
    half = student(len(totals) - 1) * float(totals.std(ddof=1)) / len(totals) ** 0.5 * draws.unseen**0.5
    return Interval(estimate=mean, low=max(0.0, mean - half), high=mean + half)


def student(freedom: int) -> float:
    """Student's t for 95 %. Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5, table 26.10."""
    if freedom <= len(FEW):  # where the series is not close
        return FEW[freedom - 1]
    z = CONFIDENT
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))


def rejected(draws: Draws) -> dict[str, float]:
    """About how many samples of the source are rejects by their headers, by reason."""
    status_N = _statuses(draws)
    reasons = sorted({str(status) for status in status_N} - {rejects.OK, rejects.NO_IMAGE})
    return {reason: interval(draws, status_N == reason).estimate for reason in reasons}


def _statuses(draws: Draws) -> npt.NDArray[np.str_]:
    return np.array([sample.status for one in draws.draws for sample in one.samples], np.str_)


def quantile(values_N: npt.NDArray[Any], weights: Float64, percent: float) -> float:
    """Returns a percentile of values that each stand for `weight` of their kind; 0 where there is none."""
    if not len(values_N):
        return 0.0
    order = np.argsort(values_N)
    ends = np.cumsum(weights[order])
    index = int(np.searchsorted(ends, ends[-1] * percent / 100))
    return float(values_N[order][min(len(values_N) - 1, index)])
