"""`plan` over the index of ten million samples: its time, and the memory of the whole process. No torch in here."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from pipeline.config import parse_config
from pipeline.run.request import check_request
from pipeline.source.plan import Plan
from pipeline.storage.scratch import Scratch

INDEXED_AT_ONCE = 8192  # samples of a synthetic part
# The command's own peak, and its processes' as if all had the largest one's at once. (What wait4 says of a child counts
# its parent's memory too.)
COMMAND_WITH_PEAK = """
import resource, sys
from pipeline.cli import main
from pipeline.estimate.estimate_plan import MAX_PROCESSES
from pipeline.process import peak_memory_bytes, usable_cores
code = main(sys.argv[1:])
largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(peak_memory_bytes() + min(MAX_PROCESSES, usable_cores()) * largest, file=sys.stderr)
sys.exit(code)
"""
BUDGETS = (401_408, 802_816, 1_003_520, 12_845_056)


def bench_plan(arguments: argparse.Namespace) -> dict[str, object]:
    """`visionbake plan --max-pixels` for four budgets, the whole command, over the index of ten million samples."""
    samples = arguments.samples or 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        _write_tars(Path(folder, "in"), -(-samples // INDEXED_AT_ONCE))
        tree = {
            "source": {"uri": f"{folder}/in/*.tar"},
            "model": {"path": "random:tiny", "dtype": "float32"},
            "output": {"uri": f"{folder}/out"},
        }
        config = parse_config(tree)
        with Scratch(f"{folder}/out") as scratch:
            plan = Plan(f"{folder}/out")
            plan.update(config.source, check_request(config).listed(), scratch)
        write_indices(plan, samples)
        path = Path(folder, "c.json")  # JSON is YAML
        path.write_text(json.dumps(tree), encoding="utf-8")
        words = ["plan", str(path), "--max-pixels", ",".join(map(str, BUDGETS)), "--json"]
        started = time.perf_counter()
        command = [sys.executable, "-c", COMMAND_WITH_PEAK, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        answer, peak = json.loads(done.stdout), int(done.stderr.split()[-1])
        seconds = time.perf_counter() - started
    return {
        "samples": answer["budgets"][0]["samples"],
        "budgets": len(answer["budgets"]),
        "duplicates": answer["budgets"][0]["duplicates"],
        "seconds": seconds,
        "asked_seconds": 20,
        "peak_mb": peak / 1e6,
        "asked_mb": 1000,
    }


def _write_tars(folder: Path, count: int) -> None:
    """Tars of one image each: what is asked of them is their names, sizes and times."""
    folder.mkdir(parents=True)
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "PNG")
    for number in range(count):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as tar:
            member = tarfile.TarInfo("0.png")
            member.size = len(image.getvalue())
            tar.addfile(member, io.BytesIO(image.getvalue()))


def write_indices(plan: Plan, samples: int) -> None:
    """Synthetic indices, written by another process so that this one's peak memory is the planner's alone."""
    code = """
import sys, json, numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from pipeline.index.write import INDEX_SCHEMA
folder, samples, parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder.mkdir(parents=True)
schema = INDEX_SCHEMA.with_metadata({"visionbake.index": json.dumps({"version": "2", "damaged": ""})})
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
