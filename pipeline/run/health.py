"""Health: processes, and nodes, where call after call fails that goes well elsewhere."""

from __future__ import annotations

from collections import Counter

from .fleet import Kind, Process

FAILURES = 2  # in a row
RECENT_SECONDS = 10.0
LONGEST_REST_SECONDS = 10.0
FAILURES_OF_A_NODE = 4  # in a row


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


class NodeHealth:
    """Nodes where images cannot be read, and units and parts that could not be read there.

    A node whose source is not mounted fails faster than others work, and would use up the attempts of all units.
    """

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()  # in a row, by node
        self._failed_on: dict[str, set[str]] = {}  # a unit or part: nodes

    def succeeded(self, node: str, name: str) -> None:
        self._failures.pop(node, None)
        self._failed_on.pop(name, None)

    def failed(self, node: str, name: str, nodes: int) -> bool:
        """Notes a failure; returns whether the node is to blame, of so many that there are.

        It is as long as call after call fails there, another node does not look like that, and this unit or part has
        failed nowhere else.
        """
        self._failures[node] += 1
        failed_on = self._failed_on.setdefault(name, set())
        failed_on.add(node)
        bad = {one for one, count in self._failures.items() if count >= FAILURES_OF_A_NODE}
        return node in bad and len(bad) < nodes and failed_on == {node}

    def forget(self, node: str) -> None:
        """Forgets a node that is gone."""
        self._failures.pop(node, None)
