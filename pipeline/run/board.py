"""Board: where every unit is between its part's cutting and its commit, and the bytes of patches by node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..index.units import Unit
from .events import Stage
from .fleet import Fleet, Process
from .leases import Leases
from .waiting import Waiting


@dataclass(kw_only=True)
class Opened:
    """A unit that was given to a process and is not committed.

    Attributes:
        node: where its patches lie, or will; `handle`: what they are to the engine, once they are there.
        calls: under way, by stage: two of one where a second process tries it too.
    """

    unit: Unit
    bytes: int
    node: str
    calls: dict[Stage, int]
    handle: Any = None
    is_prepared: bool = False
    has_twin: bool = False


class Board:
    """Units: those that wait for a preparer, those that are open, those of them that wait for an encoder.

    Args:
        in_flight_bytes: of all patches; None: each node's budget.
    """

    def __init__(self, fleet: Fleet, in_flight_bytes: int | None) -> None:
        self._fleet, self._limit = fleet, in_flight_bytes
        self.leases, self.waiting = Leases(), Waiting(fleet)
        self._opened: dict[str, Opened] = {}
        self._bytes: dict[str, int] = {}
        self._all_bytes = 0
        self._touched: dict[str, None] = {}

    def __len__(self) -> int:
        """How many units are open."""
        return len(self._opened)

    def get(self, unit: Unit) -> Opened | None:
        return self._opened.get(unit.id)

    def is_open(self, unit_id: str) -> bool:
        return unit_id in self._opened

    # Nodes where there may be something to hand out

    def touch(self, node: str) -> None:
        self._touched[node] = None

    def touch_all(self) -> None:
        """New work is there for whoever has room."""
        for node in self._fleet.nodes_with_room("preparer"):
            self._touched[node] = None

    def touched(self) -> list[str]:
        """Those nodes; they are forgotten."""
        nodes, self._touched = list(self._touched), {}
        return nodes

    # Bytes

    def fits(self, size: int, node: str) -> bool:
        """Whether a unit of this many bytes may be prepared on a node; one alone always may."""
        if self._limit is not None:
            return not self._all_bytes or self._all_bytes + size <= self._limit
        here = self._bytes.get(node, 0)
        return not here or here + size <= self._fleet.budget_bytes(node)

    def _add_bytes(self, node: str, count: int) -> None:
        self._bytes[node] = self._bytes.get(node, 0) + count
        if not self._bytes[node]:
            del self._bytes[node]
        self._all_bytes += count
        if count < 0:
            self.touch(node)
            if self._limit is not None:
                self.touch_all()

    # A unit's way

    def open(self, unit: Unit, process: Process, size: int) -> None:
        """A unit is to be prepared by a process."""
        calls = dict.fromkeys(Stage, 0)
        self._opened[unit.id] = Opened(unit=unit, bytes=size, node=process.node, calls=calls)
        self._add_bytes(process.node, size)

    def prepared(self, unit: Unit, node: str, handle: Any) -> None:
        """A unit's patches lie on a node now. The second of two answers changes nothing."""
        opened = self._opened.get(unit.id)
        if opened is None:
            return
        opened.calls[Stage.PREPARE] -= 1
        if opened.is_prepared:
            return
        if opened.node != node:
            self._add_bytes(opened.node, -opened.bytes)
            opened.node = node
            self._add_bytes(node, opened.bytes)
        opened.handle, opened.is_prepared, opened.has_twin = handle, True, False
        self.waiting.put(node, unit, handle)
        self.touch(node)

    def is_left_undone(self, unit: Unit, stage: Stage) -> bool:
        """A call has failed: whether no second process has done, or is doing, what it was to do."""
        opened = self._opened.get(unit.id)
        if opened is None or (stage is Stage.PREPARE and opened.is_prepared):
            return False
        opened.calls[stage] -= 1
        return opened.calls[stage] <= 0

    def close(self, unit: Unit) -> bool:
        """A unit is committed, or comes back to the leases; False where it was closed before."""
        opened = self._opened.pop(unit.id, None)
        if opened is None:
            return False
        self._add_bytes(opened.node, -opened.bytes)
        return True

    def wait_again(self, opened: Opened) -> None:
        """A prepared unit that an encoder could not write is the next again."""
        self.waiting.put_back(opened.node, opened.unit, opened.handle)
        self.touch(opened.node)

    def lose(self, node: str) -> int:
        """A node is gone: what lay there is to be prepared again. Returns how many units that are."""
        units = self.waiting.lose(node)
        for unit in units:
            self.close(unit)
            self.leases.add_first(unit)
        self.leases.forget(node)
        self.touch_all()
        return len(units)
