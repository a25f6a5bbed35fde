"""Outputs of made-up commits: samples shards with their records, as many as a test wants, and no data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import rejects
from pipeline.config import parse_config
from pipeline.output.layout import SCHEMA_VERSION, samples_path
from pipeline.output.record import CommitRecord
from pipeline.output.shard import SAMPLES_SCHEMA, write_samples_shard

PARTS, UNITS, ROWS = 6, 5, 4
FINGERPRINT = "f" * 64


def make_record(part: int, number: int, **fields: Any) -> CommitRecord:
    """A record with something in every field, different for every unit."""
    seed = part * 1000 + number
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "unit": f"{part:06d}-{number:04d}",
        "rows_in": ROWS,
        "rows_out": ROWS - 1,
        "rejects": {rejects.REASONS[seed % 3]: 1},
        "reject_examples": {rejects.REASONS[seed % 3]: [f"{seed}/3"]},
        "tokens": 3 * (seed + 1),
        "encoded_tokens": 3 * seed + 1,
        "embedding_bytes": 96 * (seed + 1),
        "data_size": 100 + seed,
        "data_sha256": f"{seed:064x}",
        "fingerprint": FINGERPRINT,
        "device": "cpu",
        "halvings": seed % 2,
        "overflows": seed % 5,
        "packs": [seed, 2 * seed],
        "adopted": seed % 7 == 0,
        "seconds": {"encode": round(0.1 + seed / 7, 4), "read": 0.0003},
        "encoder": seed % 4,
        "encoded_at": round(1.7e9 + seed * 0.377, 3),
        "errors": {"fp8_rms": seed / 3},
    }
    return CommitRecord.from_json(record | fields)


def make_columns(part: int, number: int) -> dict[str, list[Any]]:
    """The samples of a unit: three accepted ones, two of them equal and one that is in every unit, and a reject."""
    seed = part * 1000 + number
    columns: dict[str, list[Any]] = {name: [None] * ROWS for name in SAMPLES_SCHEMA.names}
    columns["key"] = [f"{seed}/{row}" for row in range(ROWS)]
    columns["source"] = ["a.tar"] * ROWS
    columns["sha256"] = [f"{seed:064x}"] * 2 + ["a" * 64, "b" * 64]
    columns["sha256"][:2] = [f"{seed + 1:016x}" + "c" * 48] * 2
    columns["status"] = [rejects.OK] * (ROWS - 1) + [rejects.REASONS[seed % 3]]
    columns["num_tokens"] = [seed + 1] * (ROWS - 1) + [None]
    columns["height"], columns["width"] = [10 + seed, 70_000, 30, 40], [50 + seed, 20, 30, 40]
    columns["resized_height"], columns["resized_width"] = [28, 28, 56, 28], [28, 28, 56, 28]
    columns["clamped"] = ["min", "max", "none", "none"]
    columns["norm_mean"], columns["norm_max"] = [1.1, 2.3, 0.7, None], [3.0, 4.0 + seed, 2.0, None]
    return columns


def write_output(output: Path, parts: int = PARTS, units: int = UNITS) -> Path:
    """An output whose units are all committed, nothing folded."""
    (output / "samples").mkdir(parents=True)
    config = parse_config({"source": {"uri": "in"}, "model": {"path": "random:demo"}, "output": {"uri": str(output)}})
    facts = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": FINGERPRINT,
        "fingerprint_facts": {},
        "config": config.model_dump(),
        "hidden_size": 8,
        "merge_size": 2,
        "patch_size": 14,
        "device": "cpu",
    }
    (output / "dataset.json").write_text(json.dumps(facts))
    for part in range(parts):
        for number in range(units):
            path = samples_path(output, f"{part:06d}-{number:04d}")
            write_samples_shard(Path(str(path)), make_columns(part, number), make_record(part, number))
    return output


def hashes(count: int, seed: int) -> np.ndarray:
    """Random ones, as of so many different images."""
    return np.random.default_rng(seed).integers(1, 1 << 63, count, dtype=np.uint64)
