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
    """A process about itself: whether it sees a file that the driver wrote, and what decides bits there."""

    sees_output: bool
    identity: dict[str, object]


class PrepareActor:
    """See `PrepareStage`. It is made when the process introduces itself, so that an error of it keeps its type."""

    def __init__(self, settings: StageSettings) -> None:
        self._settings = settings

    def introduce(self, probe: str) -> Introduction:
        from .prepare_stage import PrepareStage

        self._stage = PrepareStage(self._settings)
        return _introduction(self._stage, probe)

    def index(self, part: int, guarded: bool) -> int:
        """Indexes a part; returns its number of samples."""
        return self._stage.index(part, guarded)

    def prepare(self, unit: Unit, guarded: bool) -> tuple[int, PreparedUnit]:
        """The patches as an object of their own, so that the driver never fetches them."""
        prepared = self._stage.prepare(unit, guarded)
        return len(prepared.samples), prepared


class EncodeActor:
    """See `EncodeStage`, and `PrepareActor` for when it is made."""

    def __init__(self, settings: StageSettings, number: int, device: str, calls: int) -> None:
        self._settings, self._number, self._device, self._calls = settings, number, device, calls

    def introduce(self, probe: str) -> Introduction:
        from .encode_stage import EncodeStage

        self._stage = EncodeStage(self._settings, self._device, self._number, calls=self._calls)
        return _introduction(self._stage, probe)

    def encode(self, prepared: PreparedUnit, shards: ShardSettings) -> Committed:
        """Encodes and commits one unit."""
        return self._stage.encode(prepared, shards)

    def under_way(self) -> dict[str, int]:
        """How many images of each unit are encoded so far; answered beside `encode`."""
        return dict(self._stage.under_way)


def _introduction(stage: PrepareStage | EncodeStage, probe: str) -> Introduction:
    return Introduction(sees_output=not probe or os.path.exists(probe), identity=stage.identity())
