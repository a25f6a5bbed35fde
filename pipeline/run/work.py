"""Work: what a driver is given to do, within which bounds, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..index.units import Unit
from ..output.record import CommitRecord
from .progress import Progress


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a run may have to do.

    Attributes:
        parts: how many there are; `to_index`: those that have no index yet; `to_cut`: those that have one, and are not
            known to be done.
        units_of: cuts an indexed part. Raises DamagedPart.
        committed: whether a unit, by part and number, is committed already.
        unit_bytes: what a prepared unit takes.
    """

    parts: int
    to_index: list[int]
    to_cut: list[int]
    units_of: Callable[[int], list[Unit]]
    committed: Callable[[int, int], bool] = lambda part, number: False
    unit_bytes: Callable[[Unit], int] = lambda unit: 0


@dataclass(frozen=True, kw_only=True)
class DriverLimits:
    """The bounds that a driver keeps.

    Attributes:
        attempts: of a unit or part before it is set aside.
        in_flight_bytes: of prepared patches that wait or are being encoded, on all nodes together; None: each node's
            own budget. A single larger unit passes alone.
        max_rejected_fraction: share of samples that may be rejects.
        unit_seconds: that a call may take; None: see `UnderWay`.
        cutting_threads: that cut parts ahead of need; 0: none.
    """

    attempts: int
    in_flight_bytes: int | None = None
    max_rejected_fraction: float = 1.0
    unit_seconds: float | None = None
    cutting_threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Callbacks of a driver.

    Attributes:
        on_tick: now and then, and at the end.
        on_start: once, before the first unit is prepared.
        on_part_done: all units of a part, by their numbers, are committed; with the records of those of this run.
        say: prints a line.
    """

    on_tick: Callable[[Progress], None] = lambda progress: None
    on_start: Callable[[], None] = lambda: None
    on_part_done: Callable[[int, range, dict[int, CommitRecord]], None] = lambda part, numbers, records: None
    say: Callable[[str], None] = lambda line: None


SILENT = Observer()
