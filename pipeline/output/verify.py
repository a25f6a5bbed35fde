"""Verify: prove from an output's files alone that nothing is lost and nothing is damaged.

For every part of the plan, its index is cut into units again. For every unit: its samples shard has just the index's
keys, in order; what its record says of rows, rejects and tokens is so; the data shard has the recorded size and sha256,
just the accepted keys, every embedding at its place, of its length, finite, and with the norms that were recorded. No
other file lies in `data/` or `samples/`, and `_SUCCESS` has the sum of it all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from .. import rejects
from ..encode.dtypes import STORED, is_scaled, norms_of, restore, scale_bytes, scale_of
from ..errors import OutputError
from ..index.read import read_index_arrays
from ..index.units import Unit, UnitId, cut_units
from ..source.plan import Plan
from ..storage.files import AnyPath, names_in, small_file
from ..storage.scratch import local_copy
from .fingerprint import fingerprint_of
from .info import read_dataset
from .layout import data_path, samples_path
from .ledger import CommittedUnits, folded_parts
from .ledger_file import WHOLE, ledger_path, open_ledger
from .record import CommitRecord, read_record
from .report import PartsChecked, Report
from .shard_formats import shard_format
from .totals import Totals

BLOCK_BYTES = 1 << 22
NORM_TOLERANCE = 1e-3
# What looking at a damaged shard may raise: its rows can say anything.
DAMAGE = (
    *(OSError, OutputError, pa.ArrowException, RuntimeError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)


class Verifier:
    """Reads an output. Raises RequestError if it is none."""

    def __init__(self, output: AnyPath) -> None:
        self.output = output
        self.dataset = read_dataset(output)
        config = self.dataset.config
        self.dtype: str = config["output"]["dtype"]
        self.format: str = config["output"]["format"]
        self._shards = shard_format(self.format)
        self.hidden_size: int = self.dataset.hidden_size
        self.geometry = self.dataset.geometry
        self.shard_tokens: int = config["output"]["shard_tokens"]
        self.plan = Plan(output)

    def verify(
        self,
        report_part: Callable[[int, int], None] = lambda done, parts: None,
        *,
        parts: range | None = None,
        check: Callable[[range], Iterator[PartsChecked]] | None = None,
    ) -> Report:
        """Checks all parts, or a range of them.

        Args:
            report_part: called with how many parts are checked, and of how many.
            parts: those to check; only of all are the totals and _SUCCESS. None: all.
            check: checks the parts of a range and yields the findings, in order; None: `check_parts` in this process.
        """
        chosen = range(self.plan.num_parts) if parts is None else parts
        checked = PartsChecked()
        if fingerprint_of(self.dataset.fingerprint_facts) != self.dataset.fingerprint:
            checked.report.problems.append("dataset.json: its fingerprint is not that of its facts")
        done = 0
        for one in (check or self.check_parts)(chosen):
            checked.merge(one)
            report_part(done := done + 1, len(chosen))
        report, totals = checked.report, checked.totals
        report.units, report.samples = totals.units, totals.samples
        report.rows, report.no_image, report.tokens = totals.rows, totals.no_image, totals.tokens
        self._strangers(checked.expected, chosen, report)
        if chosen == range(self.plan.num_parts):
            self._success(totals, report)
        return report

    def check_parts(self, parts: range) -> Iterator[PartsChecked]:
        """Checks parts, one after the other."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for part in parts:
                yield self._part(part, pool)

    def _part(self, part: int, pool: ThreadPoolExecutor) -> PartsChecked:
        checked = PartsChecked()
        report = checked.report
        try:
            units = self._units(part, report)
        except DAMAGE as error:
            report.problems.append(f"plan/index of part {part}: cannot be read: {error}")
            return checked
        if units is None:
            report.missing.append(f"part {part} is not indexed")
            return checked
        checked.expected[part] = len(units)
        records: list[CommitRecord] = []
        for unit, (problems, record, size) in zip(units, pool.map(self._unit, units), strict=True):
            report.problems += [f"unit {unit.id}: {problem}" for problem in problems]
            report.bytes_checked += size
            if record is not None:
                checked.totals.add(record)
                records.append(record)
            elif not problems:
                report.missing.append(f"unit {unit.id} is not committed")
        # Of a part that is not whole a ledger is out of date: nobody reads it, and it will be replaced.
        if len(records) == len(units) and ledger_path(self.output, part).exists():
            report.problems += self._check_ledger(part, records)
        return checked

    def _check_ledger(self, part: int, records: list[CommitRecord]) -> Iterator[str]:
        """Whether a part's ledger says what the footers do. It can always be made anew, from them."""
        name = f"ledger/{ledger_path(self.output, part).name}"
        try:
            ledger = open_ledger(self.output, part, WHOLE)
            folded = ledger.records()
        except OutputError as error:
            yield f"{error}; remove {name}: it is made anew"
            return
        totals = Totals()
        for record in records:
            totals.add(record)
        same = [record.to_json() for record in folded] == [record.to_json() for record in records]
        if ledger.fingerprint != self.dataset.fingerprint or ledger.totals != totals or not same:
            yield f"{name} does not say what the footers of its units do; remove it: it is made anew"

    def _units(self, part: int, report: Report) -> list[Unit] | None:
        path = self.plan.index_path(part)
        if not path.exists():
            return None
        index = read_index_arrays(path)
        if index.damaged:
            report.skipped.append(index.damaged)
        return cut_units(part, index, self.geometry, self.shard_tokens)

    def _unit(self, unit: Unit) -> tuple[list[str], CommitRecord | None, int]:
        """A unit's problems, its record if it is committed and readable, and the bytes that were read."""
        samples = samples_path(self.output, unit.id)
        data = data_path(self.output, unit.id, self.format)
        if not samples.exists():
            return [], None, 0
        problems: list[str] = []
        try:
            record = read_record(samples)
            table = pq.read_table(small_file(samples))
            problems += self._check_samples(unit, record, table)
            accepted = table.filter(pc.equal(table.column("status"), rejects.OK))
            if data.exists():
                with local_copy(data) as copy:
                    problems += self._check_data(copy, unit, record, accepted)
            else:
                problems.append(f"{data.name} is missing")
        except DAMAGE as error:
            return [*problems, str(error).partition("\n")[0] or type(error).__name__], None, 0
        return problems, record, record.data_size

    def _check_samples(self, unit: Unit, record: CommitRecord, table: pa.Table) -> Iterator[str]:
        if record.unit != unit.id or record.fingerprint != self.dataset.fingerprint:
            yield "its record is of another unit or another run (fingerprint)"
        columns = ["key", "source", "sha256", "status"]
        index = pq.read_table(small_file(self.plan.index_path(unit.part)), columns=columns)
        index = index.slice(unit.first, unit.count)
        for name in ("key", "source", "sha256"):
            if table.column(name).to_pylist() != index.column(name).to_pylist():
                yield f"its samples' {name} are not those of the source's index"
        before, after = (one.column("status").to_pylist() for one in (index, table))
        for row, (was, now) in enumerate(zip(before, after, strict=False)):
            if now not in rejects.STATUSES or (was != rejects.OK and now != was):
                yield f"sample {row}: status {now}, where the index says {was}"
        counts = Counter(status for status in table.column("status").to_pylist() if status != rejects.OK)
        no_image = counts.pop(rejects.NO_IMAGE, 0)
        if dict(counts) != record.rejects or no_image != record.no_image:
            stated = f"{record.rejects} and {record.no_image}"
            yield f"its rejects are {dict(counts)} and {no_image} samples have no image, its record says {stated}"
        left = table.num_rows - sum(counts.values()) - no_image
        if record.rows_in != table.num_rows or record.rows_out != left:
            stated = f"{record.rows_in} in, {record.rows_out} out"
            yield f"{table.num_rows} samples give {left} rows; its record says {stated}"

    def _check_data(self, path: Path, unit: Unit, record: CommitRecord, accepted: pa.Table) -> Iterator[str]:
        size = path.stat().st_size
        if size != record.data_size:
            yield f"{path.name} has {size} bytes, its record says {record.data_size}"
            return
        if _sha256(path) != record.data_sha256:
            yield f"{path.name}: its sha256 is not the recorded one"
        lengths = accepted.column("length").to_numpy()
        keys = accepted.column("key").to_pylist()
        content = self._shards.read(path, lengths)
        if content.metadata["unit"] != unit.id or content.metadata["fingerprint"] != self.dataset.fingerprint:
            yield f"{path.name} is of another unit or another run"
        if content.keys != keys:
            yield f"the keys of {path.name} are not those of the accepted samples"
        if content.offsets_N.tolist() != accepted.column("offset").to_pylist():
            yield f"embeddings of {path.name} are not at the recorded offsets"
            return
        tokens = sum(accepted.column("num_tokens").to_pylist())
        if int(lengths.sum()) != record.embedding_bytes or tokens != record.tokens:
            yield "its tokens or bytes are not those of its record"
        yield from self._check_values(path, accepted, content.scales)

    def _check_values(self, path: Path, accepted: pa.Table, scales: list[bytes | None]) -> Iterator[str]:
        itemsize, streams = STORED[self.dtype].itemsize, self.dataset.streams
        with open(path, "rb") as stream:
            for row, scale in zip(accepted.to_pylist(), scales, strict=True):
                t, h, w = row["grid_thw"]
                tokens = t * h * w // self.geometry.merge_size**2
                if row["num_tokens"] != tokens or row["length"] != tokens * self.hidden_size * itemsize:
                    yield f"{row['key']}: {row['length']} bytes are not {tokens} tokens of its grid"
                    continue
                stream.seek(row["offset"])
                data = bytearray(stream.read(row["length"]))
                values = torch.frombuffer(data, dtype=STORED[self.dtype]).view(tokens, -1)
                if is_scaled(self.dtype):
                    size = scale_bytes(tokens, streams)
                    raw = scale if scale is not None else stream.read(size)
                    if len(raw) != size:
                        yield f"{row['key']}: {len(raw)} bytes of scales, where {size} belong"
                        continue
                    values = restore(values, scale_of(raw, streams))
                norms_MS = norms_of(values, streams)
                norm = float(norms_MS[:, 0].max())
                if not bool(torch.isfinite(norms_MS).all()):
                    yield f"{row['key']}: its tokens are not finite"
                elif not np.isclose(norm, row["norm_max"], rtol=NORM_TOLERANCE):
                    yield f"{row['key']}: a largest norm of {norm:.4g}, {row['norm_max']:.4g} was recorded"

    def _strangers(self, expected: dict[int, int], parts: range, report: Report) -> None:
        """Files that no unit accounts for. A complete data shard without a record is what a crash may leave."""
        everything = parts == range(self.plan.num_parts)
        committed = CommittedUnits(self.output, self.plan.num_parts)
        for folder, ending in (("data", self._shards.suffix), ("samples", "parquet")):
            for name in sorted(self._unaccounted(folder, ending, expected, committed)):
                unit = _unit_of(name, ending)
                if not everything and (unit is None or unit.part not in parts):
                    continue
                if unit is None or unit.number >= expected.get(unit.part, 0):
                    report.problems.append(f"{folder}/{name} belongs to no unit of the plan")
                    continue
                if folder == "samples":  # committed a moment ago
                    continue
                try:
                    with local_copy(self.output / folder / name) as path:
                        self._shards.read(path)
                    report.uncommitted.append(f"data/{name}")
                except OutputError as error:
                    report.problems.append(str(error))
        for part in sorted(folded_parts(self.output) - expected.keys()):
            if part in parts or (everything and part >= self.plan.num_parts):
                report.problems.append(f"ledger/{ledger_path(self.output, part).name} belongs to no part of the plan")

    def _unaccounted(
        self, folder: str, ending: str, expected: dict[int, int], committed: CommittedUnits
    ) -> Iterator[str]:
        """The names in a folder that are no committed unit's: few, where names are millions."""
        for name in names_in(self.output / folder):
            unit = _unit_of(name, ending)
            if unit is None or unit.number >= expected.get(unit.part, 0) or not committed.has(*unit):
                yield name

    def _success(self, totals: Totals, report: Report) -> None:
        path = self.output / "_SUCCESS"
        if not path.exists():
            report.missing.append("_SUCCESS: the run is not complete")
            return
        if report.missing:
            report.problems += [f"_SUCCESS is there, but {what}" for what in report.missing]
        try:
            stated = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            report.problems.append(f"_SUCCESS: {error}")
            return
        for name, value in totals.as_dict().items():
            if stated.get(name, 0) != value:  # an output of an earlier version does not speak of no_image
                report.problems.append(f"_SUCCESS says {name} {stated.get(name)}, the records sum to {value}")


def _unit_of(name: str, ending: str) -> UnitId | None:
    """The unit of a shard by its name, None of a name that no unit's shard has."""
    try:
        unit = UnitId.parse(name.removeprefix("part-").removesuffix(f".{ending}"))
    except ValueError:
        return None
    return unit if name == f"part-{unit}.{ending}" else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
