"""Waiting: prepared units that no encoder has taken yet, by the node that their patches lie on."""

from __future__ import annotations

from collections import deque
from typing import Any

from ..index.units import Unit
from .fleet import Fleet


class Waiting:
    """Prepared units by node. An encoder takes what lies on its node; what is more than a node needs, any may take."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._of_node: dict[str, deque[tuple[Unit, Any]]] = {}  # none is empty
        self._surplus: dict[str, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, node: str, unit: Unit, handle: Any) -> None:
        self._of_node.setdefault(node, deque()).append((unit, handle))
        self._count += 1
        self.note(node)

    def put_back(self, node: str, unit: Unit, handle: Any) -> None:
        """Takes back a unit that was taken; it is the next again."""
        self._of_node.setdefault(node, deque()).appendleft((unit, handle))
        self._count += 1
        self.note(node)

    def has(self, node: str) -> bool:
        return node in self._of_node

    def take(self, node: str) -> tuple[Unit, Any]:
        units = self._of_node[node]
        taken = units.popleft()
        self._count -= 1
        if not units:
            del self._of_node[node]
        self.note(node)
        return taken

    def note(self, node: str) -> None:
        """Looks again whether a node has more than its own encoders will soon take."""
        units = self._of_node.get(node)
        encoders = 0 if self._fleet.is_paused("encoder", node) else self._fleet.count("encoder", node)
        if units and len(units) >= encoders:
            self._surplus[node] = None
        else:
            self._surplus.pop(node, None)

    def spare(self, *, all_of_it: bool) -> str | None:
        """A node whose units an encoder elsewhere may take; `all_of_it`: any, since nothing more will be prepared."""
        return next(iter(self._of_node if all_of_it else self._surplus), None)

    def lose(self, node: str) -> list[Unit]:
        """Forgets what lay on a node that is gone; returns its units."""
        units = self._of_node.pop(node, deque())
        self._count -= len(units)
        self._surplus.pop(node, None)
        return [unit for unit, _ in units]
