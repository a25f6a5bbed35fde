"""Deaths: processes that have died, until it can be said why: they die before it is known that their node is gone."""

from __future__ import annotations

from dataclasses import dataclass

from .backend import ProcessDied
from .calls import Call
from .fleet import Process

JUDGE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Death:
    """A process that died, and the calls that it leaves unanswered."""

    process: Process
    error: ProcessDied
    calls: list[Call]
    due: float


class Deaths:
    """Those that are not judged yet, the oldest first."""

    def __init__(self) -> None:
        self._waiting: list[Death] = []

    def add(self, process: Process, error: ProcessDied, calls: list[Call], now: float) -> None:
        due = now if error.by_world else now + JUDGE_SECONDS
        self._waiting.append(Death(process=process, error=error, calls=calls, due=due))
        self._waiting.sort(key=lambda death: death.due)

    def processes(self) -> list[Process]:
        return [death.process for death in self._waiting]

    def next_due(self) -> float | None:
        """When the next one is to be judged."""
        return self._waiting[0].due if self._waiting else None

    def take(self, now: float) -> Death | None:
        """The next one that is to be judged by now."""
        return self._waiting.pop(0) if self._waiting and self._waiting[0].due <= now else None

    def put_back(self, death: Death) -> None:
        self._waiting.insert(0, death)

    def take_node(self, node: str) -> list[Death]:
        """All those of a node that is gone."""
        here = [death for death in self._waiting if death.process.node == node]
        self._waiting = [death for death in self._waiting if death.process.node != node]
        return here
