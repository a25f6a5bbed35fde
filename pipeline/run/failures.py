"""Failures: whose fault one is, and what follows.

storage that does not answer; nothing is read on     waited for: no attempt
one node while others go on
world, at any stage; a process that is sick          a loss       MAX_LOSSES
process, while it read images, unguarded             a death      then it is tried under guard
everything else                                      an attempt   limits.attempts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto

from ..errors import DamagedPart, EncodeError, OutputBusy, OutputError, RunFailed, SourceBusy
from ..output.totals import Totals
from .calls import Started
from .events import Blame, CallFailed, Event, Stage
from .fleet import Fleet, Process
from .health import Health, NodeHealth
from .patience import HOPELESS_SECONDS, Guard, Patience
from .progress import Progress

MAX_FAILURES_IN_A_ROW = 10
MAX_LOSSES = 20  # of one unit or part with a node, or to the memory monitor: no attempts, but not for ever either
DEATHS_BEFORE_GUARD = 2
WAITS_OF_ITS_OWN = 8


class Verdict(Enum):
    """The consequence of a failure."""

    AGAIN_FIRST = auto()  # nothing is known against it: its part should end soon
    AGAIN_LAST = auto()  # the others finish first
    WAIT = auto()
    SICK = auto()  # the process is to be replaced; the unit is given to another
    SET_ASIDE = auto()


class Late(Exception):
    """A process has not answered in time."""


class Failures:
    """Counts failures: of units and parts, of processes, of nodes' storage."""

    def __init__(self, progress: Progress, fleet: Fleet, attempts: int, say: Callable[[str], None]) -> None:
        self._progress, self._fleet, self._max_attempts, self._say = progress, fleet, attempts, say
        self._attempts: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._failed_in: dict[str, set[int]] = {}  # encoders, by unit
        self._waits: dict[str, tuple[float, int]] = {}  # the last one, and how many while others worked
        self._guard, self._patience, self._health, self._nodes = Guard(), Patience(), Health(), NodeHealth()
        self._in_a_row = 0

    def is_suspect(self, name: str) -> bool:
        """Whether the images of this unit or part are to be read under guard."""
        return self._guard.is_on or self._guard.deaths[name] >= DEATHS_BEFORE_GUARD

    def worked(self, stage: Stage, name: str, process: Process, now: float) -> None:
        """A process has answered well."""
        if stage is Stage.ENCODE:
            self._in_a_row = 0
            for counts in (self._attempts, self._losses, self._failed_in, self._waits):
                counts.pop(name, None)
        else:
            self._guard.passed(name)
            self._nodes.succeeded(process.node, name)
        self._health.succeeded(process, now)
        self._patience.worked(process.kind, process.node, now)

    def forget(self, node: str) -> None:
        """Forgets a node that is gone."""
        self._patience.forget(node)
        self._nodes.forget(node)

    def as_late(self, event: Event, started: Started, reason: str) -> Event:
        """Among the calls that ended with a process that was late, the late one is an attempt of its unit."""
        if isinstance(event, CallFailed) and (event.part, event.unit) == (started.part, started.unit):
            return replace(event, error=Late(reason), blame=Blame.CALL)
        return event

    def judge(self, failure: CallFailed, now: float) -> Verdict:
        """Says what follows. Raises OutputError: waiting cannot help; RunFailed: too many in a row."""
        error = failure.error
        if isinstance(error, OutputBusy | SourceBusy):
            return self._attempt(failure) if self._is_its_own(failure, now) else self._wait(failure, now)
        if isinstance(error, OutputError):
            raise error
        if isinstance(error, DamagedPart | EncodeError):
            return self._set_aside(failure)
        if self._is_of_its_node(failure):
            return self._wait(failure, now)
        sick = self._is_sick(failure, now)
        counter, limit = self._counter_of(failure, lost=sick or self._is_of_its_place(failure, now))
        counter[failure.name] += 1
        if counter[failure.name] >= limit:
            return Verdict.SICK if sick else self._set_aside(failure)
        self._progress.retries += 1
        if sick:
            return Verdict.SICK
        return Verdict.AGAIN_FIRST if counter is self._losses else Verdict.AGAIN_LAST

    def overhear(self, failure: CallFailed, now: float) -> None:
        """Notes a failure that a second process makes good: it says something of its process and node alone.

        Raises:
            OutputError: waiting cannot help.
        """
        if isinstance(failure.error, OutputBusy | SourceBusy):
            self._wait(failure, now)
        elif isinstance(failure.error, OutputError):
            raise failure.error
        else:
            self._is_sick(failure, now)

    def _attempt(self, failure: CallFailed) -> Verdict:
        self._attempts[failure.name] += 1
        if self._attempts[failure.name] >= self._max_attempts:
            return self._set_aside(failure)
        self._progress.retries += 1
        return Verdict.AGAIN_LAST

    def _is_its_own(self, failure: CallFailed, now: float) -> bool:
        """Whether storage holds up this unit or part alone: again and again, and others got through in between."""
        before, waits = self._waits.get(failure.name, (now, 0))
        waits += self._patience.worked_since(failure.process.kind, before)
        self._waits[failure.name] = (now, waits)
        return waits >= WAITS_OF_ITS_OWN

    def _is_sick(self, failure: CallFailed, now: float) -> bool:
        """Whether an encoder, not the unit, is to blame; one of several that may be is given nothing for a while."""
        process = failure.process
        if failure.stage is not Stage.ENCODE or failure.blame is not Blame.CALL or isinstance(failure.error, Late):
            return False
        sick = self._health.failed(process, now)
        if not sick and self._fleet.has_other(process) and (seconds := self._health.rest_seconds(process)):
            self._fleet.rest(process, now + seconds)
        return sick

    def _is_of_its_node(self, failure: CallFailed) -> bool:
        """Whether nothing can be read on a node, while others go on."""
        if failure.stage is Stage.ENCODE or failure.blame is Blame.WORLD or isinstance(failure.error, Late):
            return False
        bad = self._nodes.failed(failure.process.node, failure.name, self._fleet.spread("preparer", coming=True))
        self._losses[failure.name] += bad
        return bad and self._losses[failure.name] < MAX_LOSSES

    def _is_of_its_place(self, failure: CallFailed, now: float) -> bool:
        """Whether one encoder after the other dies in one place, while others go on elsewhere."""
        process = failure.process
        died = failure.stage is Stage.ENCODE and failure.blame is Blame.PROCESS
        return died and bool(process.ends) and self._health.others_succeed(process, now)

    def _counter_of(self, failure: CallFailed, *, lost: bool) -> tuple[Counter[str], int]:
        if failure.blame is Blame.WORLD or lost or self._is_known(failure):
            return self._losses, MAX_LOSSES
        reads_images = failure.stage is not Stage.ENCODE
        if failure.blame is Blame.PROCESS and reads_images and not failure.guarded:
            self._guard.died()
            return self._guard.deaths, MAX_LOSSES  # after two it is tried under guard
        return self._attempts, self._max_attempts

    def _is_known(self, failure: CallFailed) -> bool:
        """Whether a unit has failed in this encoder before: that says nothing new of it, where there are others."""
        if failure.stage is not Stage.ENCODE:
            return False
        known = self._failed_in.setdefault(failure.name, set())
        is_known = failure.process.number in known
        known.add(failure.process.number)
        return is_known and self._fleet.has_other(failure.process)

    def _wait(self, failure: CallFailed, now: float) -> Verdict:
        """Pauses the node's processes of this kind. Raises RunFailed: it has been long enough."""
        kind, node = failure.process.kind, failure.process.node
        does = "written" if kind == "encoder" else "read"
        pause_seconds = self._patience.failed(kind, node, now)
        if self._patience.is_hopeless(kind, now, self._fleet.spread(kind)):
            message = f"nothing could be {does} for {HOPELESS_SECONDS / 60:.0f} minutes, the last: {failure.error}"
            raise OutputError(message) if isinstance(failure.error, OutputError) else RunFailed(message)
        if pause_seconds is not None:
            self._fleet.pause(kind, node, now + pause_seconds)
            where = f" of node {self._fleet.name(node)}" if node else ""
            self._say(f"waiting {pause_seconds:g} s with the {kind}s{where}: {failure.error}")
        self._progress.retries += 1
        return Verdict.WAIT

    def _set_aside(self, failure: CallFailed) -> Verdict:
        message = f"{failure.name}: {failure.error}"
        self._progress.beyond_help += isinstance(failure.error, DamagedPart | EncodeError)
        if failure.unit is None:
            self._progress.failed_parts[failure.part] = message
            return Verdict.SET_ASIDE
        self._progress.set_aside[failure.unit.id] = message
        self._in_a_row += 1
        if self._in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise RunFailed(f"{MAX_FAILURES_IN_A_ROW} failures in a row, the last: {message}")
        return Verdict.SET_ASIDE


def check_rejected_fraction(totals: Totals, limit: float) -> None:
    """Raises RunFailed, with the reasons counted and three examples each, if too many samples are rejects."""
    if totals.rejected > limit * totals.images:
        aside = f" ({totals.no_image} without an image aside)" if totals.no_image else ""
        raise RunFailed(
            f"{totals.rejected} of {totals.images} samples are rejects, over limits.max_rejected_fraction "
            f"{limit}{aside}: {'; '.join(totals.reject_lines())}"
        )
