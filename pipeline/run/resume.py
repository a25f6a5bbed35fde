"""Resume: what of an output is committed before a run, and what of it needs no second look."""

from __future__ import annotations

from functools import partial

from ..output.done import done_parts, read_counts
from ..output.ledger import CommittedUnits, folded_parts, totals_of
from ..output.totals import Totals
from ..process import in_background
from ..storage.files import AnyPath


class Resume:
    """An output as it was found: by the names of its samples shards, and of its ledgers.

    Attributes:
        committed: its units.
        done: parts of which all units are committed; `counts`: how many units such parts have, as far as it is known.
    """

    def __init__(self, output: AnyPath, parts: int) -> None:
        self._output = output
        folded = in_background(partial(folded_parts, output))
        counts = in_background(partial(read_counts, output))
        self.committed = CommittedUnits(output, parts)
        self._folded, self.counts = folded.result(), counts.result()
        self.done = done_parts(output, self.committed, self._folded, self.counts)

    def totals(self) -> Totals:
        """The sums of what was committed. Raises OutputError."""
        return totals_of(self._output, self.committed, self._folded)

    def units_done(self) -> int:
        """How many units the done parts have."""
        return sum(map(self.committed.count_of, self.done))
