"""How long a resume takes to its first unit: 100 000 parts, nine tenths of them done, 30 ms a request made up.

What is real: the names of a million samples shards, what a resume finds, cutting in threads, the driver. What is
made up: an engine that does nothing, and the time that storage takes; local files stand for objects.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jobs.bench.driver import NullEngine
from jobs.bench.mixes import GEOMETRY
from pipeline.index import read as index_read
from pipeline.index.read import read_index_arrays
from pipeline.index.units import Unit, UnitId, cut_units
from pipeline.index.write import INDEX_SCHEMA, INDEX_VERSION
from pipeline.output import ledger as ledger_module
from pipeline.output.done import COUNTS
from pipeline.process import peak_memory_bytes
from pipeline.run.calls import Call
from pipeline.run.driver import Driver
from pipeline.run.events import Stage
from pipeline.run.resume import Resume
from pipeline.run.work import DriverLimits, Work
from pipeline.storage.files import names_in, small_file

PARTS = 100_000
UNITS = 11  # of a part
DONE = 0.9
REQUEST_SECONDS = 0.03
NAMES_PER_REQUEST = 1000
THREADS = 16


class Watched(NullEngine):
    """Remembers when the first unit was under way."""

    def __init__(self) -> None:
        super().__init__()
        self.first: float | None = None

    def submit(self, call: Call) -> None:
        if self.first is None and call.stage is Stage.PREPARE:
            self.first = time.monotonic()
        super().submit(call)


def bench_resume(arguments: argparse.Namespace) -> dict[str, object]:
    """Measures one resume; the output is made up in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        _write(output)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the making's; start anew
        before = peak_memory_bytes()
        slow_names, slow_index = (
            patch.object(ledger_module, "names_in", _names),
            patch.object(index_read, "small_file", _file),
        )
        with slow_names, slow_index:
            began = time.monotonic()
            found = Resume(output, PARTS)
            stood = time.monotonic()
            units = found.committed.count

            def units_of(part: int) -> list[Unit]:
                return cut_units(part, read_index_arrays(output / f"part-{part:06d}.parquet"), GEOMETRY, 1)

            to_cut = [part for part in range(PARTS) if part not in found.done]
            work = Work(parts=PARTS, to_index=[], to_cut=to_cut, units_of=units_of, committed=found.committed.has)
            engine = Watched()
            progress = Driver(engine, work, DriverLimits(attempts=1, cutting_threads=THREADS)).run()
            ended = time.monotonic()
        assert engine.first is not None
        return {
            "parts": PARTS,
            "units_committed_before": units,
            "parts_cut": len(to_cut),
            "seconds_to_look": round(stood - began, 2),
            "seconds_to_first_unit": round(engine.first - began, 2),
            "asked_seconds": 180,
            "units_of_this_run": progress.totals.units,
            "seconds_to_end": round(ended - began, 2),
            "driver_growth_mb": round((peak_memory_bytes() - before) / 1e6),
            "asked_mb": 1500,
        }


def _names(folder: Any, prefix: str = "") -> Iterator[str]:
    """Names as an object store gives them: a page takes its time."""
    for number, name in enumerate(names_in(folder, prefix)):
        if not number % NAMES_PER_REQUEST:
            time.sleep(REQUEST_SECONDS)
        yield name


def _file(path: Any) -> Any:
    time.sleep(REQUEST_SECONDS)
    return small_file(path)


def _write(output: Path) -> None:
    """An output of PARTS parts: indices as links to one, names of samples shards, ledgers by name, and their counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = int(PARTS * DONE)
    for name in ("samples", "ledger"):
        (output / name).mkdir()
    facts = {"visionbake.index": json.dumps({"version": str(INDEX_VERSION), "damaged": ""})}
    rows = [
        {"key": str(n), "source": "a", "offset": 100 * n, "length": 100, "width": 56, "height": 56, "group": -1}
        | {"status": "ok"}
        for n in range(UNITS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA.with_metadata(facts)), output / "index")
    _link(output / "index", (output / f"part-{part:06d}.parquet" for part in range(done, PARTS)))
    (output / "empty").touch()
    whole = ((part, UNITS) for part in range(done))
    begun = ((part, part % UNITS) for part in range(done, PARTS))
    shards = (
        output / "samples" / f"part-{UnitId(part, number)}.parquet"
        for parts in (whole, begun)
        for part, count in parts
        for number in range(count)
    )
    _link(output / "empty", shards)
    _link(output / "empty", (output / "ledger" / f"part-{part:06d}.parquet" for part in range(done)))
    info: dict[str, Any] = {
        "schema_version": 1,
        "fingerprint": "made up",
        "fingerprint_facts": {},
        "config": {
            "output": {"dtype": "bfloat16", "format": "parquet", "shard_tokens": 1},
            "preprocess": {"min_pixels": 1, "max_pixels": 1},
            "limits": {"max_image_pixels": 1},
        },
        "hidden_size": 1,
        "merge_size": 2,
        "patch_size": 14,
        "device": "made up",
    }
    (output / "dataset.json").write_text(json.dumps(info))
    counts = {"fingerprint": "made up", "parts": list(range(done)), "units": [UNITS] * done}
    (output / "ledger" / COUNTS).write_text(json.dumps(counts))


def _link(source: Path, targets: Iterable[Path]) -> None:
    """Links of one file, as many as it can have, then of a copy."""
    for number, target in enumerate(targets):
        if number % 30_000 == 0:
            copy = target.parent / f"_{number}"
            copy.write_bytes(source.read_bytes())
        os.link(copy, target)
