"""The stages as Ray actors. Each loads its stage when it starts, so that whoever only talks to actors loads neither."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..index.units import Unit
    from ..output.committed import Committed
    from ..output.settings import ShardSettings
    from ..prepare.unit import PreparedUnit
    from .encode_stage import EncodeStage
    from .prepare_stage import PrepareStage
    from .settings import StageSettings


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """Says of a process whether it sees a file that the driver wrote, and what decides bits there."""

    sees_output: bool
    identity: dict[str, object]


def _introduction(stage: PrepareStage | EncodeStage, probe: str) -> Introduction:
    return Introduction(sees_output=not probe or os.path.exists(probe), identity=stage.identity())


class PrepareActor:
    """See `PrepareStage`."""

    def __init__(self, settings: StageSettings) -> None:
        from .prepare_stage import PrepareStage

        self._stage = PrepareStage(settings)

    def introduce(self, probe: str) -> Introduction:
        return _introduction(self._stage, probe)

    def index(self, part: int, guarded: bool) -> int:
        """Indexes a part; returns its number of samples."""
        return self._stage.index(part, guarded)

    def prepare(self, unit: Unit, guarded: bool) -> tuple[int, PreparedUnit]:
        """The patches as an object of their own, so that the driver never fetches them."""
        prepared = self._stage.prepare(unit, guarded)
        return len(prepared.samples), prepared


class EncodeActor:
    """See `EncodeStage`."""

    def __init__(self, settings: StageSettings, number: int, device: str) -> None:
        from .encode_stage import EncodeStage

        self._stage = EncodeStage(settings, device, number)

    def introduce(self, probe: str) -> Introduction:
        return _introduction(self._stage, probe)

    def encode(self, prepared: PreparedUnit, shards: ShardSettings) -> Committed:
        """Encodes and commits one unit."""
        return self._stage.encode(prepared, shards)
