"""Health: processes that fail call after call while others of their kind succeed."""

from __future__ import annotations

from .fleet import Kind, Process

FAILURES = 2  # in a row
RECENT_SECONDS = 10.0
LONGEST_REST_SECONDS = 10.0


class Health:
    """Successes by process. A process that is told to be sick is to be replaced.

    Who fails before it can be told does so slowly: else it would take unit after unit from those that are at work.
    """

    def __init__(self) -> None:
        self._last: dict[Kind, tuple[float, Process]] = {}
        self._before: dict[Kind, tuple[float, Process]] = {}  # the last of another process

    def succeeded(self, process: Process, now: float) -> None:
        process.failures = 0
        process.ends.clear()
        last = self._last.get(process.kind)
        if last is not None and last[1] is not process:
            self._before[process.kind] = last
        self._last[process.kind] = (now, process)

    def failed(self, process: Process, now: float) -> bool:
        """Notes a failure; returns whether it is sick: it failed twice in a row while another one succeeded."""
        if not process.failures:
            process.failed_at = now
        process.failures += 1
        return process.failures >= FAILURES and self.others_succeed(process, process.failed_at)

    def rest_seconds(self, process: Process) -> float:
        """How long a process that has just failed is to be given nothing."""
        return min(LONGEST_REST_SECONDS, 2.0 ** (process.failures - FAILURES)) if process.failures >= FAILURES else 0.0

    def others_succeed(self, process: Process, now: float) -> bool:
        """Whether another one of its kind has succeeded since a moment before now."""
        last = self._last.get(process.kind)
        if last is not None and last[1] is process:
            last = self._before.get(process.kind)
        return last is not None and last[0] >= now - RECENT_SECONDS
