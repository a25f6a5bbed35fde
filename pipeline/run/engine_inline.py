"""The inline engine: the same stages in this process, one call at a time. For debugging, and machines without Ray.

Images are read in a child process: one that crashes its decoder must not end the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..index.units import Unit
from ..output.settings import ShardSettings
from .driver import Progress
from .encode_stage import EncodeStage
from .events import CallFailed, Event, PartIndexed, Stage, UnitCommitted, UnitPrepared, blame_for
from .prepare_stage import PrepareStage
from .settings import StageSettings


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
        with self._failing(Stage.INDEX, part, None):
            self._prepare.index(part)
            self._events.append(PartIndexed(part=part))

    def prepare(self, unit: Unit, guarded: bool) -> None:
        with self._failing(Stage.PREPARE, unit.part, unit):
            self._events.append(UnitPrepared(unit=unit, handle=self._prepare.prepare(unit)))

    def encode(self, unit: Unit, handle: Any) -> None:
        assert self._shards is not None and self._encode is not None
        with self._failing(Stage.ENCODE, unit.part, unit):
            self._events.append(UnitCommitted(unit=unit, committed=self._encode.encode(handle, self._shards)))

    @contextmanager
    def _failing(self, stage: Stage, part: int, unit: Unit | None) -> Iterator[None]:
        """Makes an event of whatever a call raises, as it becomes one where it comes from an actor."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the driver judges it
            blame = blame_for(error)
            self._events.append(CallFailed(stage=stage, part=part, unit=unit, error=error, blame=blame))

    def wait(self, timeout_seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def observe(self, progress: Progress, seconds: float) -> None:
        """Nobody asks this process for metrics."""

    def shutdown(self) -> None:
        self._prepare.close()
        self._events = []
