"""Written: what an output holds, by the names that an estimate has for it.

From the ledger, from footers of parts that are not folded, and from the samples shards of earlier versions, whose
records have no statistics. One image is 12 bytes, for a while: that equal ones are found wherever they lie.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..config_fields import Config
from ..errors import OutputError
from ..index.units import UnitId
from ..output.clip_statistics import CLIP_ARRAYS, CLIP_COLUMNS, ClipStatistics
from ..output.layout import samples_path
from ..output.ledger import CommittedUnits, read_committed
from ..output.ledger_file import ARRAYS, PACE, STATISTICS, SUMS, FoldedPart, numbers_of, values_of
from ..output.pace import FoldedWorks, Timeline, Work, work_of
from ..output.record import CommitRecord
from ..output.statistics import BRANCHES, COLUMNS, UnitStatistics, statistics_of
from ..output.totals import Totals
from ..storage.files import AnyPath, requests_at_once, small_file
from .estimate import Estimate, SourceFacts
from .film import Film

SHARES = 64
SHARE_IN_MEMORY_BYTES = 1 << 20
IMAGES_AT_ONCE = 1 << 20
TABLES_AT_ONCE = 256


class EqualImages:
    """Counts images with equal bytes, by 64 bits of their sha256.

    By the first six of those bits they go into shares, in temporary files once there are many; equal ones are in one
    share. `files` closes them.
    """

    def __init__(self, files: ExitStack) -> None:
        self._hashes, self._tokens = (
            [files.enter_context(SpooledTemporaryFile(max_size=SHARE_IN_MEMORY_BYTES)) for _ in range(SHARES)]
            for _ in range(2)
        )

    def add(self, hash_N: npt.NDArray[np.uint64], tokens_N: npt.NDArray[np.int32]) -> None:
        """Adds images, best many at once."""
        share_N = (hash_N >> np.uint64(58)).astype(np.uint8)
        order = np.argsort(share_N, kind="stable")
        ends = np.cumsum(np.bincount(share_N, minlength=SHARES)).tolist()
        hash_N, tokens_N = hash_N[order], tokens_N[order]
        for share, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            if first < last:
                self._hashes[share].write(hash_N[first:last].data)
                self._tokens[share].write(tokens_N[first:last].data)

    def again(self) -> tuple[int, int]:
        """How many images have the bytes of another one that counts, and their tokens."""
        images = tokens = 0
        for hash_file, token_file in zip(self._hashes, self._tokens, strict=True):
            hash_N, tokens_N = _content(hash_file, np.uint64), _content(token_file, np.int32)
            sorted_N = np.sort(hash_N)  # a tenth of the time of an argsort
            repeated = np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]])
            if not len(repeated):
                continue
            place_N = np.searchsorted(repeated, hash_N).clip(max=len(repeated) - 1)
            is_repeated_N = repeated[place_N] == hash_N
            first_of_each = np.unique(place_N[is_repeated_N], return_index=True)[1]
            repeated_tokens = tokens_N[is_repeated_N]
            images += len(repeated_tokens) - len(repeated)
            tokens += int(repeated_tokens.sum(dtype=np.int64) - repeated_tokens[first_of_each].sum(dtype=np.int64))
        return images, tokens


def _content(file: SpooledTemporaryFile[bytes], kind: type[np.generic]) -> npt.NDArray[Any]:
    file.seek(0)
    return np.frombuffer(file.read(), kind)


class Written:
    """The sums over all committed units.

    Attributes:
        works: of units whose part is not folded; `folded_works`: of the others.
    """

    def __init__(self, files: ExitStack) -> None:
        self.totals = Totals()
        self.sizes = SourceFacts()
        self.film = Film()
        self.works: list[Work] = []
        self.folded_works = FoldedWorks()
        self._equal = EqualImages(files)
        self._histogram = np.zeros(1, np.int64)
        self._branches: Counter[str] = Counter()
        self._unit_repeats = self._unit_repeated_tokens = 0
        self._norm_sums = array("d")
        self._norm_max = 0.0
        # What is not counted yet: a numpy call for many units is cheaper than one for each.
        self._images: list[tuple[npt.NDArray[Any], ...]] = []
        self._num_images = 0
        self._tables: list[pa.Table] = []

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
        self._unit_repeats += unit.repeats
        self._unit_repeated_tokens += unit.repeated_tokens
        self._norm_max = max(self._norm_max, unit.norm_max)
        self._norm_sums.append(unit.norm_sum)
        if unit.clips is not None:
            self.film.add(unit.clips)
        self._add_images(unit.hash_N, unit.tokens_N, unit.height_N, unit.width_N, unit.branches_N)

    def add_ledger(self, ledger: FoldedPart) -> list[str]:
        """Adds a folded part; returns the ids of its units whose images are not known by that."""
        table = ledger.table
        self.totals.merge(ledger.totals)
        self.folded_works.add(table)
        self._add_images(*(values_of(table, name) for name in ARRAYS))
        self.film.add(ClipStatistics.of_arrays([values_of(table, name) for name in CLIP_ARRAYS]))
        self._tables.append(table.select(SUMS))
        if len(self._tables) >= TABLES_AT_ONCE:
            self._count_sums()
        sums = table.column("norm_sum")
        if not sums.null_count:
            return []
        rows = zip(ledger.numbers, sums.is_null().to_pylist(), numbers_of(table, "rows_out").tolist(), strict=True)
        return [str(UnitId(ledger.part, number)) for number, is_unknown, count in rows if is_unknown and count]

    def _count_sums(self) -> None:
        table = pa.concat_tables(self._tables).drop_null() if self._tables else None
        self._tables = []
        if table is not None and table.num_rows:
            self._unit_repeats += int(numbers_of(table, "repeats").sum())
            self._unit_repeated_tokens += int(numbers_of(table, "repeated_tokens").sum())
            self._norm_max = max(self._norm_max, float(numbers_of(table, "norm_max").max()))
            self._norm_sums.extend(numbers_of(table, "norm_sum").tolist())

    def _add_images(self, *columns: npt.NDArray[Any]) -> None:
        """Columns in the order of ARRAYS."""
        self._images.append(columns)
        self._num_images += len(columns[0])
        if self._num_images >= IMAGES_AT_ONCE:
            self._count_images()

    def _count_images(self) -> None:
        if not self._num_images:
            return
        hash_N, tokens_N, height_N, width_N, branches_N = (
            np.concatenate(one) for one in zip(*self._images, strict=True)
        )
        self._images, self._num_images = [], 0
        counts = np.bincount(tokens_N)
        if len(counts) > len(self._histogram):
            self._histogram = np.pad(self._histogram, (0, len(counts) - len(self._histogram)))
        self._histogram[: len(counts)] += counts
        by_branch = np.bincount(branches_N, minlength=1 << len(BRANCHES))
        for bit, name in enumerate(BRANCHES):
            self._branches[name] += int(by_branch[np.arange(len(by_branch)) >> bit & 1 == 1].sum())
        self.sizes.add_sizes(height_N.astype(np.int64), width_N.astype(np.int64))
        self._equal.add(hash_N, tokens_N)

    def finish(self) -> None:
        """Counts what has been added last."""
        self._count_sums()
        self._count_images()

    def estimate(self, config: Config) -> Estimate:
        """Returns what an estimate would have said, had it known what was written."""
        images, tokens = self._equal.again()
        within = (self._unit_repeats, self._unit_repeated_tokens) if config.pack.deduplicate else (0, 0)
        return Estimate(
            max_pixels=config.preprocess.max_pixels or 0,  # written out in what an output says of itself
            samples=self.totals.samples,
            units=self.totals.units,
            rejects=self.totals.rejects,
            no_image=self.totals.no_image,
            histogram=self._histogram,
            branches=self._branches,
            duplicates=images,
            duplicate_tokens=tokens,
            unit_duplicates=within[0],
            unit_duplicate_tokens=within[1],
            film=self.film,
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
    written.finish()
    return written


def _read_images(output: AnyPath, unit_ids: list[str]) -> Iterator[UnitStatistics]:
    """The statistics of units whose records have none, from their samples shards. Raises OutputError."""

    def read(unit_id: str) -> UnitStatistics:
        path = samples_path(output, unit_id)
        try:
            columns = [*COLUMNS, *CLIP_COLUMNS]  # the latter are there where clips may be
            return statistics_of(pq.ParquetFile(small_file(path)).read(columns).to_pydict())
        except (OSError, pa.ArrowException, ValueError) as error:
            raise OutputError(f"{path} cannot be read: {error}; `visionbake verify` tells more") from error

    with ThreadPoolExecutor(requests_at_once(output)) as pool:
        yield from pool.map(read, unit_ids)
