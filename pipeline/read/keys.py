"""Keys: which row has which key, in memory by 16 bytes a row, whatever keys look like."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..storage.files import AnyPath, open_input

FOOTERS_AT_ONCE = 32
KEYS_COMPARED = 100_000  # with one that is not there


class KeyIndex:
    """The keys of an output's rows, in order.

    Args:
        path_of: a unit's samples shard.
        units: how many there are.
        column: of `samples`, which has them.
    """

    def __init__(self, path_of: Callable[[int], AnyPath], units: int, column: str = "key") -> None:
        self._path_of, self._units, self._column = path_of, units, column
        self._hashes: tuple[np.ndarray, np.ndarray] | None = None

    def rows_like(self, key: str) -> list[int]:
        """The rows whose keys may be this one: their hashes agree. The first call reads all keys."""
        if self._hashes is None:
            with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
                hashed = pool.map(lambda unit: np.array([hash(one) for one in self.of_unit(unit)], np.int64), self._all)
                hashes = np.concatenate([np.empty(0, np.int64), *hashed])
            order = np.argsort(hashes, kind="stable")
            self._hashes = hashes[order], order
        hashes, order = self._hashes
        first, last = (int(np.searchsorted(hashes, hash(key), side=side)) for side in ("left", "right"))
        return [int(row) for row in order[first:last]]

    @property
    def _all(self) -> Sequence[int]:
        return range(self._units)

    def of_unit(self, unit: int) -> list[str]:
        """The keys of one unit's rows."""
        with open_input(self._path_of(unit), forwards=False) as stream:
            table = pq.read_table(stream, columns=[self._column, "status"])
        keys: list[str] = table.filter(pc.equal(table.column("status"), "ok")).column(self._column).to_pylist()
        return keys

    def __iter__(self) -> Iterator[str]:
        """Yields all keys, in the order of the rows, a shard at a time."""
        for unit in self._all:
            yield from self.of_unit(unit)

    def nearest(self, key: str) -> str:
        """The key that is spelt most like this one, of the first KEYS_COMPARED; "" where none is like it."""
        found = difflib.get_close_matches(key, itertools.islice(self, KEYS_COMPARED), 1)
        return found[0] if found else ""
