"""Calls: the actors of a run, and what each has not answered yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..index.units import Unit
from .events import Blame, CallFailed, Event, PartIndexed, Stage, UnitCommitted, UnitPrepared


@dataclass(kw_only=True, eq=False)
class Process:
    """One actor as the driver sees it."""

    kind: Literal["preparer", "encoder"]
    number: int
    handle: Any
    node: str = ""
    calls: int = 0
    ready: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """A call that an actor has not answered yet. `stage` is None of its introduction.

    `prepared`: what an encoder was given or a preparer is making.
    """

    process: Process
    stage: Stage | None
    part: int = -1
    unit: Unit | None = None
    prepared: Any = None

    def failed(self, error: BaseException, blame: Blame) -> CallFailed:
        assert self.stage is not None
        return CallFailed(stage=self.stage, part=self.part, unit=self.unit, error=error, blame=blame)

    def done(self, result: Any) -> Event:
        if self.unit is None:
            return PartIndexed(part=self.part)
        if self.stage is Stage.PREPARE:
            return UnitPrepared(unit=self.unit, handle=self.prepared)
        return UnitCommitted(unit=self.unit, committed=result)


@dataclass(frozen=True, kw_only=True)
class PreparedHandle:
    """A prepared unit in the object store, and the node that it lies on."""

    reference: Any
    node: str
