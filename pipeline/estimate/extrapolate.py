"""Extrapolate: from the draws of `sampling.py` to what the whole source would give, each number with its interval.

Source: Cochran, Sampling Techniques, 3rd edition (1977), 9A.3 (drawing with unequal probabilities).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rejects
from ..grid import Geometry
from ..output.output_size import FORMATS, VALUE_BYTES, image_bytes, shard_bytes
from ..output.statistics import BRANCHES
from ..source.drawing import Draws
from ..source.sample import VideoFacts
from .estimate import LANGUAGE_MODEL_EXTRA, Case, Rates, branches_of, tokens_of_sizes
from .film import PlannedClips, planned_clips
from .histograms import PERCENTILES, Int64, bins_of

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


def extrapolated(draws: Draws, cases: Sequence[Case], rates: Sequence[Rates]) -> dict[str, Any]:
    """Estimates from some samples what `estimate_plan` counts: totals with intervals, shares and percentiles without.

    Duplicates are not seen: device hours are those of encoding every image.

    Args:
        rates: of each case.
    """
    samples = [sample for one in draws.draws for sample in one.samples]
    sizes = _Sizes(
        draws=draws,
        height_N=np.array([sample.height for sample in samples], np.int64),
        width_N=np.array([sample.width for sample in samples], np.int64),
        weights=np.concatenate([np.full(len(one.samples), one.weight) for one in draws.draws]),
        clips={row: sample.video for row, sample in enumerate(samples) if sample.video is not None},
    )
    height_N, width_N, weights = sizes.height_N, sizes.width_N, sizes.weights
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
        "budgets": [_of_case(sizes, case, one) for case, one in zip(cases, rates, strict=True)],
    }


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """The N samples that were drawn: their sizes, 0 for a reject, and how many of the source's each stands for.

    Attributes:
        clips: those that are accepted clips, by their place.
    """

    draws: Draws
    height_N: Int64
    width_N: Int64
    weights: Float64
    clips: dict[int, VideoFacts]


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Tokens of the samples as one case has them, 0 for a reject.

    Attributes:
        branches: which of BRANCHES each took.
        rejects: which are rejects by their size, by reason.
    """

    tokens_N: Int64
    branches: dict[str, npt.NDArray[np.bool_]]
    planned: PlannedClips
    rejects: dict[str, npt.NDArray[np.bool_]]


def _tokens_of(sizes: _Sizes, geometry: Geometry) -> _Tokens:
    is_image_N = np.ones(len(sizes.height_N), bool)
    is_image_N[list(sizes.clips)] = False
    height_N, width_N = sizes.height_N * is_image_N, sizes.width_N * is_image_N
    tokens_N = tokens_of_sizes(height_N, width_N, geometry)
    large_N = width_N * height_N > geometry.max_image_pixels
    by_size = {
        rejects.TOO_MANY_PIXELS: large_N,
        rejects.ASPECT_RATIO: (height_N > 0) & (tokens_N == 0) & ~large_N,
        rejects.MISSING_IMAGE: np.zeros_like(large_N),
    }
    branches = branches_of(height_N, width_N, tokens_N * geometry.factor**2, geometry)
    planned = planned_clips(sizes.clips, sizes.height_N, sizes.width_N, geometry)
    tokens_N[planned.rows_C] = planned.figures.tokens_C
    for bit, name in enumerate(BRANCHES):
        branches[name][planned.rows_C] = planned.figures.branches_C >> bit & 1 == 1
    for row, reason in planned.rejected.items():
        by_size[reason][row] = True
    return _Tokens(tokens_N=tokens_N, branches=branches, planned=planned, rejects=by_size)


def _of_case(sizes: _Sizes, case: Case, rates: Rates) -> dict[str, Any]:
    draws, writing = sizes.draws, case.writing
    found = _tokens_of(sizes, case.geometry)
    tokens_N, usable = found.tokens_N, found.tokens_N > 0
    total, images = interval(draws, tokens_N), interval(draws, usable)

    def size(kind: str, dtype: str) -> Interval:
        shards_N = tokens_N / writing.shard_tokens  # if all were full
        images_N = image_bytes(tokens_N, writing.row, kind, dtype) * usable
        return interval(draws, images_N + shards_N * shard_bytes(kind))

    stored = size(writing.format, writing.dtype)
    costs = {name: rates.costs(getattr(total, name), getattr(stored, name)) for name in ("estimate", "low", "high")}
    by_status = rejected(draws)
    for reason, where_N in found.rejects.items():
        if where_N.any():
            by_status[reason] = by_status.get(reason, 0.0) + interval(draws, where_N).estimate
    return {
        "max_pixels": case.geometry.max_pixels,
        "rejects": by_status,
        "images": images.scaled(1),
        **_figures(sizes, found, usable),
        "language_model_tokens": interval(draws, tokens_N + LANGUAGE_MODEL_EXTRA * usable).scaled(1),
        **_media(sizes, found),
        "embedding_bytes": total.scaled(writing.width * VALUE_BYTES[writing.dtype]),
        **{name: total.scaled(each) for name, each in writing.streams_of(1).items()},
        "data_bytes": stored.scaled(1),
        **{f"{kind}_bytes_by_dtype": {dtype: size(kind, dtype).estimate for dtype in VALUE_BYTES} for kind in FORMATS},
        **({"tokens_per_second": rate} if (rate := rates.tokens_per_second) else {}),
        **{
            name: costs["estimate"][name] if name.startswith("break_even") else {key: costs[key][name] for key in costs}
            for name in costs["estimate"]
        },
        **_preparing(sizes, found, total, rates),
    }


def _preparing(sizes: _Sizes, found: _Tokens, total: Interval, rates: Rates) -> dict[str, Any]:
    """Core hours with their interval, and cores for each device."""
    seconds_N = np.zeros(len(found.tokens_N))
    seconds_N[found.planned.rows_C] = found.planned.figures.seconds_C
    is_image_N = (found.tokens_N > 0) & (seconds_N == 0)
    if rates.core_seconds(float(is_image_N.sum()), float(seconds_N.sum())) is None:
        return {}
    each_N = is_image_N * (rates.image_seconds or 0.0) + seconds_N * (rates.film_second_seconds or 0.0)
    core_seconds = interval(sizes.draws, each_N)
    of_middle = rates.preparing(core_seconds.estimate, total.estimate)
    return of_middle | {"prepare_core_hours": core_seconds.scaled(1 / 3600)}


def _figures(sizes: _Sizes, found: _Tokens, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Tokens and branches of some of the accepted samples."""
    draws, tokens, weights = sizes.draws, found.tokens_N[chosen], sizes.weights[chosen]
    total, count = interval(draws, found.tokens_N * chosen), interval(draws, chosen)
    every = float(weights.sum())
    return {
        "tokens": total.scaled(1),
        "tokens_mean": total.estimate / count.estimate if count.estimate else 0.0,
        **{f"tokens_p{p}": int(quantile(tokens, weights, p)) for p in PERCENTILES},
        "tokens_histogram": bins_of(np.bincount(tokens, weights / len(draws.draws), minlength=1)),
        **{
            f"share_{name}": float(weights[branch_N[chosen]].sum()) / every if every else 0.0
            for name, branch_N in found.branches.items()
        },
    }


def _media(sizes: _Sizes, found: _Tokens) -> dict[str, Any]:
    """The figures of `film.by_media`; nothing where no clip was drawn."""
    rows_C, figures = found.planned.rows_C, found.planned.figures
    if not len(rows_C):
        return {}
    is_clip_N = np.zeros(len(found.tokens_N), bool)
    is_clip_N[rows_C] = True
    is_image_N = (found.tokens_N > 0) & ~is_clip_N
    seconds_N, frames_N = np.zeros(len(is_clip_N)), np.zeros(len(is_clip_N))
    seconds_N[rows_C], frames_N[rows_C] = figures.seconds_C, figures.frames_C
    clips, seconds, frames = (interval(sizes.draws, values) for values in (is_clip_N, seconds_N, frames_N))
    timed_C = figures.seconds_C > 0  # a list of frames may have no known length
    timed_tokens = interval(sizes.draws, found.tokens_N * (seconds_N > 0))
    rates_C, weights_C = figures.tokens_C[timed_C] / figures.seconds_C[timed_C], sizes.weights[rows_C][timed_C]
    video = {
        "clips": clips.scaled(1),
        "seconds": seconds.scaled(1),
        "frames": frames.scaled(1),
        "frames_mean": frames.estimate / clips.estimate,
        **_figures(sizes, found, is_clip_N),
        "tokens_per_film_second": timed_tokens.estimate / seconds.estimate if seconds.estimate else 0.0,
        **{
            f"tokens_per_film_second_p{p}": quantile(rates_C, weights_C, p) if len(rates_C) else 0.0
            for p in PERCENTILES
        },
    }
    image = {"images": interval(sizes.draws, is_image_N).scaled(1), **_figures(sizes, found, is_image_N)}
    return {"media": {"image": image, "video": video}}


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
