"""Film: what an estimate counts of clips beside images: seconds, frames, and tokens a second. C clips of N samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..grid import Geometry
from ..index.video_facts import plan_of, seconds_of
from ..index.video_sampling import ClipPlan
from ..output.clip_statistics import ClipStatistics
from ..output.statistics import BRANCHES
from ..rejects import Reject
from ..source.sample import VideoFacts
from .histograms import PERCENTILES, Int64, LogHistogram, added, bins_of, percentile_of

SCALE = 1000  # a histogram by logarithm has values from 1 up; of a long clip a second may be less than a token


@dataclass(frozen=True, kw_only=True)
class PlannedClips:
    """Clips as one case has them.

    Attributes:
        rows_C: of those that are accepted, their place among N samples.
        plans, figures: theirs.
        rejected: why the others are none, by their place.
    """

    rows_C: Int64
    plans: list[ClipPlan]
    figures: ClipStatistics
    rejected: dict[int, str]


def planned_clips(clips: Mapping[int, VideoFacts], height_N: Int64, width_N: Int64, geometry: Geometry) -> PlannedClips:
    """Plans clips, by their place among N samples, without decoding."""
    plans: dict[int, ClipPlan] = {}
    rejected: dict[int, str] = {}
    for row, video in clips.items():
        try:
            plans[row] = plan_of(video, int(width_N[row]), int(height_N[row]), geometry)
        except Reject as reject:
            rejected[row] = reject.reason
    figures = (
        (
            plan.patches // geometry.merge_size**2,
            len(plan.frames),
            seconds_of(clips[row].start, clips[row].end, clips[row].fps, clips[row].duration),
            _branches(plan, int(height_N[row] * width_N[row])),
        )
        for row, plan in plans.items()
    )
    return PlannedClips(
        rows_C=np.array(list(plans), np.int64),
        plans=list(plans.values()),
        figures=ClipStatistics.of_rows(figures),
        rejected=rejected,
    )


def _branches(plan: ClipPlan, pixels: int) -> int:
    """Which of BRANCHES a clip took, as bits. `pixels`: of a frame before resizing."""
    taken = (plan.clamped == "min", plan.clamped == "max", plan.height * plan.width > pixels)
    return sum(1 << bit for bit, is_taken in enumerate(taken) if is_taken)


@dataclass(kw_only=True)
class Film:
    """The sums over accepted clips. `histogram` counts them by their number of tokens.

    Attributes:
        repeats, repeated_seconds: of those of which an equal one stands before them in their unit, where that is known.
    """

    seconds: float = 0.0
    timed_tokens: int = 0  # of clips whose length is known: a list of frames may have none
    frames: int = 0
    histogram: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))
    rates: LogHistogram = field(default_factory=LogHistogram)  # of thousandths of a token, a second of film
    branches: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    repeated_seconds: float = 0.0

    def add(self, clips: ClipStatistics) -> None:
        """Adds clips."""
        if not len(clips.tokens_C):
            return
        seconds_C = clips.seconds_C.astype(np.float64)
        self.seconds += float(seconds_C.sum())
        self.frames += int(clips.frames_C.sum(dtype=np.int64))
        self.histogram = added(self.histogram, np.bincount(clips.tokens_C))
        timed = seconds_C > 0
        self.timed_tokens += int(clips.tokens_C[timed].sum(dtype=np.int64))
        self.rates.add(SCALE * clips.tokens_C[timed] / seconds_C[timed])
        for bit, name in enumerate(BRANCHES):
            self.branches[name] += int((clips.branches_C >> bit & 1).sum())

    def merge(self, other: Film) -> None:
        """Adds what another one counted of other parts."""
        self.seconds += other.seconds
        self.timed_tokens += other.timed_tokens
        self.frames += other.frames
        self.histogram = added(self.histogram, other.histogram)
        self.rates.counts += other.rates.counts
        self.branches.update(other.branches)
        self.repeats += other.repeats
        self.repeated_seconds += other.repeated_seconds

    @property
    def clips(self) -> int:
        return int(self.histogram.sum())

    @property
    def tokens(self) -> int:
        return tokens_in(self.histogram)

    def as_dict(self) -> dict[str, object]:
        """The numbers by name."""
        clips = self.clips
        return {
            "clips": clips,
            "seconds": self.seconds,
            "frames": self.frames,
            "frames_mean": self.frames / clips if clips else 0.0,
            **tokens_of(self.histogram),
            "tokens_per_film_second": self.timed_tokens / self.seconds if self.seconds else 0.0,
            **{f"tokens_per_film_second_p{p}": self.rates.percentile(p) / SCALE for p in PERCENTILES},
            **shares(self.branches, clips),
        }


def tokens_in(histogram: Int64) -> int:
    """All tokens of the images that a histogram counts by tokens."""
    return int((histogram * np.arange(len(histogram))).sum())


def tokens_of(histogram: Int64) -> dict[str, object]:
    """Sums up a histogram of images, or of clips, by tokens."""
    count, tokens = int(histogram.sum()), tokens_in(histogram)
    return {
        "tokens": tokens,
        "tokens_mean": tokens / count if count else 0.0,
        **{f"tokens_p{percent}": percentile_of(histogram, percent) for percent in PERCENTILES},
        "tokens_max": len(histogram) - 1 if count else 0,
        "tokens_histogram": [one | {"images": int(one["images"])} for one in bins_of(histogram)],
    }


def shares(branches: Counter[str], count: int) -> dict[str, float]:
    """The share of each of BRANCHES among so many."""
    return {f"share_{name}": branches[name] / count if count else 0.0 for name in BRANCHES}


def by_media(histogram: Int64, branches: Counter[str], film: Film) -> dict[str, object]:
    """The figures of images and of clips by themselves; nothing where there are no clips.

    Args:
        histogram, branches: of both together.
    """
    if not film.clips:
        return {}
    of_images = histogram.copy()
    of_images[: len(film.histogram)] -= film.histogram
    of_images = np.trim_zeros(of_images, "b") if of_images.any() else of_images[:1]
    images = int(of_images.sum())
    image_branches = Counter({name: branches[name] - film.branches[name] for name in BRANCHES})
    image = {"images": images, **tokens_of(of_images), **shares(image_branches, images)}
    return {"media": {"image": image, "video": film.as_dict()}}
