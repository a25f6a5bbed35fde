"""The inline engine: the same stages in this process, one call at a time. For debugging, and machines without Ray.

Images are read in a child process: one that crashes its decoder must not end the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..index.units import Unit
from ..output.settings import ShardSettings
from .driver import Event, Progress, whose_fault
from .encode_stage import EncodeStage
from .prepare_stage import PrepareStage
from .settings import StageSettings

FAILURES = Exception  # here, as in an actor, a failure of one call becomes an event; the driver judges it


class InlineEngine:
    """Runs a call when it is made and keeps its event for `wait`."""

    encoders = 1

    def __init__(self, settings: StageSettings, *, encoding: bool = True) -> None:
        self._prepare = PrepareStage(settings, guarded=True)
        self._encode = EncodeStage(settings) if encoding else None
        self._shards: ShardSettings | None = None
        self._events: list[Event] = []

    def begin(self, admit: Callable[[list[dict[str, object]]], ShardSettings]) -> None:
        """Asks at once: both stages are here."""
        assert self._encode is not None
        self._shards = admit([self._prepare.identity() | self._encode.identity()])

    def in_flight_bytes(self) -> int:
        return 1 << 40  # one unit at a time anyway

    def free_preparers(self) -> int:
        return 0 if self._events else 1

    def free_encoders(self) -> int:
        return 0 if self._events else 1

    def index(self, part: int, guarded: bool) -> None:
        try:
            self._prepare.index(part)
            self._events.append(Event(kind="indexed", part=part))
        except FAILURES as error:
            self._events.append(Event(kind="indexed", part=part, error=error, lost=whose_fault(error)))

    def prepare(self, unit: Unit, guarded: bool) -> None:
        try:
            handle = self._prepare.prepare(unit)
            self._events.append(Event(kind="prepared", part=unit.part, unit=unit, handle=handle))
        except FAILURES as error:
            self._events.append(Event(kind="prepared", part=unit.part, unit=unit, error=error, lost=whose_fault(error)))

    def encode(self, unit: Unit, handle: Any) -> None:
        assert self._shards is not None and self._encode is not None
        try:
            committed = self._encode.encode(handle, self._shards)
            self._events.append(Event(kind="committed", part=unit.part, unit=unit, committed=committed))
        except FAILURES as error:
            self._events.append(Event(kind="committed", part=unit.part, unit=unit, error=error))

    def wait(self, timeout_seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def observe(self, progress: Progress, seconds: float) -> None:
        """Nobody asks this process for metrics."""

    def shutdown(self) -> None:
        self._prepare.close()
        self._events = []
