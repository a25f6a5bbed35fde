"""Lengths: how many tokens each row has, from the ledger; of a folded part no other file is read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import OutputError
from ..output.ledger_file import numbers_of, open_ledger, values_of
from ..storage.files import AnyPath, small_file

PARTS_KEPT = 1024  # of 8192 images 32 MB


class TokenCounts:
    """The token counts of an output's rows, unit by unit; those of the parts that were asked for last are kept.

    Args:
        root: the output.
        fingerprint: of its run; a ledger file of another one is left out.
        shard_of: gives the samples shard of the n-th committed unit.
    """

    def __init__(self, root: AnyPath, fingerprint: str, shard_of: Callable[[int], AnyPath]) -> None:
        self._root, self._fingerprint, self._shard_of = root, fingerprint, shard_of
        self._parts: OrderedDict[int, dict[int, npt.NDArray[np.int32]]] = OrderedDict()

    def of_unit(self, unit: int, part: int, number: int, rows: int) -> npt.NDArray[np.int32]:
        """Returns the tokens of each accepted row of the unit-th committed unit, int32 [rows].

        Raises:
            OutputError, OSError: its samples shard cannot be read, where the ledger does not have them.
        """
        if part not in self._parts:
            self._parts[part] = self._of_ledger(part)
            if len(self._parts) > PARTS_KEPT:
                self._parts.popitem(last=False)
        self._parts.move_to_end(part)
        counts = self._parts[part].get(number)
        if counts is None or len(counts) != rows:
            table = pq.read_table(small_file(self._shard_of(unit)), columns=["status", "num_tokens"])
            chosen = table.filter(pc.equal(table.column("status"), "ok")).column("num_tokens").to_pylist()
            counts = self._parts[part][number] = np.array(chosen, np.int32)
        return counts

    def _of_ledger(self, part: int) -> dict[int, npt.NDArray[np.int32]]:
        """Returns the counts of a part's units by their numbers; of none where there is no ledger that can be used."""
        try:
            ledger = open_ledger(self._root, part, ("image_tokens", "rows_out"))
        except OutputError:
            return {}
        counts = values_of(ledger.table, "image_tokens").astype(np.int32)
        ends = np.cumsum(numbers_of(ledger.table, "rows_out").astype(np.int64))
        if ledger.fingerprint != self._fingerprint or not len(ends) or ends[-1] != len(counts):
            return {}
        return dict(zip(ledger.numbers, np.split(counts, ends[:-1]), strict=True))
