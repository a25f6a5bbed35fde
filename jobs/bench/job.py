"""The whole job on Ray, against the plain Ray Data recipe."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.bench.mixes import MAX_PIXELS, MIN_PIXELS, photos_of


def bench_job(arguments: argparse.Namespace) -> dict[str, object]:
    """Both in fresh processes on a 2-CPU cluster each, timed from Ray's being up to the last byte written."""
    photos = photos_of(arguments.photos)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        flat = Path(folder, "photos")
        flat.mkdir()
        for number, path in enumerate(photos):
            (flat / f"{number:04d}{path.suffix.lower()}").write_bytes(path.read_bytes())
        for name in ("ours", "recipe"):
            code = (
                "import ray, sys, time\n"
                "from jobs.bench import job\n"
                "ray.init(num_cpus=2, include_dashboard=False, logging_level='error')\n"
                "started = time.perf_counter()\n"
                f"rows = job.job_{name}(sys.argv[1], sys.argv[2])\n"
                "print('RESULT', rows, time.perf_counter() - started)\n"
            )
            command = [sys.executable, "-c", code, str(flat), str(Path(folder, name))]
            done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            lines = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
            if not lines or int(lines[0][1]) != len(photos):
                raise RuntimeError(f"{name} wrote {lines or 'nothing'}: {done.stderr[-2000:]}")
            results[name] = float(lines[0][2])
    return {
        "images": len(photos),
        "ours_images_per_second": len(photos) / results["ours"],
        "recipe_images_per_second": len(photos) / results["recipe"],
        "ours_seconds": results["ours"],
        "recipe_seconds": results["recipe"],
        "ratio": results["recipe"] / results["ours"],
        "asked": 4.0,
    }


def job_ours(photos: str, output: str) -> int:
    from pipeline.config import parse_config
    from pipeline.run.runner import run

    config = parse_config(
        {
            "source": {"uri": photos},
            "preprocess": {"max_pixels": MAX_PIXELS},
            "model": {"path": "random:tiny", "dtype": "float32"},
            "output": {"uri": output, "dtype": "float32", "shard_tokens": 4096},
            "cluster": {"encoders": 2},
        }
    )
    return run(config, say=lambda line: None, report=lambda *_: None).totals.rows


def job_recipe(photos: str, output: str) -> int:
    from jobs.bench.peers import run_ray_data_recipe

    return run_ray_data_recipe(Path(photos), Path(output), "random:tiny", MIN_PIXELS, MAX_PIXELS)
