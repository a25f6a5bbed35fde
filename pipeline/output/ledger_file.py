"""Ledger file: the commit records of one done part in one file, `ledger/part-000003.parquet`.

A row a unit, in the order of their numbers. The footer says of which part and run it is, which units are in it, and
their totals. Columns stand in the order of how seldom they are read, so that the end of the file is enough for most.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import OutputError, writing
from ..index.units import UnitId
from ..storage.files import AnyPath, open_tail
from ..storage.publish import sync_file
from .clip_statistics import CLIP_ARRAYS, ClipStatistics
from .metadata import METADATA_KEY
from .record import CommitRecord
from .statistics import UnitStatistics
from .totals import Totals

LEDGER_VERSION = 1
CHECKSUM_KEY = b"visionbake.crc32"  # of what stands in the footer; pages have their own
NUMBERS = (
    "rows_in",
    "encoded_tokens",
    "embedding_bytes",
    "data_size",
    "halvings",
    "overflows",
    "tokens",
    "encoder",
    "rows_out",
)
ARRAYS = {"hashes": "<u8", "image_tokens": "<i4", "heights": "<i4", "widths": "<i4", "branches": "u1"}
SUMS = ("repeats", "repeated_tokens", "norm_sum", "norm_max")
STATISTICS = (*ARRAYS, *SUMS, *CLIP_ARRAYS)
RECORD = ("number", "text", "encoded_at", *NUMBERS)  # what a record is made of, but for its statistics
WHOLE = (*RECORD, *STATISTICS)
PACE = ("encoded_at", "encode_seconds", "rows_out", "tokens", "encoder")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.large_binary()) for name in ARRAYS),
        pa.field("text", pa.string(), nullable=False),  # the rest of the record, as JSON
        pa.field("repeats", pa.int64()),
        pa.field("repeated_tokens", pa.int64()),
        pa.field("norm_sum", pa.float64()),
        pa.field("norm_max", pa.float64()),
        *(pa.field(name, pa.int64(), nullable=False) for name in NUMBERS[:-3]),
        pa.field("encode_seconds", pa.float64()),
        pa.field("encoded_at", pa.float64(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in NUMBERS[-3:]),
        pa.field("number", pa.int32(), nullable=False),
    ]
)
# Where there may be clips, these stand before the others.
SCHEMA_WITH_CLIPS = pa.schema([*(pa.field(name, pa.large_binary()) for name in CLIP_ARRAYS), *SCHEMA])


@dataclass(frozen=True, kw_only=True)
class FoldedPart:
    """One part's ledger file: U units.

    Attributes:
        numbers: of its units, ascending.
        table: the columns that were asked for, U rows; see SCHEMA.
    """

    part: int
    fingerprint: str
    numbers: list[int]
    totals: Totals
    table: pa.Table

    def records(self) -> list[CommitRecord]:
        """The records, as the footers have them. Raises OutputError: they cannot be made from what stands there."""
        try:
            return [_record(self.part, row) for row in self.table.to_pylist()]
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"the ledger of part {self.part}: {error}") from error


def numbers_of(table: pa.Table, name: str) -> np.ndarray:
    """A numeric column of ledgers, a value a unit; null is NaN. Not by `to_numpy`, which imports pandas."""
    column = table.column(name)
    if column.null_count:
        column = pc.fill_null(column.cast(pa.float64()), math.nan)
    return np.concatenate([np.empty(0, column.type.to_pandas_dtype()), *map(np.from_dlpack, column.chunks)])


def values_of(table: pa.Table, name: str) -> np.ndarray:
    """One of ARRAYS or CLIP_ARRAYS, of all units one after the other; of a unit without statistics nothing."""
    kind = (ARRAYS | CLIP_ARRAYS)[name]
    if name not in table.schema.names:
        return np.empty(0, kind)
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of a table without rows
        return np.empty(0, kind)
    starts = np.frombuffer(column.buffers()[1], np.int64)[column.offset :]
    data = column.buffers()[2]
    values = b"" if data is None else memoryview(data)[int(starts[0]) : int(starts[len(column)])]
    return np.frombuffer(values, kind)


def ledger_path(output: AnyPath, part: int) -> AnyPath:
    """Where a part's ledger file lies."""
    return output / "ledger" / f"part-{part:06d}.parquet"


def write_ledger(path: Path, part: int, records: Sequence[CommitRecord]) -> None:
    """Writes the ledger of a part at a scratch path. `records`: of all its units, in the order of their numbers.

    Raises:
        OutputError: it cannot be written, or the records are not of one part and one run.
    """
    totals = Totals()
    for record in records:
        totals.add(record)
    fingerprints = {record.fingerprint for record in records}
    if len(fingerprints) != 1:
        raise OutputError(f"the records of part {part} are of {len(fingerprints)} runs: no ledger is made of them")
    table = table_of(part, records)
    facts = ledger_facts(part, fingerprints.pop(), table.column("number").to_pylist(), totals)
    write_table(path, table.replace_schema_metadata(facts))
    sync_file(path)


def table_of(part: int, records: Sequence[CommitRecord]) -> pa.Table:
    """Returns records as rows of SCHEMA. Raises OutputError: they are not of this part."""
    try:
        rows = [_row(part, record) for record in records]
        return pa.Table.from_pylist(rows, SCHEMA_WITH_CLIPS if any("clip_tokens" in row for row in rows) else SCHEMA)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise OutputError(f"the records of part {part} fit into no ledger: {error}") from error


def ledger_facts(part: int, fingerprint: str, numbers: Sequence[int], totals: Totals) -> dict[bytes, bytes]:
    """The metadata of a ledger's footer, with their checksum."""
    facts = {
        "version": LEDGER_VERSION,
        "part": part,
        "fingerprint": fingerprint,
        "numbers": ranges_of(numbers),
        "totals": totals.to_json(),
    }
    text = json.dumps(facts).encode()
    return {METADATA_KEY: text, CHECKSUM_KEY: str(zlib.crc32(text)).encode()}


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a ledger at a scratch path. Raises OutputError."""
    with writing(path):
        pq.write_table(
            table,
            path,
            compression={name: "NONE" if name == "hashes" else "ZSTD" for name in table.schema.names},
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def open_ledger(output: AnyPath, part: int, columns: Sequence[str]) -> FoldedPart:
    """Reads a part's ledger; in object storage one request, as a rule.

    Raises:
        OutputError: there is none, or it cannot be used: damaged, of another version, or of another part.
    """
    path = ledger_path(output, part)
    try:
        with open_tail(path, whole=any(name in ARRAYS for name in columns)) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            metadata = file.metadata.metadata or {}
            facts: dict[str, Any] = json.loads(metadata[METADATA_KEY])
            if zlib.crc32(metadata[METADATA_KEY]) != int(metadata[CHECKSUM_KEY]):
                raise ValueError("its checksum differs")
            if facts["version"] != LEDGER_VERSION or facts["part"] != part:
                raise ValueError(f"version {facts['version']}, of part {facts['part']}")
            table = file.read(list(columns), use_threads=False)
        ledger = FoldedPart(
            part=part,
            fingerprint=str(facts["fingerprint"]),
            numbers=[number for first, last in facts["numbers"] for number in range(first, last + 1)],
            totals=Totals.from_json(facts["totals"]),
            table=table,
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{path}: not a ledger that can be used: {error}") from error
    if file.metadata.num_rows != len(ledger.numbers):
        raise OutputError(f"{path}: not a ledger that can be used: it has {file.metadata.num_rows} rows")
    return ledger


def ranges_of(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as ranges, both ends included."""
    result: list[list[int]] = []
    for number in numbers:
        if result and result[-1][1] == number - 1:
            result[-1][1] = number
        else:
            result.append([number, number])
    return result


def _row(part: int, record: CommitRecord) -> dict[str, Any]:
    """Raises KeyError, TypeError, ValueError: the record is of another part, or says what a record never does."""
    unit = UnitId.parse(record.unit)
    if unit.part != part:
        raise ValueError(f"a record of unit {record.unit}")
    tree = record.to_json()
    row: dict[str, Any] = {name: tree.pop(name) for name in ("encoded_at", *NUMBERS)}
    row |= {"number": unit.number, "encode_seconds": record.seconds.get("encode")}
    statistics = UnitStatistics.of_record(record)
    if statistics is not None and statistics.to_json() == record.statistics:  # else it stays in the text, as it is
        del tree["statistics"]
        row |= {
            "hashes": statistics.hash_N.tobytes(),
            "image_tokens": statistics.tokens_N.tobytes(),
            "heights": statistics.height_N.tobytes(),
            "widths": statistics.width_N.tobytes(),
            "branches": statistics.branches_N.tobytes(),
            **{name: getattr(statistics, name) for name in SUMS},
        }
        if statistics.clips is not None:
            row |= {name: array.tobytes() for name, array in zip(CLIP_ARRAYS, statistics.clips.arrays(), strict=True)}
    return row | {"text": json.dumps(tree)}


def _record(part: int, row: dict[str, Any]) -> CommitRecord:
    """The inverse of `_row`. Raises KeyError, TypeError, ValueError."""
    tree = json.loads(row["text"]) | {name: row[name] for name in ("encoded_at", *NUMBERS)}
    if tree["unit"] != str(UnitId(part, row["number"])):
        raise ValueError(f"a record of unit {tree['unit']} in its place of unit {row['number']}")
    if row.get("hashes") is not None:
        clips = None
        if row.get("clip_tokens") is not None:
            clips = ClipStatistics.of_arrays([np.frombuffer(row[name], kind) for name, kind in CLIP_ARRAYS.items()])
        statistics = UnitStatistics(
            hash_N=np.frombuffer(row["hashes"], "<u8"),
            tokens_N=np.frombuffer(row["image_tokens"], "<i4"),
            height_N=np.frombuffer(row["heights"], "<i4"),
            width_N=np.frombuffer(row["widths"], "<i4"),
            branches_N=np.frombuffer(row["branches"], np.uint8),
            clips=clips,
            **{name: row[name] for name in SUMS},
        )
        tree["statistics"] = statistics.to_json()
    return CommitRecord.from_json(tree)
