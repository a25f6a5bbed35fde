"""Pace: how fast units were encoded and how busy each encoder was, from the records of committed units.

A record says which encoder encoded the unit, when that ended (Unix seconds, of its node's clock) and how long it took.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RECENT_SECONDS = 60.0
PAUSE_SECONDS = 120.0  # and 4 times the longest unit: a run that was interrupted, and given again
BINS = 24


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit on one encoder, from `ended - seconds` to `ended`."""

    encoder: int
    ended: float
    seconds: float
    images: int
    tokens: int


def work_of(record: dict[str, Any]) -> Work | None:
    """None of a record that does not say it."""
    if "encoded_at" not in record:
        return None
    return Work(
        encoder=int(record["encoder"]), ended=float(record["encoded_at"]), seconds=float(record["seconds"]["encode"]),
        images=int(record["rows_out"]), tokens=int(record["tokens"]),
    )  # fmt: skip


class Recent:
    """Each encoder's last minute of work."""

    def __init__(self) -> None:
        self._works: dict[int, deque[Work]] = defaultdict(deque)

    def add(self, work: Work) -> None:
        works = self._works[work.encoder]
        works.append(work)
        if len(works) > 1 and work.ended < works[-2].ended:  # records come in the order of their names
            self._works[work.encoder] = works = deque(sorted(works, key=lambda one: one.ended))
        while works[0].ended < works[-1].ended - RECENT_SECONDS:
            works.popleft()

    def encoders(self, now: float) -> list[dict[str, float]]:
        """For each encoder its busy share up to its last unit's end, and how long ago that was."""
        result = []
        for encoder, works in sorted(self._works.items()):
            last = works[-1].ended
            first = max(last - RECENT_SECONDS, min(work.ended - work.seconds for work in works))
            busy = sum(work.ended - max(first, work.ended - work.seconds) for work in works)
            result.append(
                {
                    "encoder": encoder,
                    "busy_share": round(min(1.0, busy / max(last - first, 1e-9)), 4),
                    "seconds_since": round(max(0.0, now - last), 1),
                }
            )
        return result


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A time in which units were encoded without a pause."""

    began: float
    ended: float
    images: int
    tokens: int
    encoders: int
    busy_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.ended - self.began, 1e-9)

    def as_dict(self) -> dict[str, object]:
        return {
            "began": round(self.began, 3),
            "seconds": round(self.seconds, 3),
            "images": self.images,
            "images_per_second": round(self.images / self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "encoders": self.encoders,
            "busy_share": round(min(1.0, self.busy_seconds / self.seconds / self.encoders), 4),
        }


class Timeline:
    """All units of an output, some 80 bytes each."""

    def __init__(self, works: Iterable[Work]) -> None:
        flat = array("d")
        for work in works:
            flat.extend((work.ended, work.seconds, work.images, work.tokens, work.encoder))
        table = np.frombuffer(flat, np.float64).reshape(-1, 5)
        self._ended, self._seconds, self._images, self._tokens, self._encoder = table[np.argsort(table[:, 0])].T
        self._began = self._ended - self._seconds

    def stretches(self) -> list[Stretch]:
        """In order of time."""
        return [self._stretch(chosen) for chosen in self._runs()]

    def _runs(self) -> list[npt.NDArray[np.int64]]:
        if not len(self._ended):
            return []
        pause = max(PAUSE_SECONDS, 4 * float(self._seconds.max()))
        cuts = np.flatnonzero(self._began[1:] - np.maximum.accumulate(self._ended)[:-1] > pause) + 1
        return np.split(np.arange(len(self._ended)), cuts)

    def _stretch(self, chosen: npt.NDArray[np.int64]) -> Stretch:
        return Stretch(
            began=float(self._began[chosen].min()),
            ended=float(self._ended[chosen].max()),
            images=int(self._images[chosen].sum()),
            tokens=int(self._tokens[chosen].sum()),
            encoders=len(np.unique(self._encoder[chosen])),
            busy_seconds=float(self._seconds[chosen].sum()),
        )

    def over_time(self, bins: int = BINS) -> list[dict[str, float]]:
        """Images per second and busy share in bins of equal length, pauses left out; from and to in seconds.

        A unit's images are spread evenly over the time that it took.
        """
        runs = self._runs()
        stretches = [self._stretch(chosen) for chosen in runs]
        total = sum(one.seconds for one in stretches)
        edges = np.linspace(0, total, bins + 1)
        images, busy, there = np.zeros(bins), np.zeros(bins), np.zeros(bins)
        before = 0.0
        for chosen, one in zip(runs, stretches, strict=True):
            began = self._began[chosen] - one.began + before
            ended = self._ended[chosen] - one.began + before
            for number in range(bins):
                low, high = edges[number], edges[number + 1]
                shared = np.clip(np.minimum(ended, high) - np.maximum(began, low), 0, None)
                images[number] += (self._images[chosen] * shared / np.maximum(ended - began, 1e-9)).sum()
                busy[number] += shared.sum()
                there[number] += max(0.0, min(before + one.seconds, high) - max(before, low)) * one.encoders
            before += one.seconds
        width = total / bins
        return [
            {
                "from": round(float(edges[number]), 3),
                "to": round(float(edges[number + 1]), 3),
                "images_per_second": round(float(images[number] / width), 3),
                "busy_share": round(min(1.0, float(busy[number] / max(there[number], 1e-9))), 4),
            }
            for number in range(bins if total > 0 else 0)
        ]
