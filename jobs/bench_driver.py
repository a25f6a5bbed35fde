"""The driver's and the plan's own time and memory, over an engine that does nothing and a listing that is made up."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jobs.mixes import GEOMETRY
from pipeline.commit import Committed
from pipeline.driver import Driver, Event
from pipeline.units import Unit


class NullEngine:
    """Stages that do nothing: what is left is the driver."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def free_preparers(self) -> int:
        return 8 - len(self._events)

    def free_encoders(self) -> int:
        return 8 - len(self._events)

    def index(self, part: int, guarded: bool) -> None:
        self._events.append(Event(kind="indexed", part=part))

    def prepare(self, unit: Unit, guarded: bool) -> None:
        self._events.append(Event(kind="prepared", part=unit.part, unit=unit))

    def encode(self, unit: Unit, handle: Any) -> None:
        record: dict[str, object] = {
            "rows_in": 1, "rows_out": 1, "tokens": 1, "embedding_bytes": 1, "data_size": 1, "halvings": 0,
            "rejects": {}, "reject_examples": {}, "seconds": {"encode": 0.0},
        }  # fmt: skip
        committed = Committed(unit=unit, record=record, fresh=True)
        self._events.append(Event(kind="committed", part=unit.part, unit=unit, committed=committed))

    def wait(self, timeout_seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events


def drive_nothing(parts: int, units_of: Callable[[int], list[Unit]]) -> int:
    """Drives all units of all parts through stages that do nothing; returns how many there were."""
    driver = Driver(
        NullEngine(), parts=parts, indexed=set(), units_of=units_of, committed=lambda part, number: False,
        unit_bytes=lambda unit: 1, in_flight_bytes=1000, attempts=3, max_rejected_fraction=1.0,
        on_tick=lambda progress: None, on_start=lambda: None,
    )  # fmt: skip
    return driver.run().totals.units


def bench_driver(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.samples:
        return _plan_and_drive(arguments.samples)
    parts, per_part = 200, 100
    units = {
        part: [Unit(part=part, number=n, first=n, count=1, tokens=1, patches=4) for n in range(per_part)]
        for part in range(parts)
    }
    started = time.perf_counter()
    count = drive_nothing(parts, units.__getitem__)
    seconds = time.perf_counter() - started
    peaks = {}
    for samples in (10_000, 1_000_000):
        command = [sys.executable, "-m", "jobs.bench", "driver", "--samples", str(samples), "--json"]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks[samples] = result["driver"]["growth_bytes"]
    return {
        "units": count,
        "milliseconds_per_unit": seconds / count * 1e3,
        "asked_milliseconds": 1.0,
        "memory_growth_mb": (peaks[1_000_000] - peaks[10_000]) / 1e6,
        "asked_mb": 200,
    }


def _plan_and_drive(samples: int) -> dict[str, object]:
    """Lists, plans and cuts a folder of so many samples, in this process, and drives its units through nothing."""
    from pipeline import parts as parts_module
    from pipeline.config import Source
    from pipeline.files import Scratch
    from pipeline.index import read_index_arrays
    from pipeline.parts import Plan
    from pipeline.sources import SourceFile, SourcePlace
    from pipeline.units import cut_units

    def listing(place: SourcePlace, ignored: object = None) -> Iterator[SourceFile]:
        return (SourceFile(path=f"{n // 1000:05d}/{n:09d}.jpg", size=100_000, mtime_ns=n) for n in range(samples))

    parts_module.list_files = listing  # type: ignore[assignment,attr-defined]  # a million real files would measure the disk
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the imports'; start anew
    before = _peak_resident_bytes()
    with tempfile.TemporaryDirectory() as folder, Scratch(folder) as scratch:
        place = SourcePlace(format="folder", root="/nowhere", patterns=("/nowhere",))
        plan = Plan(folder)
        plan.update(Source(uri="/nowhere"), place, scratch)
        _write_indices(plan, samples)

        def units_of(part: int) -> list[Unit]:
            return cut_units(part, read_index_arrays(plan.index_path(part)), GEOMETRY, 65_536)

        started = time.perf_counter()
        count = drive_nothing(plan.num_parts, units_of)
        seconds = time.perf_counter() - started
    return {"units": count, "seconds": seconds, "growth_bytes": _peak_resident_bytes() - before}


def bench_plan(arguments: argparse.Namespace) -> dict[str, object]:
    """`plan --max-pixels` for four budgets, from the index of ten million samples."""
    from jobs.plan import estimate

    samples = arguments.samples or 10_000_000
    config = SimpleNamespace(
        output=SimpleNamespace(shard_tokens=65_536), pack=SimpleNamespace(deduplicate=True)
    )  # what the estimate asks of a configuration
    request: Any = SimpleNamespace(geometry=GEOMETRY, config=config)
    with tempfile.TemporaryDirectory() as folder:
        parts = -(-samples // 8192)
        index = Path(folder, "index")
        plan: Any = SimpleNamespace(
            num_parts=parts, index_folder=index, index_path=lambda part: index / f"part-{part:06d}.parquet"
        )
        _write_indices(plan, samples)
        Path("/proc/self/clear_refs").write_text("5")
        before = _peak_resident_bytes()
        started = time.perf_counter()
        estimates, _ = estimate(request, plan, [401_408, 802_816, 1_003_520, 12_845_056])
        seconds = time.perf_counter() - started
    return {
        "samples": estimates[0].samples,
        "budgets": len(estimates),
        "duplicates": estimates[0].duplicates,
        "seconds": seconds,
        "asked_seconds": 20,
        "peak_growth_mb": (_peak_resident_bytes() - before) / 1e6,
        "peak_mb": _peak_resident_bytes() / 1e6,
        "asked_mb": 1000,
    }


def _peak_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _write_indices(plan: Any, samples: int) -> None:
    """Synthetic indices, written by another process so that this one's peak memory is the planner's alone."""
    code = """
import sys, json, numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from pipeline.index import INDEX_SCHEMA
folder, samples, parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True)
schema = INDEX_SCHEMA.with_metadata({"visionbake.index": json.dumps({"version": "1", "damaged": ""})})
generator = np.random.default_rng(7)
for part in range(parts):
    n = min(8192, samples - part * 8192)
    names = [f"{part:05d}/{i:09d}.jpg" for i in range(n)]
    sides = generator.integers(300, 1500, (2, n)).astype(np.int32)
    columns = {field.name: pa.nulls(n, field.type) for field in schema}
    text = generator.bytes(32 * n).hex()
    hashes = [text[64 * (i - i % 10 // 9) :][:64] for i in range(n)]  # every tenth image is the one before it again
    columns |= {"key": names, "source": names, "sha256": hashes, "width": sides[0], "height": sides[1]}
    columns |= {"offset": np.zeros(n, np.int64), "length": np.full(n, 100000), "status": ["ok"] * n}
    columns["group"] = np.full(n, -1, np.int32)
    pq.write_table(pa.table(columns, schema=schema), folder / f"part-{part:06d}.parquet")
"""
    subprocess.run([sys.executable, "-c", code, str(plan.index_folder), str(samples), str(plan.num_parts)], check=True)
