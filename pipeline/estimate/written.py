"""Written: what an output holds, by the names that an estimate has for it.

From the ledger, from footers of parts that are not folded, and from the samples shards of earlier versions, whose
records have no statistics. One image is 12 bytes, for a while: that equal ones are found wherever they lie.
"""

from __future__ import annotations

import math
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..config import Config
from ..errors import OutputError
from ..index.units import UnitId
from ..output.layout import samples_path
from ..output.ledger import CommittedUnits, read_committed
from ..output.ledger_file import PACE, STATISTICS, FoldedPart
from ..output.pace import FoldedWorks, Timeline, Work, work_of
from ..output.record import CommitRecord
from ..output.statistics import BRANCHES, COLUMNS, UnitStatistics, statistics_of
from ..output.totals import Totals
from ..storage.files import AnyPath, requests_at_once, small_file
from .estimate import Estimate, SourceFacts

SHARES = 64
SHARE_IN_MEMORY_BYTES = 2 << 20
IMAGE = np.dtype([("hash", "<u8"), ("tokens", "<i4")])


class EqualImages:
    """Counts images with equal bytes, by 64 bits of their sha256; in temporary files beyond SHARES shares in memory."""

    def __init__(self, files: ExitStack) -> None:
        self._shares = [
            files.enter_context(tempfile.SpooledTemporaryFile(max_size=SHARE_IN_MEMORY_BYTES)) for _ in range(SHARES)
        ]

    def add(self, hash_N: npt.NDArray[np.uint64], tokens_N: npt.NDArray[np.int32]) -> None:
        images_N = np.empty(len(hash_N), IMAGE)
        images_N["hash"], images_N["tokens"] = hash_N, tokens_N
        share_N = (hash_N >> np.uint64(58)).astype(np.uint8)
        order = np.argsort(share_N, kind="stable")
        ends = np.cumsum(np.bincount(share_N, minlength=SHARES)).tolist()
        sorted_N = images_N[order]
        for share, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            if first < last:
                self._shares[share].write(sorted_N[first:last].tobytes())

    def again(self) -> tuple[int, int]:
        """How many images have the bytes of another one that counts, and their tokens."""
        images = tokens = 0
        for share in self._shares:
            share.seek(0)
            images_N = np.frombuffer(share.read(), IMAGE)
            order = np.argsort(images_N["hash"])
            hash_N = images_N["hash"][order]
            same_N = hash_N[1:] == hash_N[:-1]
            images += int(same_N.sum())
            tokens += int(images_N["tokens"][order[1:][same_N]].sum(dtype=np.int64))
        return images, tokens


class Written:
    """The sums over all committed units.

    Attributes:
        works: of units whose part is not folded; `folded_works`: of the others.
    """

    def __init__(self, files: ExitStack) -> None:
        self.totals = Totals()
        self.sizes = SourceFacts()
        self.works: list[Work] = []
        self.folded_works = FoldedWorks()
        self._equal = EqualImages(files)
        self._histogram = np.zeros(1, np.int64)
        self._branches: Counter[str] = Counter()
        self._unit_repeats = self._unit_repeated_tokens = 0
        self._norm_sums = array("d")
        self._norm_max = 0.0

    def add_records(self, records: list[CommitRecord]) -> list[str]:
        """Adds units; returns the ids of those whose images are not known by that."""
        unknown = []
        for record in records:
            self.totals.add(record)
            if (work := work_of(record)) is not None:
                self.works.append(work)
            if (unit := UnitStatistics.of_record(record)) is not None:
                self.add_unit(unit)
            elif record.rows_out:
                unknown.append(record.unit)
        return unknown

    def add_unit(self, unit: UnitStatistics) -> None:
        """Adds the images of one unit."""
        self._add_images(unit.hash_N, unit.tokens_N, unit.height_N, unit.width_N, unit.branches_N)
        self._add_sums(unit.repeats, unit.repeated_tokens, unit.norm_max)
        self._norm_sums.append(unit.norm_sum)

    def add_ledger(self, ledger: FoldedPart) -> list[str]:
        """Adds a folded part; returns the ids of its units whose images are not known by that."""
        self.totals.merge(ledger.totals)
        self.folded_works.add(ledger)
        known = ledger.table.column("norm_sum").is_valid().to_numpy()
        self._add_images(*(ledger.array(name) for name in ("hashes", "image_tokens", "heights", "widths", "branches")))
        if known.any():
            repeats, tokens = (int(ledger.column(name)[known].sum()) for name in ("repeats", "repeated_tokens"))
            self._add_sums(repeats, tokens, float(ledger.column("norm_max")[known].max()))
            self._norm_sums.extend(ledger.column("norm_sum")[known].tolist())
        unknown = zip(ledger.numbers, known.tolist(), ledger.column("rows_out").tolist(), strict=True)
        return [str(UnitId(ledger.part, number)) for number, is_known, rows in unknown if rows and not is_known]

    def _add_images(self, hash_N: Any, tokens_N: Any, height_N: Any, width_N: Any, branches_N: Any) -> None:
        if not len(hash_N):
            return
        counts = np.bincount(tokens_N)
        if len(counts) > len(self._histogram):
            self._histogram = np.pad(self._histogram, (0, len(counts) - len(self._histogram)))
        self._histogram[: len(counts)] += counts
        for bit, name in enumerate(BRANCHES):
            self._branches[name] += int(np.count_nonzero(branches_N & (1 << bit)))
        self.sizes.add_sizes(height_N.astype(np.int64), width_N.astype(np.int64))
        self._equal.add(hash_N, tokens_N)

    def _add_sums(self, repeats: int, repeated_tokens: int, norm_max: float) -> None:
        self._unit_repeats += repeats
        self._unit_repeated_tokens += repeated_tokens
        self._norm_max = max(self._norm_max, norm_max)

    def estimate(self, config: Config) -> Estimate:
        """Returns what an estimate would have said, had it known what was written."""
        images, tokens = self._equal.again()
        within = (self._unit_repeats, self._unit_repeated_tokens) if config.pack.deduplicate else (0, 0)
        return Estimate(
            max_pixels=config.preprocess.max_pixels,
            samples=self.totals.samples,
            units=self.totals.units,
            rejects=self.totals.rejects,
            histogram=self._histogram,
            branches=self._branches,
            duplicates=images,
            duplicate_tokens=tokens,
            unit_duplicates=within[0],
            unit_duplicate_tokens=within[1],
        )

    def norms(self) -> tuple[float | None, float | None]:
        """The mean of the images' mean norms, and the largest norm; None without an image."""
        images = int(self._histogram.sum())
        return (math.fsum(self._norm_sums) / images, self._norm_max) if images else (None, None)

    def timeline(self) -> Timeline:
        """How fast it was written."""
        return Timeline(self.works, self.folded_works)


def read_written(output: AnyPath, committed: CommittedUnits, folded: Set[int], files: ExitStack) -> Written:
    """Sums all that is committed. `files`: closes what this keeps in temporary files. Raises OutputError."""
    written = Written(files)
    unknown: list[str] = []
    for one in read_committed(output, committed, folded, sorted({*PACE, *STATISTICS})):
        unknown += written.add_records(one) if isinstance(one, list) else written.add_ledger(one)
    for unit in _read_images(output, unknown):
        written.add_unit(unit)
    return written


def _read_images(output: AnyPath, unit_ids: list[str]) -> Iterator[UnitStatistics]:
    """The statistics of units whose records have none, from their samples shards. Raises OutputError."""

    def read(unit_id: str) -> UnitStatistics:
        path = samples_path(output, unit_id)
        try:
            return statistics_of(pq.read_table(small_file(path), columns=list(COLUMNS)).to_pydict())
        except (OSError, pa.ArrowException, ValueError) as error:
            raise OutputError(f"{path} cannot be read: {error}; `visionbake verify` tells more") from error

    with ThreadPoolExecutor(requests_at_once(output)) as pool:
        yield from pool.map(read, unit_ids)
