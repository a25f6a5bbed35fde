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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from .. import rejects
from ..encode.dtypes import STORED, is_scaled, restore
from ..errors import OutputError
from ..index.read import read_index_arrays
from ..index.units import Unit, cut_units
from ..source.plan import Plan
from ..storage.files import AnyPath, names_in, small_file
from ..storage.scratch import local_copy
from .fingerprint import fingerprint_of
from .info import read_dataset
from .layout import data_path, samples_path
from .record import CommitRecord, read_record
from .shard_formats import shard_format
from .totals import Totals

BLOCK_BYTES = 1 << 22
NORM_TOLERANCE = 1e-3
# What looking at a damaged shard may raise: its rows can say anything.
DAMAGE = (
    *(OSError, OutputError, pa.ArrowException, RuntimeError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)


@dataclass(kw_only=True)
class Report:
    """The findings: what was checked, and what is wrong. `missing` is what a run that goes on would still do."""

    units: int = 0
    samples: int = 0
    rows: int = 0
    tokens: int = 0
    bytes_checked: int = 0
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # parts, by source.on_damaged: skip

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"proven": self.proven}

    @property
    def proven(self) -> bool:
        return not self.problems and not self.missing


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

    def verify(self, report_part: Callable[[int, int], None] = lambda done, parts: None) -> Report:
        report, totals = Report(), Totals()
        if fingerprint_of(self.dataset.fingerprint_facts) != self.dataset.fingerprint:
            report.problems.append("dataset.json: its fingerprint is not that of its facts")
        expected: set[str] = set()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for part in range(self.plan.num_parts):
                try:
                    units = self._units(part, report)
                except DAMAGE as error:
                    report.problems.append(f"plan/index of part {part}: cannot be read: {error}")
                    continue
                if units is None:
                    report.missing.append(f"part {part} is not indexed")
                    continue
                expected.update(unit.id for unit in units)
                for unit, (problems, record, size) in zip(units, pool.map(self._unit, units), strict=True):
                    report.problems += [f"unit {unit.id}: {problem}" for problem in problems]
                    report.bytes_checked += size
                    if record is not None:
                        totals.add(record)
                    elif not problems:
                        report.missing.append(f"unit {unit.id} is not committed")
                report_part(part + 1, self.plan.num_parts)
        report.units, report.samples = totals.units, totals.samples
        report.rows, report.tokens = totals.rows, totals.tokens
        self._strangers(expected, report)
        self._success(totals, report)
        return report

    def _units(self, part: int, report: Report) -> list[Unit] | None:
        path = self.plan.index_path(part)
        if not path.exists():
            return None
        index = read_index_arrays(path)
        if index.damaged:
            report.skipped.append(index.damaged)
            return []
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
            if now not in (rejects.OK, *rejects.REASONS) or (was != rejects.OK and now != was):
                yield f"sample {row}: status {now}, where the index says {was}"
        counts = Counter(status for status in table.column("status").to_pylist() if status != rejects.OK)
        if dict(counts) != record.rejects:
            yield f"its rejects are {dict(counts)}, its record says {record.rejects}"
        if record.rows_in != table.num_rows or record.rows_out != table.num_rows - sum(counts.values()):
            stated = f"{record.rows_in} in, {record.rows_out} out"
            yield f"{table.num_rows} samples with {sum(counts.values())} rejects; its record says {stated}"

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
        itemsize = STORED[self.dtype].itemsize
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
                    raw = scale if scale is not None else stream.read(4 * tokens)
                    values = restore(values, torch.frombuffer(bytearray(raw), dtype=torch.float32))
                norms = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32)
                if not bool(torch.isfinite(norms).all()):
                    yield f"{row['key']}: its tokens are not finite"
                elif not np.isclose(float(norms.max()), row["norm_max"], rtol=NORM_TOLERANCE):
                    norm = float(norms.max())
                    yield f"{row['key']}: a largest norm of {norm:.4g}, {row['norm_max']:.4g} was recorded"

    def _strangers(self, expected: set[str], report: Report) -> None:
        """Files that no unit accounts for. A complete data shard without a record is what a crash may leave."""
        committed = set(names_in(self.output / "samples"))
        for folder, ending in (("data", self._shards.suffix), ("samples", "parquet")):
            for name in sorted(names_in(self.output / folder)):
                unit = name.removeprefix("part-").removesuffix(f".{ending}")
                if name != f"part-{unit}.{ending}" or unit not in expected:
                    report.problems.append(f"{folder}/{name} belongs to no unit of the plan")
                elif folder == "data" and f"part-{unit}.parquet" not in committed:
                    try:
                        with local_copy(self.output / folder / name) as path:
                            self._shards.read(path)
                        report.uncommitted.append(f"data/{name}")
                    except OutputError as error:
                        report.problems.append(str(error))

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
            if stated.get(name) != value:
                report.problems.append(f"_SUCCESS says {name} {stated.get(name)}, the records sum to {value}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
