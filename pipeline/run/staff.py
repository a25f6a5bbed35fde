"""Staff: the processes that a run has started, ready or not, and which are started where others have ended."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ..config_fields import Cluster
from ..errors import RequestError, RunFailed, is_busy
from .backend import Backend
from .calls import Call
from .deaths import Deaths
from .fleet import KINDS, Kind, Process
from .places import Places
from .sizing import Device, NodeFacts, Share, options_of

Reason = Literal["sick", "start", "stillborn", "death"]
MAX_TRIES: dict[Reason, int] = {
    "sick": 2,
    "start": 2,
    "stillborn": 5,
    "death": 20,
}  # in a row in one place, without a success
MESSAGE_SECONDS = 15.0
USUAL_SECONDS = 45.0  # that a process may take to start, with nothing wrong
START_SECONDS = 600.0  # of a process, and twice as long each time that it was too short on its node


class Staff:
    """Starts and ends processes, and knows what each has not answered yet.

    `deaths`: of those that are not judged yet; their places are kept for them.

    Args:
        begin: is called with every process that was started.
        say: prints a line for the user.
    """

    def __init__(
        self,
        backend: Backend,
        cluster: Cluster,
        device: Device,
        places: Places,
        *,
        begin: Callable[[Process], None],
        say: Callable[[str], None],
    ) -> None:
        self._backend, self._cluster, self._device, self._places = backend, cluster, device, places
        self._begin, self._say = begin, say
        self.deaths = Deaths()
        self._calls: dict[Process, dict[Call, None]] = {}
        self._numbers = {kind: itertools.count() for kind in KINDS}
        self._last_error: dict[Kind, BaseException] = {}
        self._started: dict[Process, float] = {}  # those that are starting, the oldest first
        self._late: Counter[tuple[Kind, str]] = Counter()
        self._said = backend.now()
        self._awaited: dict[Kind, float] = {}  # since when there is none

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._calls))

    def count(self, kind: Kind) -> int:
        """How many there are of a kind, those that are starting included."""
        return sum(process.kind == kind for process in self._calls)

    def began(self, call: Call) -> None:
        self._calls[call.process][call] = None

    def answered(self, call: Call) -> None:
        self._calls[call.process].pop(call, None)
        if call.stage is None:
            self._started.pop(call.process, None)

    def late(self) -> list[Process]:
        """Those that have not come for long: they hang, or another job holds their place for good.

        The next start in the same place is given twice as long.
        """
        now, late = self._backend.now(), []
        for process, started in self._started.items():
            if now - started >= START_SECONDS * 2 ** self._late[process.kind, process.node]:
                late.append(process)
        self._late.update({(process.kind, process.node) for process in late})
        return late

    def take_out(self, process: Process) -> list[Call]:
        """Ends a process that is gone or shall be; returns the calls that it leaves unanswered."""
        process.gone = True
        self._started.pop(process, None)
        self._backend.kill(process.handle)  # an actor that is only unavailable must not go on beside its successor
        return list(self._calls.pop(process, {}))

    def start_missing(self) -> None:
        """Starts what the places lack; those of the dead are kept until it is known why they died."""
        for node, missing in list(self._places.missing([*self._calls, *self.deaths.processes()])):
            for kind in KINDS:
                for _ in range(missing.of(kind)):
                    self._start(kind, node, missing)
        if count := self._places.encoders_to_ask_for(self._calls):
            self._backend.ask_for("GPU" if self._device == "cuda" else "CPU", count)

    def _start(self, kind: Kind, node: NodeFacts, missing: Share, ends: Counter[str] | None = None) -> None:
        number = next(self._numbers[kind])
        options = options_of(kind, self._cluster, node, missing, self._device)
        handle: Any = self._backend.start(kind, number, node.id, options)
        process = Process(kind=kind, number=number, node=node.id, handle=handle, ends=ends or Counter())
        self._calls[process] = {}
        self._started[process] = self._backend.now()
        self._begin(process)

    def start_again(self, process: Process, reason: Reason, error: BaseException) -> None:
        """Starts another process in the place of one that ended, unless too many have ended there without one success.

        Raises:
            RequestError, RunFailed: no process of its kind is left; see `check_some_are_left`.
        """
        kind, node = process.kind, process.node
        self._last_error[kind] = error
        if node not in self._places.nodes or is_busy(error):
            return  # storage that does not answer is asked again when the nodes are looked at again
        ends = process.ends + Counter([reason])
        if ends[reason] < MAX_TRIES[reason] and not isinstance(error, RequestError):
            self._start(kind, self._places.nodes[node], Share(encoders=1, preparers=1), ends)
            return
        self._places.give_up(kind, node)
        name, tries = self._places.name(node), f"{ends.total()} in a row" if ends.total() > 1 else "one"
        self._say(f"node {name} gets one {kind} fewer: {tries} came to nothing, the last: {first_line(error)}")
        self.check_some_are_left(kind)

    def leave_out(self, kind: Kind, node: str, error: RequestError) -> list[Process]:
        """Starts no process of a kind on a node any more; returns those that are there, to be ended."""
        self._last_error[kind] = error
        self._places.leave_out(kind, node)
        self._say(f"node {self._places.name(node)} is left out, it gets no {kind}: {error}")
        return [process for process in self._calls if (process.kind, process.node) == (kind, node)]

    def say_awaited(self, kinds: list[Kind]) -> None:
        """A line for whoever waits for them, now and then, where something may be wrong: processes take a while."""
        now = self._backend.now()
        for kind in KINDS:
            self._awaited[kind] = min(now, self._awaited.get(kind, now)) if kind in kinds else now
        if not kinds or now - self._said < MESSAGE_SECONDS:
            return
        self._said = now
        for kind in kinds:
            gave_up, late = self._places.gave_up(kind), now - self._awaited[kind] >= USUAL_SECONDS
            if self.count(kind) and not gave_up and not late:
                continue
            why = f"; the last ended with: {first_line(self._last_error[kind])}" if gave_up else ""
            self._say(self._places.awaited(kind, self.count(kind)) + why)

    def check_some_are_left(self, kind: Kind) -> None:
        """Raises the RequestError that was the last reason, or RunFailed: no process of a kind can be kept."""
        if not self._places.nodes or any(process.kind == kind for process in self.deaths.processes()):
            return
        if not self.count(kind):
            self.start_missing()
        if self.count(kind):
            return
        error = self._last_error[kind]
        if isinstance(error, RequestError):
            raise error
        raise RunFailed(f"no {kind} process can be kept alive, the last: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
