"""The inline engine: the same stages in this process, one call at a time. For debugging, and machines without Ray.

Images are read in a child process: one that crashes its decoder must not end the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..output.settings import ShardSettings
from .calls import Call
from .encode_stage import EncodeStage
from .events import Event, Stage, blame_for
from .fleet import Fleet, Process
from .prepare_stage import PrepareStage
from .progress import Listen, Progress
from .settings import StageSettings

BUDGET_BYTES = 1  # so that there is one unit at a time
PAUSE_SECONDS = 0.05


class InlineEngine:
    """Runs a call when it is made and keeps its event for `wait`.

    Args:
        device: see `EncodeStage`.
    """

    encoders = 1

    def __init__(self, settings: StageSettings, device: str = "auto", *, encoding: bool = True) -> None:
        self._prepare = PrepareStage(settings, guarded=True)
        self._encode = EncodeStage(settings, device) if encoding else None
        self._shards: ShardSettings | None = None
        self._events: list[Event] = []
        self.listen: Listen = lambda counts: None
        if self._encode is not None:
            self._encode.on_pack = self._on_pack
        self._began: float | None = None
        self.fleet = Fleet()
        self.fleet.see("", BUDGET_BYTES)
        self.fleet.add(Process(kind="preparer", number=0))
        if encoding:
            self.fleet.add(Process(kind="encoder", number=0))

    def now(self) -> float:
        return time.monotonic()

    def begin(self, admit: Callable[[dict[str, object]], ShardSettings]) -> None:
        """Asks at once: both stages are here."""
        assert self._encode is not None
        self._shards = admit(self._prepare.identity() | self._encode.identity())
        self._began = self.now()

    def await_admission(self) -> None:
        """Nothing is to be waited for."""

    @property
    def encoder_seconds(self) -> float:
        """Since encoding could begin."""
        return 0.0 if self._began is None else self.now() - self._began

    def submit(self, call: Call) -> None:
        """Carries a call out; makes an event of whatever it raises, as it becomes one where it comes from an actor."""
        try:
            self._events.append(call.done(self._result_of(call)))
        except Exception as error:  # noqa: BLE001 - the driver judges it
            self._events.append(call.failed(error, blame_for(error)))

    def _result_of(self, call: Call) -> Any:
        if call.unit is None:
            return self._prepare.index(call.part)
        if call.stage is Stage.PREPARE:
            call.prepared = self._prepare.prepare(call.unit)
            return None
        assert self._shards is not None and self._encode is not None
        return self._encode.encode(call.prepared, self._shards)

    def _on_pack(self) -> None:
        assert self._encode is not None
        self.listen(dict(self._encode.under_way))

    def wait(self, timeout_seconds: float) -> list[Event]:
        events, self._events = self._events, []
        if not events and timeout_seconds:
            time.sleep(PAUSE_SECONDS)
        return events

    def replace(self, process: Process, reason: str) -> list[Event]:
        """There is no other process."""
        return []

    def observe(self, progress: Progress, seconds: float) -> None:
        """Nobody asks this process for metrics."""

    def shutdown(self) -> None:
        self._prepare.close()
        self._events = []
