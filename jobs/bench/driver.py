"""The driver's own time and memory, over an engine that does nothing and a listing that is made up."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from jobs.bench.mixes import GEOMETRY
from jobs.bench.plan import write_indices
from pipeline.index.units import Unit
from pipeline.output.committed import Committed
from pipeline.output.record import CommitRecord
from pipeline.process import peak_memory_bytes
from pipeline.run.calls import Call
from pipeline.run.driver import Driver
from pipeline.run.events import Event, Stage
from pipeline.run.fleet import Fleet, Process
from pipeline.run.progress import Listen
from pipeline.run.work import DriverLimits, Work

RECORD = CommitRecord(
    schema_version=0,
    unit="",
    rows_in=1,
    rows_out=1,
    rejects={},
    reject_examples={},
    tokens=1,
    encoded_tokens=1,
    embedding_bytes=1,
    data_size=1,
    data_sha256="",
    fingerprint="",
    device="",
    halvings=0,
    overflows=0,
    packs=[],
    adopted=False,
    seconds={"encode": 0.0},
)


class NullEngine:
    """Stages that do nothing: what is left is the driver."""

    def __init__(self, processes: int = 8, budget_bytes: int = 1000) -> None:
        self._events: list[Event] = []
        self.listen: Listen = lambda counts: None
        self.fleet = Fleet()
        self.fleet.see("", budget_bytes)
        for number in range(processes):
            self.fleet.add(Process(kind="preparer", number=number))
            self.fleet.add(Process(kind="encoder", number=number))

    def now(self) -> float:
        return time.monotonic()

    def submit(self, call: Call) -> None:
        committed = None
        if call.unit is not None and call.stage is Stage.ENCODE:
            committed = Committed(unit=call.unit, record=replace(RECORD, unit=call.unit.id), fresh=True)
        self._events.append(call.done(committed))

    def wait(self, timeout_seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def replace(self, process: Process, reason: str) -> list[Event]:
        return []


def drive_nothing(parts: int, units_of: Callable[[int], list[Unit]]) -> int:
    """Drives all units of all parts through stages that do nothing; returns how many there were."""
    work = Work(parts=parts, to_index=list(range(parts)), to_cut=[], units_of=units_of, unit_bytes=lambda unit: 1)
    driver = Driver(NullEngine(), work, DriverLimits(attempts=3))
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
    from pipeline.config import Source
    from pipeline.index.read import read_index_arrays
    from pipeline.index.units import cut_units
    from pipeline.source.listing import Listing
    from pipeline.source.part import SourceFile, SourcePlace
    from pipeline.source.plan import Plan
    from pipeline.storage.scratch import Scratch

    def files() -> Iterator[SourceFile]:  # a million real ones would measure the disk
        return (SourceFile(path=f"{n // 1000:05d}/{n:09d}.jpg", size=100_000, mtime_ns=n) for n in range(samples))

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the imports'; start anew
    before = peak_memory_bytes()
    with tempfile.TemporaryDirectory() as folder, Scratch(folder) as scratch:
        place = SourcePlace(format="folder", root="/nowhere", patterns=("/nowhere",))
        plan = Plan(folder)
        plan.update(Source(uri="/nowhere"), Listing(place, files(), Counter()), scratch)
        write_indices(plan, samples)

        def units_of(part: int) -> list[Unit]:
            return cut_units(part, read_index_arrays(plan.index_path(part)), GEOMETRY, 65_536)

        started = time.perf_counter()
        count = drive_nothing(plan.num_parts, units_of)
        seconds = time.perf_counter() - started
    return {"units": count, "seconds": seconds, "growth_bytes": peak_memory_bytes() - before}
