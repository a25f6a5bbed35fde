"""Kept values: made on first use, by one of several threads, and let go when they are used least."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Kept(Generic[V]):
    """Values by their names.

    Args:
        limit: how much is kept: of the sum of `size_of`. One value is kept, however large.
        size_of: what a value counts; 1 if not given.

    Attributes:
        held: the sum of what is kept.
    """

    def __init__(self, limit: int, size_of: Callable[[V], int] | None = None) -> None:
        self._limit, self._size_of = limit, size_of or (lambda value: 1)
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self.held = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: Hashable, make: Callable[[], V]) -> V:
        """The value of this name; made where there is none, once however many threads ask. Raises what `make` does."""
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
                return self._values[name]
            making = self._making.setdefault(name, threading.Lock())
        with making:
            with self._lock:
                if name in self._values:  # made meanwhile
                    return self._values[name]
            try:
                value = make()
                self._keep(name, value)
            finally:
                with self._lock:
                    self._making.pop(name, None)
        return value

    def _keep(self, name: Hashable, value: V) -> None:
        with self._lock:
            self._values[name] = value
            self.held += self._size_of(value)
            while self.held > self._limit and len(self._values) > 1:
                _, old = self._values.popitem(last=False)
                self.held -= self._size_of(old)
