"""Drive: which stage works on what, engine or no engine.

    parts to index ─▶ units to prepare ─▶ prepared units ─▶ encoders ─▶ committed

The driver holds names and counts, never samples: units are cut from one part's index at a time. Prepared patches that
wait or are being encoded are bounded in bytes. Preparing goes before indexing while encoders could starve, and whatever
a worker can do it is given, so that one worker of each kind, or one CPU in all, is enough to finish.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import DamagedPart, EncodeError, OutputError, RunFailed
from ..index.units import Unit
from ..output.totals import Totals
from .events import Blame, CallFailed, Event, PartIndexed, Stage, UnitCommitted, UnitPrepared, name_of

MAX_FAILURES_IN_A_ROW = 10
MAX_LOSSES = 20  # of one unit or part with a node, or to the memory monitor: no attempts, but not for ever either
DEATHS_BEFORE_GUARD = 2
DEATHS_BEFORE_ALL_ARE_GUARDED = 5  # in a row: a source that is full of such images
REJECTS_CHECKED_AFTER = 1000


class Engine(Protocol):
    """Where stages run. Calls return at once; what came of them is in `wait`.

    `guarded`: images are read in a child process, so that one that crashes its decoder is found.
    """

    def free_preparers(self) -> int: ...

    def free_encoders(self) -> int: ...

    def index(self, part: int, guarded: bool) -> None: ...

    def prepare(self, unit: Unit, guarded: bool) -> None: ...

    def encode(self, unit: Unit, handle: Any) -> None: ...

    def wait(self, timeout_seconds: float) -> list[Event]: ...


@dataclass(kw_only=True)
class Progress:
    """The driver's account of its work."""

    totals: Totals = field(default_factory=Totals)
    parts: int = 0
    parts_indexed: int = 0
    parts_cut: int = 0
    prepared: int = 0
    units_known: int = 0
    units_before: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)
    failed_parts: dict[int, str] = field(default_factory=dict)
    retries: int = 0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a run may have to do.

    Attributes:
        parts: how many there are; `indexed`: those that are already.
        units_of: cuts an indexed part. Raises DamagedPart.
        committed: whether a unit, by part and number, is committed already.
        unit_bytes: what a prepared unit takes.
    """

    parts: int
    indexed: set[int]
    units_of: Callable[[int], list[Unit]]
    committed: Callable[[int, int], bool] = lambda part, number: False
    unit_bytes: Callable[[Unit], int] = lambda unit: 0


@dataclass(frozen=True, kw_only=True)
class DriverLimits:
    """The bounds that a driver keeps.

    Attributes:
        in_flight_bytes: of prepared patches that wait or are being encoded; a single larger unit passes alone.
        attempts: of a unit or part before it is set aside.
        max_rejected_fraction: share of samples that may be rejects.
    """

    in_flight_bytes: int
    attempts: int
    max_rejected_fraction: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Callbacks of a driver: `on_tick` whenever something happened, `on_start` once, before the first encoding."""

    on_tick: Callable[[Progress], None] = lambda progress: None
    on_start: Callable[[], None] = lambda: None


SILENT = Observer()


class Driver:
    """Runs everything that is not committed yet."""

    def __init__(self, engine: Engine, work: Work, limits: DriverLimits, observer: Observer = SILENT) -> None:
        self._engine, self._work, self._limits, self._observer = engine, work, limits, observer
        self._to_index = deque(part for part in range(work.parts) if part not in work.indexed)
        self._indexed = deque(sorted(work.indexed))
        self._cutting: Iterator[Unit] = iter(())
        self._next: Unit | None = None
        self._retry: deque[Unit] = deque()
        self._prepared: deque[tuple[Unit, Any]] = deque()
        self._in_flight_bytes = 0
        self._outstanding = 0
        self._attempts: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._deaths: Counter[str] = Counter()  # of processes that read the images of a unit or part
        self._deaths_in_a_row = 0
        self._failures_in_a_row = 0
        self._started = False
        self.progress = Progress(parts=work.parts, parts_indexed=len(work.indexed))

    def run(self) -> Progress:
        """Works until nothing is left that can be done.

        Raises:
            OutputError: the output cannot be written.
            RunFailed: ten units failed in a row, or too many samples are rejects.
        """
        while True:
            self._fill()
            if not self._outstanding and not self._work_left():
                return self.progress
            for event in self._engine.wait(1.0):
                self._handle(event)
            self.progress.prepared = len(self._prepared)
            self._observer.on_tick(self.progress)

    def _work_left(self) -> bool:
        """Whether anything waits for a process: all of them may have died and not be back yet."""
        return bool(self._prepared or self._to_index or self._peek() is not None)

    def _fill(self) -> None:
        """Gives every free process something to do."""
        engine = self._engine
        while self._prepared and engine.free_encoders():
            unit, handle = self._prepared.popleft()
            if not self._started:
                self._started = True
                self._observer.on_start()
            engine.encode(unit, handle)
            self._outstanding += 1
        while engine.free_preparers():
            unit_or_none = self._peek()
            if unit_or_none is not None and self._fits(unit_or_none):
                self._take()
                self._in_flight_bytes += self._work.unit_bytes(unit_or_none)
                engine.prepare(unit_or_none, self._is_suspect(name_of(unit_or_none.part, unit_or_none)))
            elif self._to_index:
                part = self._to_index.popleft()
                engine.index(part, self._is_suspect(name_of(part, None)))
            else:
                return
            self._outstanding += 1

    def _is_suspect(self, name: str) -> bool:
        all_are = self._deaths_in_a_row >= DEATHS_BEFORE_ALL_ARE_GUARDED
        return all_are or self._deaths[name] >= DEATHS_BEFORE_GUARD

    def _fits(self, unit: Unit) -> bool:
        return (
            not self._in_flight_bytes
            or self._in_flight_bytes + self._work.unit_bytes(unit) <= self._limits.in_flight_bytes
        )

    def _peek(self) -> Unit | None:
        """The next unit that is not committed, without taking it."""
        while self._next is None:
            unit = next(self._cutting, None)
            if unit is None:
                if not self._indexed:
                    return self._retry[0] if self._retry else None  # what failed comes last: the others finish
                part = self._indexed.popleft()
                try:
                    units = self._work.units_of(part)
                except DamagedPart as error:
                    self.progress.failed_parts[part] = f"part {part:06d}: {error}"
                    continue
                self.progress.units_known += len(units)
                self.progress.parts_cut += 1
                self._cutting = iter(units)
                continue
            if self._work.committed(unit.part, unit.number):
                self.progress.units_before += 1
            else:
                self._next = unit
        return self._next

    def _take(self) -> None:
        if self._next is not None:
            self._next = None
        else:
            self._retry.popleft()

    def _handle(self, event: Event) -> None:
        self._outstanding -= 1
        match event:
            case PartIndexed(part=part):
                self._survived()
                self._indexed.append(part)
                self.progress.parts_indexed += 1
            case UnitPrepared(unit=unit, handle=handle):
                self._survived()
                self._prepared.append((unit, handle))
            case UnitCommitted(unit=unit, committed=committed):
                self._release(unit)
                self._failures_in_a_row = 0
                self.progress.totals.add(committed.record)
                peak = max(self.progress.peak_memory_bytes, committed.peak_memory_bytes)
                self.progress.peak_memory_bytes = peak
                self._check_rejects()
            case CallFailed():
                self._handle_failure(event)

    def _survived(self) -> None:
        if self._deaths_in_a_row < DEATHS_BEFORE_ALL_ARE_GUARDED:
            self._deaths_in_a_row = 0

    def _release(self, unit: Unit) -> None:
        self._in_flight_bytes -= self._work.unit_bytes(unit)

    def _handle_failure(self, failure: CallFailed) -> None:
        """Tries again, or sets aside. Raises OutputError at once, and RunFailed after too many in a row."""
        if isinstance(failure.error, OutputError):
            raise failure.error
        if failure.unit is not None:
            self._release(failure.unit)
        counter, limit = self._counter_of(failure)
        counter[failure.name] += 1
        if isinstance(failure.error, DamagedPart | EncodeError) or counter[failure.name] >= limit:
            self._set_aside(failure)
            return
        self.progress.retries += 1
        if failure.unit is None:
            self._to_index.appendleft(failure.part)
        else:
            self._retry.append(failure.unit)

    def _counter_of(self, failure: CallFailed) -> tuple[Counter[str], int]:
        """Where a failure counts, and how many are the last.

        world, at any stage                         a loss       MAX_LOSSES
        process, while it read images, unguarded    a death      then it is tried under guard
        everything else                             an attempt   limits.attempts
        """
        if failure.blame is Blame.WORLD:
            return self._losses, MAX_LOSSES
        reads_images = failure.stage is not Stage.ENCODE
        if failure.blame is Blame.PROCESS and reads_images and not self._is_suspect(failure.name):
            self._deaths_in_a_row += 1
            return self._deaths, DEATHS_BEFORE_GUARD + 1
        return self._attempts, self._limits.attempts

    def _set_aside(self, failure: CallFailed) -> None:
        message = f"{failure.name}: {failure.error}"
        if failure.unit is None:
            self.progress.failed_parts[failure.part] = message
            return
        self.progress.set_aside[failure.unit.id] = message
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RunFailed(f"{MAX_FAILURES_IN_A_ROW} failures in a row, the last: {message}")

    def _check_rejects(self) -> None:
        totals = self.progress.totals
        if totals.samples >= REJECTS_CHECKED_AFTER:
            check_rejected_fraction(totals, self._limits.max_rejected_fraction)


def check_rejected_fraction(totals: Totals, limit: float) -> None:
    """Raises RunFailed, with the reasons counted and three examples each, if too many samples are rejects."""
    if totals.rejected > limit * totals.samples:
        reasons = "; ".join(
            f"{reason} {count} (such as {', '.join(totals.reject_examples.get(reason, []))})"
            for reason, count in totals.rejects.most_common()
        )
        raise RunFailed(
            f"{totals.rejected} of {totals.samples} samples are rejects, over limits.max_rejected_fraction {limit}: "
            f"{reasons}"
        )
