"""Measure side by side, in one run, against the reference implementation and the plain Ray Data recipe.

prepare   encoded bytes to patches, one thread, against Pillow + the reference processor; --media video: PyAV and it
encoder   the tower against the reference tower on the same packs
pack      how full first-fit-decreasing packs are, and how even after balancing
write     a data shard against a raw write of the same bytes
read      the reader against a raw read of the same bytes
loaders   the stream with two workers against raw, WebDataset and Energon; from a store of 30 ms a request
driver    its own time for each unit, and its memory for a plan of a million samples
cluster   encoders' use and the driver's own time at 8 to 1000 GPUs, over a stand-in for Ray in virtual time
resume    how long 100 000 parts take to their first unit where nine tenths are done
plan      the command over the index of ten million samples
ledger    the reader, `status` and `stats` on a million committed units
job       the whole job on Ray against the Ray Data recipe
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from jobs.bench.cluster import bench_cluster
from jobs.bench.driver import bench_driver
from jobs.bench.encoder import bench_encoder
from jobs.bench.job import bench_job
from jobs.bench.ledger import bench_ledger
from jobs.bench.plan import bench_plan
from jobs.bench.prepare import bench_pack, bench_prepare
from jobs.bench.reading import bench_loaders
from jobs.bench.resume import bench_resume
from jobs.bench.shards import bench_read, bench_write
from pipeline.cli.commands import run_module
from pipeline.cli.console import print_json, say
from pipeline.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", nargs="?", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}; or all")
    parser.add_argument("--photos", type=Path, help="a folder of photos; without it those that are shipped")
    parser.add_argument("--media", default="image", choices=("image", "video"), help="of `prepare`")
    parser.add_argument("--model", default=None, help="of `encoder`: random:wide on a CPU, random:7b on a GPU")
    parser.add_argument("--dtype", default=None, choices=("bfloat16", "float32"), help="of `encoder`")
    parser.add_argument("--grid", help="of `encoder` on a CPU: one image of so many patches, 48x60")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="write the results as JSON")
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)  # of the driver's memory measurement


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "prepare": bench_prepare,
    "encoder": bench_encoder,
    "pack": bench_pack,
    "write": bench_write,
    "read": bench_read,
    "loaders": bench_loaders,
    "driver": bench_driver,
    "cluster": bench_cluster,
    "resume": bench_resume,
    "plan": bench_plan,
    "ledger": bench_ledger,
    "job": bench_job,
}


def main(arguments: argparse.Namespace) -> int:
    if arguments.repeats < 1:
        raise RequestError(f"--repeats: must be positive, not {arguments.repeats}")
    results: dict[str, dict[str, object]] = {}
    for name in [arguments.part] if arguments.part else list(PARTS):
        try:
            results[name] = PARTS[name](arguments)
        except ImportError as error:
            raise RequestError(f"bench {name}: {error}; pip install -e '.[bench]'") from error
        if arguments.json != "-":
            say(name)
            for field, value in results[name].items():
                say(f"    {field:32} {_text(value)}")
    if arguments.json == "-":
        print_json(results)
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(run_module("bench", sys.modules[__name__]))
