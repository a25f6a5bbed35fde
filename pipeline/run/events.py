"""Events: what can come of a call that an engine carries out for the driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from ..errors import ReaderLost
from ..index.units import Unit
from .fleet import Process

if TYPE_CHECKING:
    from ..output.committed import Committed


class Stage(Enum):
    """The calls that an engine carries out."""

    INDEX = auto()
    PREPARE = auto()
    ENCODE = auto()


class Blame(Enum):
    """Whose fault a failure is: that of the call itself, of its process, which died by itself, or of the world."""

    CALL = auto()
    PROCESS = auto()
    WORLD = auto()


@dataclass(frozen=True, kw_only=True)
class PartIndexed:
    """A part has its index."""

    process: Process
    part: int


@dataclass(frozen=True, kw_only=True)
class UnitPrepared:
    """A unit's patches are there, on the process's node; `handle` is what `Engine.encode` takes."""

    process: Process
    unit: Unit
    handle: Any


@dataclass(frozen=True, kw_only=True)
class UnitCommitted:
    """A unit is committed, by this call or by another process."""

    process: Process
    unit: Unit
    committed: Committed


@dataclass(frozen=True, kw_only=True)
class CallFailed:
    """A call came to nothing. `unit` is None where a part was to be indexed; `guarded`: as its call was."""

    process: Process
    stage: Stage
    part: int
    unit: Unit | None
    error: BaseException
    blame: Blame = Blame.CALL
    guarded: bool = False

    @property
    def name(self) -> str:
        """The part or unit, for messages and counters."""
        return name_of(self.part, self.unit)


@dataclass(frozen=True, kw_only=True)
class FleetChanged:
    """A process can be given work now, on this node, or on any where it is None."""

    node: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessLost:
    """A process is gone. What it was doing has failed before."""

    process: Process


@dataclass(frozen=True, kw_only=True)
class NodeLost:
    """A node is gone, with all its processes and all that lay on it. What they were doing has failed before."""

    node: str


Event = PartIndexed | UnitPrepared | UnitCommitted | CallFailed | FleetChanged | ProcessLost | NodeLost


def name_of(part: int, unit: Unit | None) -> str:
    """A part or unit as messages have it."""
    return f"part {part:06d}" if unit is None else f"unit {unit.id}"


def blame_for(error: BaseException) -> Blame:
    """Whose fault an error is that a stage raised: a child that was killed from outside is the world's."""
    return Blame.WORLD if isinstance(error, ReaderLost) else Blame.CALL
