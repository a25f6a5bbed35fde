"""The stages as Ray actors. Each loads its stage when it starts, so that whoever only talks to actors loads neither."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from ..index.units import Unit
    from ..output.committed import Committed
    from ..output.settings import ShardSettings
    from ..prepare.unit import PreparedUnit
    from .encode_stage import EncodeStage
    from .prepare_stage import PrepareStage
    from .settings import StageSettings


def _introduction(stage: PrepareStage | EncodeStage, probe: str) -> tuple[str, bool, dict[str, object]]:
    """A process's node, whether it sees a file that the driver wrote, and what decides bits there."""
    return ray.get_runtime_context().get_node_id(), not probe or os.path.exists(probe), stage.identity()


class PrepareActor:
    """See `PrepareStage`."""

    def __init__(self, settings: StageSettings) -> None:
        from .prepare_stage import PrepareStage

        self._stage = PrepareStage(settings)

    def introduce(self, probe: str) -> tuple[str, bool, dict[str, object]]:
        """See `_introduction`."""
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

    def __init__(self, settings: StageSettings, number: int) -> None:
        from .encode_stage import EncodeStage

        self._stage = EncodeStage(settings, number=number)

    def introduce(self, probe: str) -> tuple[str, bool, dict[str, object]]:
        """See `_introduction`."""
        return _introduction(self._stage, probe)

    def encode(self, prepared: PreparedUnit, shards: ShardSettings) -> Committed:
        """Encodes and commits one unit."""
        return self._stage.encode(prepared, shards)
