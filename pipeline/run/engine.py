"""Engine: what a driver asks of whatever carries its calls out."""

from __future__ import annotations

from typing import Protocol

from .calls import Call
from .events import Event
from .fleet import Fleet, Process
from .progress import Listen


class Engine(Protocol):
    """Where stages run. Calls return at once; what came of them is in `wait`.

    `replace` ends a process and starts another in its place; it answers with what came of its calls.
    """

    fleet: Fleet
    listen: Listen  # told how many images of units under way are encoded

    def now(self) -> float: ...

    def submit(self, call: Call) -> None: ...

    def wait(self, timeout_seconds: float) -> list[Event]: ...

    def replace(self, process: Process, reason: str) -> list[Event]: ...
