"""Cutting: parts become units ahead of need, in threads: of an output in object storage each waits for a request."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import DamagedPart, OutputBusy
from ..index.units import Unit

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0

Cut = tuple[int, list[Unit] | BaseException]


class Cutter:
    """Cuts parts.

    Args:
        cut: of a part. Raises DamagedPart.
        threads: 0: when it is asked for, by whoever asks.
    """

    def __init__(self, cut: Callable[[int], list[Unit]], threads: int = 0) -> None:
        self._cut = cut
        self._threads = threads
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Cut] = queue.SimpleQueue()
        self.pending = 0
        for _ in range(threads):  # none of them keeps the process from ending
            threading.Thread(target=self._serve, name="cut", daemon=True).start()

    def want(self, part: int) -> None:
        self.pending += 1
        if self._threads:
            self._wanted.put(part)
        else:
            self._work(part)

    def _serve(self) -> None:
        while (part := self._wanted.get()) is not None:
            self._work(part)

    def _work(self, part: int) -> None:
        try:
            self._done.put((part, self._cut_patiently(part)))
        except BaseException as error:  # noqa: BLE001 - raised again where it is taken
            self._done.put((part, error))

    def _cut_patiently(self, part: int) -> list[Unit]:
        """Waits for storage that does not answer. Raises what cutting does."""
        seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._cut(part)
            except OutputBusy:
                if seconds > LONGEST_PAUSE_SECONDS:
                    raise
            time.sleep(seconds)
            seconds *= 2

    def take(self, timeout_seconds: float = 0.0) -> list[tuple[int, list[Unit] | DamagedPart]]:
        """The parts that are cut, having waited for the first if asked to. Raises what cutting did, but DamagedPart."""
        found: list[tuple[int, list[Unit] | DamagedPart]] = []
        while self.pending:
            try:
                part, units = self._done.get(timeout=timeout_seconds) if timeout_seconds else self._done.get_nowait()
            except queue.Empty:
                break
            timeout_seconds = 0.0
            self.pending -= 1
            if isinstance(units, BaseException) and not isinstance(units, DamagedPart):
                raise units
            found.append((part, units))
        return found

    def close(self) -> None:
        """Ends the threads; what was wanted and not begun is not cut."""
        with suppress(queue.Empty):
            while self._threads:
                self._wanted.get_nowait()
        for _ in range(self._threads):
            self._wanted.put(None)
