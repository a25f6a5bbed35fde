"""Patience: what a run waits for, and for how long.

Storage that does not answer is waited for, node by node, with growing pauses. Images that kill whoever reads them turn
the guard on for a while.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import is_busy
from .fleet import Kind

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
HOPELESS_SECONDS = 600.0
DEATHS_BEFORE_ALL_ARE_GUARDED = 5  # in a row: a source that is full of such images
GUARDED_AT_FIRST = 32
GUARDED_AT_MOST = 4096


def until_storage_answers(work: Callable[[], T], say: Callable[[str], None]) -> T:
    """Does what can be done again at any time; where storage does not answer, again after growing pauses.

    Raises:
        Exception: what `work` raised, if waiting cannot help, or has not helped for ten minutes.
    """
    since, pause_seconds = math.inf, FIRST_PAUSE_SECONDS
    while True:
        began = time.monotonic()
        try:
            return work()
        except Exception as error:
            now = time.monotonic()
            if now - began > HOPELESS_SECONDS:  # it has worked for long: this is another trouble
                since, pause_seconds = now, FIRST_PAUSE_SECONDS
            since = min(since, now)
            if not is_busy(error) or now - since >= HOPELESS_SECONDS:
                raise
            say(f"waiting {pause_seconds:g} s, then again: {error}")
        time.sleep(pause_seconds)
        pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause_seconds)


@dataclass(kw_only=True)
class _Trouble:
    since: float
    pause_seconds: float
    until: float = 0.0


class Patience:
    """Nodes whose processes cannot write, or cannot read, at the moment."""

    def __init__(self) -> None:
        self._troubles: dict[tuple[Kind, str], _Trouble] = {}
        self._worked: dict[Kind, float] = {}

    def failed(self, kind: Kind, node: str, now: float) -> float | None:
        """Notes a failure; returns the pause that begins now, in seconds, None where one is on already."""
        trouble = self._troubles.get((kind, node))
        if trouble is None:
            trouble = self._troubles[kind, node] = _Trouble(since=now, pause_seconds=FIRST_PAUSE_SECONDS)
        elif now < trouble.until:
            return None
        else:
            trouble.pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * trouble.pause_seconds)
        trouble.until = now + trouble.pause_seconds
        return trouble.pause_seconds

    def worked(self, kind: Kind, node: str, now: float) -> None:
        self._troubles.pop((kind, node), None)
        self._worked[kind] = now

    def worked_since(self, kind: Kind, moment: float) -> bool:
        """Whether anything of a kind has worked since then."""
        return self._worked.get(kind, -math.inf) > moment

    def forget(self, node: str) -> None:
        """Forgets a node that is gone."""
        for key in [key for key in self._troubles if key[1] == node]:
            del self._troubles[key]

    def is_hopeless(self, kind: Kind, now: float, nodes: int) -> bool:
        """Whether it has failed on two nodes, or on the only one, for ten minutes in which nothing has worked."""
        since = sorted(trouble.since for (one, _), trouble in self._troubles.items() if one == kind)
        needed = max(1, min(2, nodes))
        if len(since) < needed:
            return False
        return now - max(since[needed - 1], self._worked.get(kind, 0.0)) >= HOPELESS_SECONDS


class Guard:
    """Whether images are read in a child process, which costs time: for all of them after deaths in a row, for a while.

    Each time that it did not help for long, the while is twice as long.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._left = 0
        self._while = GUARDED_AT_FIRST
        self._unguarded = 0  # that passed since the guard was last on
        self.deaths: Counter[str] = Counter()  # by unit or part, as whoever judges counts them

    @property
    def is_on(self) -> bool:
        """For everything."""
        return self._left > 0

    def died(self) -> None:
        """A process has died by itself while it read the images of a unit or part, not guarded."""
        self._in_a_row += 1
        if self._in_a_row >= DEATHS_BEFORE_ALL_ARE_GUARDED:
            self._in_a_row = 0
            self._left, self._while = self._while, min(GUARDED_AT_MOST, 2 * self._while)

    def passed(self, name: str) -> None:
        """The images of a unit or part were read."""
        self.deaths.pop(name, None)
        if self._left:
            self._left -= 1
            self._unguarded = 0
            return
        self._in_a_row = 0
        self._unguarded += 1
        if self._unguarded >= self._while:
            self._while = GUARDED_AT_FIRST
