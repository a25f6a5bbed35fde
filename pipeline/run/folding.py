"""Folding: the ledger files of parts that are done, written in the background of a run. See `output/ledger.py`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import OutputError
from ..output.done import write_counts
from ..output.ledger import fold_part
from ..output.record import CommitRecord
from ..storage.files import AnyPath, requests_at_once
from ..storage.scratch import Scratch

THREADS = 4
COUNTS_SECONDS = 60.0
CLOSE_SECONDS = 600.0  # nothing that it writes is needed

_Done = tuple[int, range, dict[int, CommitRecord]]


class Folder:
    """Writes the ledger files of parts. What goes wrong is said once, and costs nothing but requests later.

    Args:
        say: prints a line for the user.
    """

    def __init__(self, output: AnyPath, scratch: Scratch, say: Callable[[str], None]) -> None:
        self._output, self._scratch, self._say = output, scratch, say
        self.counts: dict[int, int] = {}  # units by part, of those that have a ledger
        self._written = time.monotonic()
        self._lock = threading.Lock()
        self._parts: queue.SimpleQueue[_Done | None] = queue.SimpleQueue()
        self._said = False
        self._threads = [
            threading.Thread(target=self._serve, name="fold", daemon=True)
            for _ in range(min(THREADS, requests_at_once(output)))
        ]
        for thread in self._threads:
            thread.start()

    def add(self, part: int, numbers: range, records: dict[int, CommitRecord]) -> None:
        """All units of a part, by their numbers, are committed; these are the records at hand."""
        self._parts.put((part, numbers, records))

    def _serve(self) -> None:
        while (done := self._parts.get()) is not None:
            part, numbers, records = done
            try:
                fold_part(self._output, part, records, numbers, self._scratch)
                if numbers:
                    self.counts[part] = len(numbers)
                self._write_counts(COUNTS_SECONDS)
            except (OSError, OutputError) as error:
                if not self._said:
                    self._said = True
                    self._say(f"a part's ledger could not be written, which costs requests later: {error}")

    def _write_counts(self, after_seconds: float) -> None:
        with self._lock:
            if time.monotonic() - self._written >= after_seconds and self.counts:
                self._written = time.monotonic()
                write_counts(self._output, dict(self.counts), self._scratch)

    def close(self) -> None:
        """Waits until all are written."""
        for _ in self._threads:
            self._parts.put(None)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        with suppress(OSError, OutputError):
            self._write_counts(0.0)
