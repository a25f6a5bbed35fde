"""Ledger: which units are committed, and what their records say.

The truth is a samples shard a unit. From it, per part, one file of all its units' records is folded when the part is
done. A ledger file that is damaged, of another run, or of other units than there are samples shards, is left out, and
its part's footers are read: nothing depends on it but how many files are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from ..errors import OutputError
from ..fault import fault_point
from ..index.units import UnitId
from ..process import usable_cores
from ..storage.files import REQUESTS_AT_ONCE, AnyPath, lists_by_prefix, map_ahead, names_in, requests_at_once
from ..storage.publish import publish_over
from ..storage.scratch import Scratch
from .info import read_dataset
from .layout import samples_path, unit_id_of
from .ledger_file import WHOLE, FoldedPart, ledger_path, open_ledger, write_ledger
from .record import CommitRecord, read_record
from .totals import Totals

PARTS_PER_LISTING = 1000
FOOTERS_PER_CALL = 4


class CommittedUnits:
    """Which units are committed, by the names of their samples shards. A bit a unit.

    Args:
        parts: how many there are, where that is known: an object store is then listed in parallel.
    """

    def __init__(self, output: AnyPath, parts: int | None = None) -> None:
        self._bits: dict[int, int] = {}
        # An object store lists by prefix: a thousand parts at a time, so that no listing is of all shards.
        split = bool(parts) and lists_by_prefix(output)
        listings = -(-(parts or 0) // PARTS_PER_LISTING)
        prefixes = [f"part-{first:03d}" for first in range(listings)] if split else ["part-"]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for found in pool.map(lambda prefix: bits_of(names_in(output / "samples", prefix)), prefixes):
                for part, bits in found.items():  # a listing of part-100 has part-1000000 as well
                    self._bits[part] = self._bits.get(part, 0) | bits
        self.count = sum(bits.bit_count() for bits in self._bits.values())

    def add(self, part: int, number: int) -> None:
        """Adds one unit."""
        if not self.has(part, number):
            self._bits[part] = self._bits.get(part, 0) | 1 << number
            self.count += 1

    def has(self, part: int, number: int) -> bool:
        """Whether a unit is committed."""
        return bool(self._bits.get(part, 0) >> number & 1)

    def parts(self) -> list[int]:
        """The parts that have a committed unit, ascending."""
        return sorted(self._bits)

    def numbers(self, part: int, without: CommittedUnits | None = None) -> list[int]:
        """The committed units of a part, ascending; only those that an earlier listing had not found."""
        bits = self._bits.get(part, 0) & ~(0 if without is None else without._bits.get(part, 0))
        if bits & (bits + 1) == 0:  # none is missing
            return list(range(bits.bit_length()))
        return [number for number, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]

    def count_of(self, part: int) -> int:
        """How many units of a part are committed."""
        return self._bits.get(part, 0).bit_count()

    def unit_ids(self, without: CommittedUnits | None = None) -> Iterator[str]:
        """In order; only those that an earlier listing had not found."""
        for part in self.parts():
            for number in self.numbers(part, without):
                yield str(UnitId(part, number))


def bits_of(names: Iterable[str]) -> dict[int, int]:
    """The units of samples shards by their names: for each part a bit a unit. Other names are left out."""
    bits: dict[int, int] = {}
    for name in names:
        if not name.endswith(".parquet"):  # a data shard's, say
            continue
        with suppress(ValueError):  # another's file
            part, number = unit_id_of(name)
            bits[part] = bits.get(part, 0) | 1 << number
    return bits


def folded_parts(output: AnyPath) -> set[int]:
    """The parts that have a ledger file, by names alone. Raises OSError."""
    folded: set[int] = set()
    for name in names_in(output / "ledger", "part-"):
        number = name.removeprefix("part-").removesuffix(".parquet")
        if number.isdecimal() and name == ledger_path(output, int(number)).name:
            folded.add(int(number))
    return folded


def fold_part(
    output: AnyPath, part: int, records: Mapping[int, CommitRecord], numbers: Iterable[int], scratch: Scratch
) -> None:
    """Writes a done part's ledger file, over one that is there.

    Args:
        records: those at hand, by their unit's number. One without statistics is read again, for them.
        numbers: of all units of the part; each is committed.

    Raises:
        OutputError: a footer cannot be read, or the ledger cannot be written. Nothing is lost by that.
    """
    wanted = sorted(set(numbers))
    if not wanted:
        return
    missing = [number for number in wanted if number not in records or not records[number].statistics]
    with ThreadPoolExecutor(requests_at_once(output)) as pool:
        read = pool.map(lambda number: read_record(samples_path(output, str(UnitId(part, number)))), missing)
        whole = dict(records) | dict(zip(missing, read, strict=True))
    final = ledger_path(output, part)
    path = scratch.path(final.name)
    write_ledger(path, part, [whole[number] for number in wanted])
    fault_point("before_ledger_publish")
    publish_over(path, final)


def read_ledger(output: AnyPath, part: int) -> list[CommitRecord]:
    """The records of a part's ledger file. Raises OutputError: there is none, or it cannot be used."""
    return open_ledger(output, part, WHOLE).records()


def read_committed(
    output: AnyPath,
    committed: CommittedUnits,
    folded: Set[int],
    columns: Sequence[str] = (),
    *,
    without: CommittedUnits | None = None,
    unusable: set[int] | None = None,
) -> Iterator[FoldedPart | list[CommitRecord]]:
    """Reads committed units, part by part: by their ledger where it can be used, else by their footers, some at a time.

    Args:
        folded: the parts that have a ledger file.
        columns: of the ledger; see `ledger_file.SCHEMA`.
        without: units that are known; the ledger of a part serves only where none of it is.
        unusable: receives the parts whose ledger could not be used: to be folded again.

    Raises:
        OutputError: a footer cannot be read.
    """
    fingerprint = read_dataset(output).fingerprint if folded else ""

    def footers(part: int, numbers: list[int]) -> list[FoldedPart | list[CommitRecord]]:
        return [[read_record(samples_path(output, str(UnitId(part, number)))) for number in numbers]]

    def ledger_or_footers(part: int) -> list[FoldedPart | list[CommitRecord]]:
        with suppress(OutputError):
            ledger = open_ledger(output, part, columns)
            if ledger.fingerprint == fingerprint and ledger.numbers == committed.numbers(part):
                return [ledger]
        if unusable is not None:
            unusable.add(part)
        return footers(part, committed.numbers(part))

    def calls() -> Iterator[Callable[[], list[FoldedPart | list[CommitRecord]]]]:
        for part in committed.parts():
            numbers = committed.numbers(part, without)
            if part in folded and len(numbers) == committed.count_of(part):
                yield partial(ledger_or_footers, part)
                continue
            for first in range(0, len(numbers), FOOTERS_PER_CALL):
                yield partial(footers, part, numbers[first : first + FOOTERS_PER_CALL])

    at_once = max(requests_at_once(output), usable_cores())
    with ThreadPoolExecutor(at_once) as pool:
        for results in map_ahead(pool, lambda call: call(), calls(), 2 * at_once):
            yield from results


def records_of(output: AnyPath, committed: CommittedUnits, folded: Set[int]) -> Iterator[CommitRecord]:
    """The records of committed units, in order. Raises OutputError: a footer cannot be read."""
    for one in read_committed(output, committed, folded, WHOLE):
        if isinstance(one, list):
            yield from one
            continue
        try:
            yield from one.records()
        except OutputError:  # whole, and not such as this version writes
            yield from (read_record(samples_path(output, str(UnitId(one.part, number)))) for number in one.numbers)


def totals_of(
    output: AnyPath, committed: CommittedUnits, folded: Set[int], *, unusable: set[int] | None = None
) -> Totals:
    """Sums the records of committed units; of a folded part its ledger has the sums. Raises as `read_committed`."""
    totals = Totals()
    for one in read_committed(output, committed, folded, unusable=unusable):
        if isinstance(one, list):
            for record in one:
                totals.add(record)
        else:
            totals.merge(one.totals)
    return totals
