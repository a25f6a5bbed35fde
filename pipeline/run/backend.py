"""Backend: what an engine of actors asks of whatever runs them: of Ray, or of a stand-in that measures the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .calls import Call
from .fleet import Kind
from .progress import Progress
from .sizing import NodeFacts, Options


class ProcessDied(Exception):
    """The process of a call is gone.

    Args:
        cause: what its start raised, where it could not start.
        by_world: it was ended from outside: preempted, or by a memory monitor.
    """

    def __init__(self, message: str, cause: BaseException | None = None, *, by_world: bool = False) -> None:
        super().__init__(message)
        self.cause, self.by_world = cause, by_world


class WorldFailed(Exception):
    """A call came to nothing by no fault of its own or of its process: its patches were lost with their node, say."""


class Backend(Protocol):
    """Actors on nodes. An answer is a call with its result or the error that it ended with."""

    def now(self) -> float: ...

    def nodes(self) -> list[NodeFacts]: ...

    def is_there(self, node: str) -> bool: ...

    def start(self, kind: Kind, number: int, node: str, options: Options) -> Any: ...

    def submit(self, call: Call, method: str, *arguments: Any) -> Any: ...

    def wait(self, timeout_seconds: float) -> list[tuple[Call, Any]]: ...

    def watch(self, handle: Any, tell: Callable[[dict[str, int]], None]) -> None: ...

    def kill(self, handle: Any) -> None: ...

    def ask_for(self, kind: str, count: int) -> None: ...

    def observe(self, progress: Progress, seconds: float, encoders: int) -> None: ...

    def close(self) -> None: ...
