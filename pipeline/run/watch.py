"""Watch: asks encoders, now and then, how many images of their units are encoded, for whoever looks on."""

from __future__ import annotations

import queue
from collections.abc import Iterable

from .backend import Backend
from .fleet import Process
from .progress import Listen

WATCH_SECONDS = 1.0
WATCHED_AT_ONCE = 16  # where there are more encoders, committed units alone show how far a run is


class Watch:
    """Asks and listens; an encoder that does not answer is asked again all the same."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._heard: queue.SimpleQueue[dict[str, int]] = queue.SimpleQueue()
        self._looked = backend.now()

    def look(self, now: float, processes: Iterable[Process], listen: Listen) -> None:
        """Hands on what was answered since, and asks again, once a second."""
        if now - self._looked < WATCH_SECONDS:
            return
        self._looked = now
        while not self._heard.empty():
            listen(self._heard.get())
        encoders = [process for process in processes if process.kind == "encoder" and process.ready]
        for process in encoders if len(encoders) <= WATCHED_AT_ONCE else ():
            self._backend.watch(process.handle, self._heard.put)
