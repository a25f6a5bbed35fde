"""An output of a million committed units, all folded: how long the reader, `status` and `stats` take, and their memory.

The ledger files are real ones, of a hundred units of a hundred images each; the samples shards are names alone, since
nobody may open one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Source, parse_config
from pipeline.output.info import DatasetInfo
from pipeline.output.layout import SCHEMA_VERSION, samples_path
from pipeline.output.ledger import fold_part
from pipeline.output.ledger_file import ledger_facts, table_of, write_table
from pipeline.output.metadata import METADATA_KEY
from pipeline.output.record import CommitRecord
from pipeline.output.statistics import UnitStatistics
from pipeline.output.totals import Totals
from pipeline.source.listing import Listing
from pipeline.source.part import SourceFile, SourcePlace
from pipeline.source.plan import Plan
from pipeline.storage.scratch import Scratch

UNITS_PER_PART, IMAGES_PER_UNIT = 100, 100
FINGERPRINT = "f" * 64
TIMED = """
import json, resource, sys, time
started = time.perf_counter()
from pipeline.process import peak_memory_bytes
{work}
print(json.dumps([time.perf_counter() - started, peak_memory_bytes()]), file=sys.stderr)
"""
READER = """
from pipeline.read.reader import EmbeddingDataset
print(len(EmbeddingDataset({output!r}, allow_incomplete=True)))
"""
COMMAND = """
from pipeline.cli import main
assert main([{command!r}, {output!r}, "--json"]) == 0
"""
NAMES = """
from pipeline.output.ledger import bits_of
bits = bits_of(f"part-{{n // 100:06d}}-{{n % 100:04d}}.parquet" for n in range({units}))
print(sum(one.bit_count() for one in bits.values()))
"""
NOTHING = "import pipeline.output.ledger; print(0)"
ASKED_SECONDS = {"reader": 20, "status": 20, "stats": 60}


def bench_ledger(arguments: argparse.Namespace) -> dict[str, object]:
    """Opens the reader and runs both commands, each in a process of its own, its start included."""
    parts = (arguments.samples or 1_000_000) // UNITS_PER_PART
    results: dict[str, object] = {"units": parts * UNITS_PER_PART, "parts": parts}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        started = time.perf_counter()
        write_output(output, parts)
        results["seconds_to_make_it"] = time.perf_counter() - started
        results["ledger_mb"] = sum(path.stat().st_size for path in (output / "ledger").iterdir()) / 1e6
        for name, work in (
            ("reader", READER.format(output=str(output))),
            ("status", COMMAND.format(command="status", output=str(output))),
            ("stats", COMMAND.format(command="stats", output=str(output))),
        ):
            answer, seconds, peak = _timed(work)
            results[name] = {"seconds": seconds, "asked_seconds": ASKED_SECONDS[name], "peak_mb": peak / 1e6}
            _check(name, answer, parts)
    before = _timed(NOTHING)[2]
    for units in (1_000_000, 9_000_000):
        answer, seconds, peak = _timed(NAMES.format(units=units))
        assert int(answer) == units
        results[f"names_of_{units}"] = {"seconds": seconds, "growth_mb": (peak - before) / 1e6, "asked_mb": 1500}
    return results | {"fold": fold_cost()}


def fold_cost(repeats: int = 20) -> dict[str, float]:
    """CPU milliseconds a unit that folding a part takes, its records at hand or in local footers."""
    generator = np.random.default_rng(6)
    records = {number: _record(number, generator) for number in range(UNITS_PER_PART)}
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, Scratch(folder) as scratch:
        output = Path(folder)
        (output / "samples").mkdir()
        for record in records.values():
            metadata = {METADATA_KEY: json.dumps(record.to_json())}
            shard = pa.table({"key": ["one"]}).replace_schema_metadata(metadata)
            pq.write_table(shard, str(samples_path(output, record.unit)))
        nothing: dict[int, CommitRecord] = {}
        for name, known in (("at_hand", records), ("from_footers", nothing)):
            started = time.process_time()
            for _ in range(repeats):
                fold_part(output, 0, known, records, scratch)
            results[f"{name}_ms"] = (time.process_time() - started) / repeats / UNITS_PER_PART * 1e3
    return results


def _timed(work: str) -> tuple[str, float, int]:
    """A process's answer, its seconds and its peak memory in bytes."""
    started = time.perf_counter()
    command = [sys.executable, "-c", TIMED.format(work=work)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout, time.perf_counter() - started, json.loads(done.stderr.splitlines()[-1])[1]


def _check(name: str, answer: str, parts: int) -> None:
    """Catches a measurement of something else."""
    units = parts * UNITS_PER_PART
    if name == "reader":
        assert int(answer) == units * IMAGES_PER_UNIT
        return
    tree = json.loads(answer)
    assert (tree["units"], tree["rows"]) == (units, units * IMAGES_PER_UNIT)
    if name == "status":
        assert (tree["units_known"], tree["tokens_left"]) == (units, 0)


def write_output(output: Path, parts: int) -> None:
    """Plan, dataset.json, names of indices and samples shards, and ledger files."""
    config = parse_config(
        {"source": {"uri": "/in/*.tar"}, "model": {"path": "random:7b"}, "output": {"uri": str(output)}}
    )
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        fingerprint=FINGERPRINT,
        fingerprint_facts={},
        config=config.model_dump(),
        hidden_size=3584,
        merge_size=2,
        patch_size=14,
        device="cpu",
    )
    for folder in ("samples", "ledger", "plan/index"):
        (output / folder).mkdir(parents=True)
    (output / "dataset.json").write_text(json.dumps(info.to_json()), encoding="utf-8")
    with Scratch(output) as scratch:
        place = SourcePlace(format="webdataset", root="/in", patterns=("/in/*.tar",))
        files = (SourceFile(path=f"{part:06d}.tar", size=1 << 30, mtime_ns=1) for part in range(parts))
        Plan(output).update(Source(uri="/in/*.tar"), Listing(place, files, Counter()), scratch)
    for part in range(parts):
        (output / "plan" / "index" / f"part-{part:06d}.parquet").touch()
        for number in range(UNITS_PER_PART):
            (output / "samples" / f"part-{part:06d}-{number:04d}.parquet").touch()
    for part, table in enumerate(_tables(parts)):
        write_table(output / "ledger" / f"part-{part:06d}.parquet", table)


def _tables(parts: int) -> Iterator[pa.Table]:
    """The ledgers of all parts: one part's, with hashes and unit ids of each part's own."""
    generator = np.random.default_rng(5)
    records = [_record(number, generator) for number in range(UNITS_PER_PART)]
    totals = Totals()
    for record in records:
        totals.add(record)
    template = table_of(0, records)
    starts = pa.py_buffer(np.arange(0, 8 * IMAGES_PER_UNIT * (UNITS_PER_PART + 1), 8 * IMAGES_PER_UNIT))
    for part in range(parts):
        # One image in ten thousand is in every part.
        hash_N = generator.integers(1, 1 << 63, UNITS_PER_PART * IMAGES_PER_UNIT, dtype=np.uint64)
        hash_N[0] = 1
        hashes = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), UNITS_PER_PART, [None, starts, pa.py_buffer(hash_N)]
        )
        text = pc.replace_substring(template.column("text"), '"000000-', f'"{part:06d}-')
        table = template.set_column(0, template.schema.field(0), hashes)
        table = table.set_column(table.schema.get_field_index("text"), template.schema.field("text"), text)
        facts = ledger_facts(part, FINGERPRINT, range(UNITS_PER_PART), totals)
        yield table.replace_schema_metadata(facts)


def _record(number: int, generator: np.random.Generator) -> CommitRecord:
    tokens_N = generator.integers(100, 1300, IMAGES_PER_UNIT).astype(np.int32)
    height_N, width_N = generator.integers(300, 3000, (2, IMAGES_PER_UNIT)).astype(np.int32)
    statistics = UnitStatistics(
        hash_N=generator.integers(1, 1 << 63, IMAGES_PER_UNIT, dtype=np.uint64),
        tokens_N=tokens_N,
        height_N=height_N,
        width_N=width_N,
        branches_N=generator.integers(0, 3, IMAGES_PER_UNIT).astype(np.uint8),
        repeats=0,
        repeated_tokens=0,
        norm_sum=float(generator.random()) * IMAGES_PER_UNIT,
        norm_max=3.0,
    )
    tokens = int(tokens_N.sum())
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "unit": f"000000-{number:04d}",
        "rows_in": IMAGES_PER_UNIT,
        "rows_out": IMAGES_PER_UNIT,
        "rejects": {},
        "reject_examples": {},
        "tokens": tokens,
        "encoded_tokens": tokens,
        "embedding_bytes": tokens * 3584 * 2,
        "data_size": tokens * 3584 * 2 + 10_000,
        "data_sha256": generator.bytes(32).hex(),
        "fingerprint": FINGERPRINT,
        "device": "NVIDIA H200",
        "halvings": 0,
        "overflows": 0,
        "packs": generator.integers(30_000, 32_768, 8).tolist(),
        "adopted": False,
        "seconds": {name: round(float(generator.random()), 4) for name in ("read", "decode", "encode", "write")},
        "encoder": number % 8,
        "encoded_at": round(1.7e9 + float(generator.random()) * 1e5, 3),
    }
    return CommitRecord(**fields, statistics=statistics.to_json())
