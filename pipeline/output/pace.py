"""Pace: how fast units were encoded and how busy each encoder was, from the records of committed units.

A record says which encoder encoded the unit, when that ended (Unix seconds, of its node's clock) and how long it took.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .ledger_file import PACE, numbers_of
from .record import CommitRecord

RECENT_SECONDS = 60.0
PAUSE_SECONDS = 120.0  # and 4 times the longest unit: a run that was interrupted, and given again
BINS = 24
TABLES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit on one encoder, from `ended - seconds` to `ended`."""

    encoder: int
    ended: float
    seconds: float
    images: int
    tokens: int


def work_of(record: CommitRecord) -> Work | None:
    """Returns the work that a record tells of; None where it does not say whose it was."""
    if not record.encoded_at:
        return None
    return Work(
        encoder=record.encoder,
        ended=record.encoded_at,
        seconds=record.seconds.get("encode", 0.0),
        images=record.rows_out,
        tokens=record.tokens,
    )


class FoldedWorks:
    """The works that ledger files tell of: 40 bytes each, not an object."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []  # not counted yet: a numpy call for many is cheaper than one for each
        self._works: list[npt.NDArray[np.float64]] = []

    def add(self, table: pa.Table) -> None:
        """Adds the columns PACE of one part's ledger."""
        self._tables.append(table.select(PACE))
        if len(self._tables) == TABLES_AT_ONCE:
            self._count()

    def _count(self) -> None:
        if self._tables:
            table = pa.concat_tables(self._tables)
            works = np.stack([numbers_of(table, name).astype(np.float64) for name in PACE], axis=1)
            self._works.append(works[(works[:, 0] != 0) & ~np.isnan(works[:, 1])])
            self._tables = []

    def table(self) -> npt.NDArray[np.float64]:
        """All of them [U, 5]: ended, seconds, images, tokens, encoder; as `Timeline` takes them."""
        self._count()
        return np.concatenate([np.empty((0, len(PACE))), *self._works])

    def latest(self) -> list[Work]:
        """Those that the last time's pace hangs on: of that time, and the longest, which says how long it is."""
        table = self.table()
        if not len(table):
            return []
        longest = int(table[:, 1].argmax())
        first = table[:, 0].max() - max(RECENT_SECONDS, 4 * table[longest, 1])
        chosen = np.flatnonzero(table[:, 0] > first).tolist()
        return [
            Work(encoder=int(encoder), ended=ended, seconds=seconds, images=int(images), tokens=int(tokens))
            for ended, seconds, images, tokens, encoder in table[sorted({*chosen, longest})].tolist()
        ]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """A run's pace in the last time that its records tell of. `busy_encoders`: seconds of encoding a second."""

    images_per_second: float
    tokens_per_second: float
    busy_encoders: float
    seconds_since: float  # the last unit was encoded


class Recent:
    """The last minute of work, or, where units take longer, the time of the last four."""

    def __init__(self) -> None:
        self._works: dict[int, list[Work]] = defaultdict(list)
        self._window_seconds = RECENT_SECONDS

    def add(self, works: Iterable[Work]) -> None:
        """Adds what was committed since the last time, in any order."""
        for work in works:
            self._works[work.encoder].append(work)
            self._window_seconds = max(self._window_seconds, 4 * work.seconds)
        last = self._last()
        for encoder, recent in list(self._works.items()):
            kept = [work for work in recent if work.ended > last - self._window_seconds]
            self._works[encoder] = kept
            if not kept:  # of an earlier run, or one that is no more
                del self._works[encoder]

    def _last(self) -> float:
        return max((work.ended for works in self._works.values() for work in works), default=0.0)

    def pace(self, now: float) -> Pace | None:
        """None before the first unit."""
        works = [work for recent in self._works.values() for work in recent]
        if not works:
            return None
        last = self._last()
        first = max(last - self._window_seconds, min(work.ended - work.seconds for work in works))
        shares = [min(1.0, (work.ended - first) / max(work.seconds, 1e-9)) for work in works]
        seconds = max(last - first, 1e-9)
        return Pace(
            images_per_second=sum(work.images * share for work, share in zip(works, shares, strict=True)) / seconds,
            tokens_per_second=sum(work.tokens * share for work, share in zip(works, shares, strict=True)) / seconds,
            busy_encoders=sum(work.seconds * share for work, share in zip(works, shares, strict=True)) / seconds,
            seconds_since=max(0.0, now - last),
        )

    def encoders(self, now: float) -> list[dict[str, float]]:
        """For each encoder its busy share up to its last unit's end, and how long ago that was."""
        result = []
        for encoder, works in sorted(self._works.items()):
            last = max(work.ended for work in works)
            first = max(last - self._window_seconds, min(work.ended - work.seconds for work in works))
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
    """All units of an output, some 80 bytes each. `folded`: the works of ledger files, beside the others."""

    def __init__(self, works: Iterable[Work], folded: FoldedWorks | None = None) -> None:
        flat = array("d")
        for work in works:
            flat.extend((work.ended, work.seconds, work.images, work.tokens, work.encoder))
        table = np.frombuffer(flat, np.float64).reshape(-1, 5)
        if folded is not None:
            table = np.concatenate([table, folded.table()])
        self._ended, self._seconds, self._images, self._tokens, self._encoder = table[
            np.lexsort(table.T[::-1])
        ].T  # one order
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
