"""Leases: which process prepares which unit next. Constant work a unit.

    parts that are cut ─▶ one open part a node ─▶ a run of its units to one process

So a part is read by the processes of one node, and its index by few of them. Who finds nothing left takes from the end
of what others hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..index.units import Unit
from .fleet import Process

RUN = 8  # units of a part that one process takes at a time


class Leases:
    """Units that wait to be prepared."""

    def __init__(self) -> None:
        self._parts: deque[deque[Unit]] = deque()
        self._open: dict[str, deque[Unit]] = {}  # by node; none is empty
        self._runs: dict[Process, None] = {}  # whose run is not empty
        self._last: deque[Unit] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def parts(self) -> int:
        """How many parts no node has opened yet."""
        return len(self._parts)

    def add(self, units: Iterable[Unit]) -> None:
        """Adds the units of a part, in order."""
        part = deque(units)
        if part:
            self._parts.append(part)
            self._count += len(part)

    def add_first(self, unit: Unit) -> None:
        """Gives back a unit that was lost with a process or node: its part should end soon."""
        self._parts.appendleft(deque([unit]))
        self._count += 1

    def add_last(self, unit: Unit) -> None:
        """Gives back a unit that failed: it comes when all others have been given away."""
        self._last.append(unit)
        self._count += 1

    def peek(self, process: Process) -> Unit | None:
        """The unit that this process shall prepare next; it stays until `take`."""
        if not process.run:
            run = self._next_run(process)
            if not run:
                return self._last[0] if self._last else None
            process.run = run
            self._runs[process] = None
        return process.run[0]

    def take(self, process: Process) -> Unit:
        """Hands out what `peek` has shown."""
        self._count -= 1
        if not process.run:
            return self._last.popleft()
        unit = process.run.popleft()
        if not process.run:
            del self._runs[process]
        return unit

    def release(self, process: Process) -> None:
        """Takes back what a process that is gone was to prepare."""
        if process.run:
            del self._runs[process]
            self._parts.appendleft(process.run)
            process.run = deque()

    def forget(self, node: str) -> None:
        """Takes back the open part of a node that is gone."""
        if node in self._open:
            self._parts.appendleft(self._open.pop(node))

    def _next_run(self, process: Process) -> deque[Unit]:
        if process.node not in self._open and self._parts:
            self._open[process.node] = self._parts.popleft()
        if process.node in self._open:
            return self._from_node(process.node, RUN)
        if self._open:
            node = next(iter(self._open))
            return self._from_node(node, max(1, min(RUN, len(self._open[node]) // 2)))
        if self._runs:
            other = next(iter(self._runs))
            unit = other.run.pop()
            if not other.run:
                del self._runs[other]
            return deque([unit])
        return deque()

    def _from_node(self, node: str, count: int) -> deque[Unit]:
        units = self._open[node]
        run = deque(units.popleft() for _ in range(min(count, len(units))))
        if not units:
            del self._open[node]
        return run
