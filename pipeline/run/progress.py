"""Progress: the driver's account of its work, and which parts are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..index.units import Unit
from ..output.record import CommitRecord
from ..output.totals import Totals

Listen = Callable[[dict[str, int]], None]


@dataclass(kw_only=True)
class Progress:
    """The driver's account of its work.

    Attributes:
        samples_to_do: of this run, in the parts cut so far; `encoding`: images of units under way that are encoded.
    """

    totals: Totals = field(default_factory=Totals)
    parts: int = 0
    parts_indexed: int = 0
    parts_cut: int = 0
    prepared: int = 0
    units_known: int = 0
    units_before: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)
    failed_parts: dict[int, str] = field(default_factory=dict)
    beyond_help: int = 0  # of those two, what another run would find as well
    retries: int = 0
    encoders: int = 0
    peak_memory_bytes: int = 0
    samples_to_do: int = 0
    encoding: dict[str, int] = field(default_factory=dict)

    @property
    def samples_done(self) -> int:
        """Samples of this run that are committed, and images of other units that are encoded."""
        return min(self.totals.samples + sum(self.encoding.values()), self.samples_to_do)


@dataclass(kw_only=True)
class _Open:
    left: int
    numbers: range
    records: dict[int, CommitRecord] = field(default_factory=dict)


class PartTally:
    """The units of each part that are not committed yet. Memory: the records of this run of parts that are not done.

    Args:
        done: called with a part that is done, the numbers of its units, and the records of those of this run.
    """

    def __init__(self, done: Callable[[int, range, dict[int, CommitRecord]], None]) -> None:
        self._done = done
        self._open: dict[int, _Open] = {}

    def cut(self, part: int, units: list[Unit], left: int) -> None:
        """A part was cut; so many of its units are not committed."""
        if not left:
            self._done(part, range(len(units)), {})
        else:
            self._open[part] = _Open(left=left, numbers=range(len(units)))

    def committed(self, unit: Unit, record: CommitRecord) -> None:
        part = self._open[unit.part]
        part.records[unit.number] = record
        part.left -= 1
        if not part.left:
            del self._open[unit.part]
            self._done(unit.part, part.numbers, part.records)
