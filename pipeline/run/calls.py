"""Calls: what each process of a run has not answered yet, and how long that has been."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..index.units import Unit
from .events import Blame, CallFailed, PartIndexed, Stage, UnitCommitted, UnitPrepared
from .fleet import Process

REMEMBERED = 101
SHORTEST_LIMIT_SECONDS = 600.0
TIMES_THE_MEDIAN = 10.0
INDEX_TIMES = 6.0  # a part may be many times a unit
SECOND_TRY_SECONDS = 10.0
UNKNOWN_SECONDS = 60.0  # of a stage of which no call has ended yet
SECOND_TRY_TIMES = 2.0


@dataclass(kw_only=True, eq=False)
class Call:
    """A call that a process has not answered yet.

    Attributes:
        stage: None of its introduction.
        guarded: images are read in a child process, so that one that crashes its decoder is found.
        prepared: what an encoder is given, or a preparer is making, as the engine keeps it.
    """

    process: Process
    stage: Stage | None
    part: int = -1
    unit: Unit | None = None
    guarded: bool = False
    prepared: Any = None

    def failed(self, error: BaseException, blame: Blame) -> CallFailed:
        assert self.stage is not None
        return CallFailed(
            process=self.process,
            stage=self.stage,
            part=self.part,
            unit=self.unit,
            error=error,
            blame=blame,
            guarded=self.guarded,
        )

    def done(self, result: Any) -> PartIndexed | UnitPrepared | UnitCommitted:
        if self.unit is None:
            return PartIndexed(process=self.process, part=self.part)
        if self.stage is Stage.PREPARE:
            return UnitPrepared(process=self.process, unit=self.unit, handle=self.prepared)
        return UnitCommitted(process=self.process, unit=self.unit, committed=result)


@dataclass(frozen=True, kw_only=True, eq=False)
class Started:
    """A call under way, since `at` by the engine's clock."""

    process: Process
    part: int
    unit: Unit | None
    at: float


class UnderWay:
    """The calls under way, the oldest first, and how long the last ones took.

    Args:
        limit_seconds: that a unit may take at a stage; None: the larger of ten minutes and ten times the median.
    """

    def __init__(self, limit_seconds: float | None = None) -> None:
        self._limit_seconds = limit_seconds
        self._calls: dict[Stage, dict[tuple[Process, str], Started]] = {stage: {} for stage in Stage}
        self._took: dict[Stage, deque[float]] = {stage: deque(maxlen=REMEMBERED) for stage in Stage}

    def began(self, stage: Stage, name: str, started: Started) -> None:
        self._calls[stage][started.process, name] = started

    def ended(self, stage: Stage, name: str, process: Process, now: float | None = None) -> None:
        """Notes an answer; `now` where it was a good one."""
        started = self._calls[stage].pop((process, name), None)
        if started is not None and now is not None:
            self._took[stage].append(now - started.at)

    def has(self, stage: Stage, name: str, process: Process) -> bool:
        return (process, name) in self._calls[stage]

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._calls.values())

    def limit_seconds(self, stage: Stage) -> float:
        """How long a call of a stage may take."""
        limit = self._limit_seconds
        if limit is None:
            took = self._took[stage]
            limit = max(SHORTEST_LIMIT_SECONDS, TIMES_THE_MEDIAN * statistics.median(took) if took else 0.0)
        return limit * INDEX_TIMES if stage is Stage.INDEX else limit

    def late(self, now: float) -> list[tuple[Stage, Started]]:
        """Calls that have taken longer than they may."""
        found = []
        for stage, calls in self._calls.items():
            limit = self.limit_seconds(stage) if calls else 0.0
            for started in calls.values():
                if now - started.at <= limit:
                    break  # the others are younger
                found.append((stage, started))
        return found

    def slow(self, stage: Stage, now: float) -> Iterator[Started]:
        """The oldest first, those that another process may be given as well once nothing else is left."""
        took = self._took[stage]
        least = max(SECOND_TRY_SECONDS, SECOND_TRY_TIMES * statistics.median(took)) if took else UNKNOWN_SECONDS
        for started in self._calls[stage].values():
            if now - started.at < least:
                return
            yield started


@dataclass(frozen=True, kw_only=True)
class PreparedHandle:
    """A prepared unit where an engine keeps it."""

    reference: Any
