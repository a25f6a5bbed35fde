"""Fleet: the processes of a run, by node and kind, and who has room for a call. Constant work an event."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ..index.units import Unit

Kind = Literal["preparer", "encoder"]
KINDS: tuple[Kind, Kind] = ("preparer", "encoder")
CALLS = 2  # of an encoder at once, unless its node says otherwise: one encodes while the other writes


@dataclass(kw_only=True, eq=False)
class Process:
    """One process as the driver sees it.

    Attributes:
        number: which of its kind, for the records.
        calls: that it has not answered yet.
        run: units of one part that it is to prepare next.
        failures: calls in a row that failed in it.
        failed_at: when the first of those did, by the engine's clock.
        ends: of processes in a row before it that ended in its place without one success, by why.
        ready: it can be given work; `gone`: it has died, or was ended; `rests`: it is given nothing for a while.
    """

    kind: Kind
    number: int
    node: str = ""
    handle: Any = None
    calls: int = 0
    run: deque[Unit] = field(default_factory=deque)
    failures: int = 0
    failed_at: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    ready: bool = False
    gone: bool = False
    rests: bool = False


class _Ordered(dict[str, None]):
    """Nodes in the order in which they came."""

    def put(self, node: str, wanted: bool) -> None:
        if wanted:
            self[node] = None
        else:
            self.pop(node, None)


class _Node:
    def __init__(self, budget_bytes: int, name: str, calls: int) -> None:
        self.budget_bytes, self.name = budget_bytes, name
        slots: dict[Kind, int] = {"preparer": 1, "encoder": calls}
        self.size: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.free: dict[Kind, list[dict[Process, None]]] = {kind: [{} for _ in range(slots[kind])] for kind in KINDS}
        self.paused: set[Kind] = set()


class Fleet:
    """All processes that can be given work, and the nodes that they are on."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._free: dict[Kind, _Ordered] = {kind: _Ordered() for kind in KINDS}  # nodes with room for a call
        self._idle: dict[Kind, _Ordered] = {kind: _Ordered() for kind in KINDS}  # nodes with a process without any
        self._coming: dict[Process, None] = {}
        self._pauses: list[tuple[float, int, str, Kind | Process]] = []  # until, of a node's kind or of one process
        self._count = itertools.count()
        self._size: dict[Kind, int] = dict.fromkeys(KINDS, 0)

    def see(self, node: str, budget_bytes: int, name: str = "", calls: int = CALLS) -> None:
        """Takes note of a node.

        Args:
            budget_bytes: of patches that may lie on it.
            name: in messages.
            calls: that each of its encoders has at once, as it was when the node was first seen.
        """
        if node in self._nodes:
            self._nodes[node].budget_bytes = budget_bytes
        else:
            self._nodes[node] = _Node(budget_bytes, name or node, calls)

    def forget(self, node: str) -> None:
        """Forgets a node that is gone; its processes have been removed."""
        self._nodes.pop(node, None)
        for kind in KINDS:
            self._free[kind].put(node, False)
            self._idle[kind].put(node, False)

    def name(self, node: str) -> str:
        return self._nodes[node].name if node in self._nodes else node

    def budget_bytes(self, node: str) -> int:
        return self._nodes[node].budget_bytes if node in self._nodes else 0

    def nodes(self) -> int:
        """How many there are."""
        return len(self._nodes)

    def count(self, kind: Kind, node: str | None = None) -> int:
        """How many processes there are, ready ones, on a node or on all."""
        if node is None:
            return self._size[kind]
        return self._nodes[node].size[kind] if node in self._nodes else 0

    def spread(self, kind: Kind, *, coming: bool = False) -> int:
        """On how many nodes there are processes of a kind; `coming`: those that are starting count as well."""
        here = {name for name, node in self._nodes.items() if node.size[kind]}
        return len(here | {process.node for process in self._coming if process.kind == kind} if coming else here)

    def has_other(self, process: Process) -> bool:
        """Whether there is another process of its kind, or one is starting."""
        ready = self._size[process.kind] - (process.ready and not process.gone)
        return ready > 0 or any(one.kind == process.kind for one in self._coming)

    def expect(self, process: Process) -> None:
        """A process is starting: it will be added, or removed."""
        self._coming[process] = None

    def is_paused(self, kind: Kind, node: str) -> bool:
        return node in self._nodes and kind in self._nodes[node].paused

    def add(self, process: Process) -> None:
        """Lets a process be given work."""
        node = self._nodes[process.node]
        process.ready = True
        self._coming.pop(process, None)
        node.size[process.kind] += 1
        self._size[process.kind] += 1
        node.free[process.kind][0][process] = None
        self._note_all(process.node)

    def remove(self, process: Process) -> None:
        """Takes a process out that is gone."""
        self._coming.pop(process, None)
        node = self._nodes.get(process.node)
        if node is None or process.gone or not process.ready:
            return
        process.gone = True
        node.size[process.kind] -= 1
        self._size[process.kind] -= 1
        for free in node.free[process.kind]:
            free.pop(process, None)
        self._note_all(process.node)

    def began(self, process: Process) -> None:
        """A call was given to it."""
        self._move(process, process.calls + 1)

    def ended(self, process: Process) -> None:
        """It has answered a call."""
        self._move(process, process.calls - 1)

    def _move(self, process: Process, calls: int) -> None:
        if process.gone:
            return
        free = self._nodes[process.node].free[process.kind]
        if process.calls < len(free):
            free[process.calls].pop(process, None)
        process.calls = calls
        if calls < len(free) and not process.rests:
            free[calls][process] = None
        self._note(process.kind, process.node)

    def _note(self, kind: Kind, name: str) -> None:
        node = self._nodes[name]
        works = kind not in node.paused
        self._free[kind].put(name, works and any(node.free[kind]))
        # Where too little is prepared, an encoder's second call comes from elsewhere too.
        is_starved = kind == "encoder" and node.size["preparer"] < node.size["encoder"]
        self._idle[kind].put(name, works and (any(node.free[kind]) if is_starved else bool(node.free[kind][0])))

    def _note_all(self, name: str) -> None:
        for kind in KINDS:
            self._note(kind, name)

    def free(self, kind: Kind, node: str) -> Process | None:
        """The least busy process on a node that has room for a call."""
        if node not in self._free[kind]:
            return None
        return next((next(iter(level)) for level in self._nodes[node].free[kind] if level), None)

    def idle_node(self, kind: Kind) -> str | None:
        """A node with a process that has nothing to do, or, where too little is prepared, with an encoder with room."""
        return next(iter(self._idle[kind]), None)

    def idle(self, kind: Kind, without: Process) -> Process | None:
        """A process that has nothing to do, another one than this; rather on another node."""
        spare = None
        for node in self._idle[kind]:
            for process in self._nodes[node].free[kind][0]:
                if node != without.node:
                    return process
                if process is not without:
                    spare = process
        return spare

    def nodes_with_room(self, kind: Kind) -> Iterator[str]:
        """Nodes with a process that has room for a call, as they are now."""
        return iter(list(self._free[kind]))

    def pause(self, kind: Kind, node: str, until: float) -> None:
        """Gives the processes of a node nothing until then, by the engine's clock."""
        if node in self._nodes:
            self._nodes[node].paused.add(kind)
            heapq.heappush(self._pauses, (until, next(self._count), node, kind))
            self._note(kind, node)

    def rest(self, process: Process, until: float) -> None:
        """Gives one process nothing until then."""
        if not process.gone:
            process.rests = True
            heapq.heappush(self._pauses, (until, next(self._count), process.node, process))
            self._move(process, process.calls)

    def wake(self, now: float) -> list[tuple[str, Kind]]:
        """Ends the pauses and rests that are over; returns whose they were."""
        woken = []
        while self._pauses and self._pauses[0][0] <= now:
            _, _, node, who = heapq.heappop(self._pauses)
            if node not in self._nodes:
                continue
            if isinstance(who, Process):
                who.rests = False
                self._move(who, who.calls)
                woken.append((node, who.kind))
            else:
                self._nodes[node].paused.discard(who)
                self._note(who, node)
                woken.append((node, who))
        return woken
