"""The real driver and the real engine over a stand-in for Ray, in virtual time: does a large cluster stay busy?

What is real: the driver, the engine, the fleet, sizing, leases; their CPU time moves the clock. What is made up:
actors, which answer after some time; nodes, which are lost and come back; and Ray's own cost, so much a call.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from jobs.bench.virtual_ray import GPUS_PER_NODE, RAY_SECONDS, Faults, VirtualRay
from pipeline.config import Cluster
from pipeline.index.units import Unit
from pipeline.output.settings import ShardSettings
from pipeline.process import peak_memory_bytes
from pipeline.run.driver import Driver
from pipeline.run.engine_ray import RayEngine
from pipeline.run.work import DriverLimits, Observer, Work

UNIT_BYTES = 100 << 20
UNITS_PER_PART = 100
UNITS_PER_GPU = 300  # five minutes
NODE_LIFE_SECONDS = 3600.0
PRINTED = (
    *("utilisation", "driver_milliseconds_per_unit", "driver_share", "ray_share", "locality", "set_aside"),
    *("retries", "failed_calls", "lost_nodes"),
)
SHARDS = ShardSettings(
    fingerprint="",
    tower_sha256="",
    stage="merged",
    dtype="bfloat16",
    hidden_size=1,
    merge_size=2,
    row_group_bytes=1,
    device="made up",
)


def simulate(gpus: int, units_per_gpu: int, faults: Faults | None = None, **options: Any) -> dict[str, object]:
    """Runs a made-up job; returns what came of it."""
    ray = VirtualRay(gpus, faults=faults, **options)
    lines: list[str] = []
    engine = RayEngine(ray, Cluster(), "cuda", say=lines.append)
    engine.begin(lambda identity: SHARDS)
    missed = []
    while engine.fleet.count("encoder") < gpus or engine.fleet.count("preparer") < 6 * gpus:
        missed += engine.wait(1.0)
        if ray.now() > 60:
            break
    engine._missed = missed
    parts = max(1, gpus * units_per_gpu // UNITS_PER_PART)

    def units_of(part: int) -> list[Unit]:
        return [
            Unit(part=part, number=number, first=number, count=1, tokens=1, patches=1)
            for number in range(UNITS_PER_PART)
        ]

    work = Work(
        parts=parts, to_index=[], to_cut=list(range(parts)), units_of=units_of, unit_bytes=lambda unit: UNIT_BYTES
    )
    driver = Driver(engine, work, DriverLimits(attempts=3), Observer(say=lines.append))
    calls, began, cpu, own = ray.calls, ray.now(), time.process_time(), ray.own_seconds
    ray.start_counting()
    progress = driver.run()
    ray.stop_counting()
    wall, seconds = ray.now() - began, time.process_time() - cpu - (ray.own_seconds - own)
    made_up = seconds / max(1, progress.totals.units)
    return {
        "gpus": gpus,
        "units": progress.totals.units,
        "asked_units": parts * UNITS_PER_PART,
        "set_aside": len(progress.set_aside),
        "retries": progress.retries,
        "virtual_seconds": round(wall, 1),
        "utilisation": round(ray.busy_seconds / ray.gpu_seconds, 4),
        "driver_milliseconds_per_unit": round(made_up * 1e3, 4),
        "driver_share": round(seconds / wall, 4),
        "ray_share": round((ray.calls - calls) * ray._ray_seconds / wall, 4),
        "locality": round(ray.local / max(1, ray.encoded), 4),
        "failed_calls": ray.failed,
        "lost_nodes": ray.lost_nodes,
        "peak_memory_mb": round(peak_memory_bytes() / 1e6),
        "last_lines": lines[-3:],
    }


def bench_cluster(arguments: argparse.Namespace) -> dict[str, object]:
    """8 to 1000 GPUs, with and without faults: every node is lost once an hour on average."""
    result: dict[str, object] = {"ray_microseconds_per_call": RAY_SECONDS * 1e6}
    for gpus in (8, 64, 1000):
        nodes = gpus / GPUS_PER_NODE
        faults = Faults(node_seconds=NODE_LIFE_SECONDS / nodes, slow_share=0.03, bad_gpus=1)
        for label, kind in ((f"{gpus}", None), (f"{gpus} with faults", faults)):
            found = simulate(gpus, UNITS_PER_GPU, kind)
            result |= {f"{label}: {name}": found[name] for name in PRINTED}
    return result
