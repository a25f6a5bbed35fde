"""Ledger: which units are committed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ..index.units import UnitId
from ..storage.files import REQUESTS_AT_ONCE, AnyPath, lists_by_prefix, names_in
from .layout import unit_id_of


class CommittedUnits:
    """Which units are committed, by the names of their samples shards. A bit a unit."""

    def __init__(self, output: AnyPath, parts: int | None = None) -> None:
        self._bits: dict[int, int] = {}
        self.count = 0
        # An object store lists by prefix: a thousand parts at a time, so that no listing is of all shards.
        split = parts is not None and lists_by_prefix(output)
        prefixes = [f"part-{first:03d}" for first in range(-(-(parts or 0) // 1000))] if split else ["part-"]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for names in pool.map(lambda prefix: names_in(output / "samples", prefix), prefixes):
                for name in (name for name in names if name.endswith(".parquet")):
                    with suppress(ValueError):  # another's file
                        self.add(*unit_id_of(name))

    def add(self, part: int, number: int) -> None:
        if not self.has(part, number):
            self._bits[part] = self._bits.get(part, 0) | 1 << number
            self.count += 1

    def has(self, part: int, number: int) -> bool:
        return bool(self._bits.get(part, 0) >> number & 1)

    def unit_ids(self, without: CommittedUnits | None = None) -> Iterator[str]:
        """In order; only those that an earlier look had not found."""
        for part, bits in sorted(self._bits.items()):
            if without is not None:
                bits &= ~without._bits.get(part, 0)
            number = 0
            while bits:
                if bits & 1:
                    yield str(UnitId(part, number))
                bits >>= 1
                number += 1
