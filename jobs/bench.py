"""Measure side by side, in one run, against the reference implementation and the plain Ray Data recipe.

prepare   encoded bytes to patches, one thread, against Pillow + the reference processor
encoder   the tower against the reference tower on the same packs
pack      how full first-fit-decreasing packs are, and how even after balancing
write     a data shard against a raw write of the same bytes
read      the reader against a raw read of the same bytes
driver    its own time for each unit, and its memory for a plan of a million samples
job       the whole job on Ray against the Ray Data recipe
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jobs.bench_driver import bench_driver
from jobs.bench_encoder import bench_encoder
from jobs.bench_plan import bench_plan
from jobs.cli import print_json, run_command, say
from jobs.mixes import GEOMETRY, MAX_PIXELS, MIN_PIXELS, log_normal_grids
from pipeline.encoder import Grid
from pipeline.errors import RequestError
from pipeline.grid import smart_resize
from pipeline.headers import EXTENSIONS, read_header
from pipeline.pack import Size, first_fit_decreasing, pack_images

SHIPPED_PHOTOS = Path("tests/data/photos")
SEED = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", nargs="?", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}; or all")
    parser.add_argument("--photos", type=Path, help="a folder of photos")
    parser.add_argument("--model", default=None, help="of `encoder`: random:wide on a CPU, random:7b on a GPU")
    parser.add_argument("--dtype", default=None, choices=("bfloat16", "float32"), help="of `encoder`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="write the results as JSON")
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)  # of the driver's memory measurement


def photos_of(folder: Path | None) -> list[Path]:
    """The photos to measure on. Raises RequestError if there are none."""
    chosen = folder or next(
        (place for place in (Path("../shared/data/photos"), SHIPPED_PHOTOS) if place.is_dir()), SHIPPED_PHOTOS
    )
    found = sorted(path for path in chosen.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise RequestError(f"--photos: {chosen} holds no photo")
    return found


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns, after one warm-up each: noise then meets all of them alike."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench_prepare(arguments: argparse.Namespace) -> dict[str, object]:
    import io

    from PIL import Image

    from jobs.peers import reference_processor
    from pipeline.guard import ImageReader
    from pipeline.index import IndexedSample
    from pipeline.prepare import prepare_into

    torch.set_num_threads(1)
    photos = [path.read_bytes() for path in photos_of(arguments.photos)]
    processor = reference_processor(MIN_PIXELS, MAX_PIXELS)

    def reference(data: bytes) -> object:
        return processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")

    images = ImageReader()
    unit_PC = np.empty((MAX_PIXELS // 14**2, 588), np.uint8)
    ours_seconds = reference_seconds = 0.0
    for data in photos:  # image by image, so that a busy moment of the machine meets both
        header = read_header(data)
        facts = IndexedSample(
            key="", source="", width=header.width, height=header.height, orientation=header.orientation
        )
        size = smart_resize(header.height, header.width, GEOMETRY.factor, MIN_PIXELS, MAX_PIXELS)[:2]
        patches = size[0] * size[1] // GEOMETRY.patch_size**2
        calls: dict[str, Callable[[], object]] = {
            "ours": partial(prepare_into, unit_PC[:patches], data, facts, size, GEOMETRY, images),
            "reference": partial(reference, data),
        }
        medians = interleaved(calls, max(1, arguments.repeats // 2))
        ours_seconds += medians["ours"]
        reference_seconds += medians["reference"]
    return {
        "images": len(photos),
        "ours_images_per_second": len(photos) / ours_seconds,
        "reference_images_per_second": len(photos) / reference_seconds,
        "ratio": reference_seconds / ours_seconds,
        "asked": 2.5,
    }


def photo_grids(photos: list[Path]) -> list[Grid]:
    grids: list[Grid] = []
    for path in photos:
        header = read_header(path.read_bytes())
        height, width, _ = smart_resize(header.height, header.width, GEOMETRY.factor, MIN_PIXELS, MAX_PIXELS)
        grids.append((1, height // GEOMETRY.patch_size, width // GEOMETRY.patch_size))
    return grids


def bench_pack(arguments: argparse.Namespace) -> dict[str, object]:
    budget, unit_tokens = 16_384, 65_536
    results: dict[str, object] = {"budget": budget, "unit_tokens": unit_tokens, "asked": 0.99}
    photos = photo_grids(photos_of(arguments.photos))
    order = np.random.default_rng(SEED).integers(0, len(photos), 4000)
    for name, grids in (("photos", [photos[index] for index in order]), ("log_normal", log_normal_grids(4000))):
        full, fills, balances = [], [], []
        for sizes in _units(grids, unit_tokens):
            patches = [size.patches for size in sizes]
            fitted = sorted(sum(patches[index] for index in pack) for pack in first_fit_decreasing(patches, budget))
            full.extend(fitted[1:])
            fills.append(sum(fitted) / (budget * len(fitted)))
            balanced = [sum(patches[index] for index in pack) for pack in pack_images(sizes, budget)]
            balances.append(min(balanced) / max(balanced))
        results[name] = {
            "fill_without_the_last_pack": sum(full) / (budget * len(full)),
            "fill_with_it": statistics.mean(fills),
            "balance_smallest_over_largest": statistics.mean(balances),
        }
    return results


def _units(grids: list[Grid], unit_tokens: int) -> Iterator[list[Size]]:
    sizes: list[Size] = []
    for t, h, w in grids:
        if sum(size.patches for size in sizes) // 4 + t * h * w // 4 > unit_tokens:
            yield sizes
            sizes = []
        sizes.append(Size(patches=t * h * w, frame_patches=h * w))


def bench_write(arguments: argparse.Namespace) -> dict[str, object]:
    import os

    from pipeline.shard import embedding_array, write_data_shard

    rows, row_bytes = 96, 600 * 3584 * 2
    payload = np.random.default_rng(SEED).integers(0, 256, rows * row_bytes, dtype=np.uint8)
    lengths = np.full(rows, row_bytes, np.int64)
    names = ["key", "source", "sha256", "clamped", "dtype"]
    columns: dict[str, list[object]] = {name: ["x"] * rows for name in names}
    for name in ("width", "height", "resized_width", "resized_height", "num_patches", "num_tokens", "hidden_size"):
        columns[name] = [1] * rows
    columns |= {
        "norm_mean": [1.0] * rows,
        "norm_max": [1.0] * rows,
        "grid_thw": [[1, 2, 2]] * rows,
        "scale": [None] * rows,
    }
    with tempfile.TemporaryDirectory(dir=".") as folder:

        def ours() -> None:
            path = Path(folder, "shard")
            write_data_shard(path, columns, embedding_array(payload, lengths), {}, 32 << 20)
            path.unlink()

        def raw() -> None:
            path = Path(folder, "raw")
            with open(path, "wb", buffering=0) as stream:
                stream.write(payload.data)
                os.fsync(stream.fileno())
            path.unlink()

        seconds = interleaved({"ours": ours, "raw": raw}, arguments.repeats)
    return {
        "bytes": payload.nbytes,
        "ours_mb_per_second": payload.nbytes / seconds["ours"] / 1e6,
        "raw_mb_per_second": payload.nbytes / seconds["raw"] / 1e6,
        "ratio": seconds["raw"] / seconds["ours"],
        "asked": 0.5,
    }


def bench_read(arguments: argparse.Namespace) -> dict[str, object]:
    """The reader against reading the same shards raw; page cache warm for both."""
    from pipeline.config import parse_config
    from pipeline.reader import EmbeddingDataset
    from pipeline.runner import run

    with tempfile.TemporaryDirectory(dir=".") as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        for number, path in enumerate(photos_of(arguments.photos)[:24]):
            for copy in range(4):
                target = photos / f"{number:03d}-{copy}{path.suffix.lower()}"
                target.symlink_to(path.resolve())
        config = parse_config(
            {
                "source": {"uri": str(photos)},
                "preprocess": {"max_pixels": MAX_PIXELS},
                "model": {"path": "random:tiny", "dtype": "float32"},
                "output": {"uri": f"{folder}/out", "dtype": "float32", "stage": "pre_merger", "shard_tokens": 16_384},
                "cluster": {"engine": "inline"},
            }
        )
        run(config, say=lambda line: None, report=lambda *_: None)
        dataset = EmbeddingDataset(f"{folder}/out")
        shards = sorted(Path(folder, "out", "data").iterdir())

        def ours() -> int:
            return sum(item["image_embeds"].nbytes for item in dataset.stream())

        def raw() -> int:
            return sum(len(path.read_bytes()) for path in shards)

        size = ours()
        seconds = interleaved({"ours": ours, "raw": raw}, arguments.repeats)
    return {
        "bytes": size,
        "ours_mb_per_second": size / seconds["ours"] / 1e6,
        "raw_mb_per_second": size / seconds["raw"] / 1e6,
        "ratio": seconds["raw"] / seconds["ours"],
        "asked": 0.7,
    }


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
                "from jobs import bench\n"
                "ray.init(num_cpus=2, include_dashboard=False, logging_level='error')\n"
                "started = time.perf_counter()\n"
                f"rows = bench.job_{name}(sys.argv[1], sys.argv[2])\n"
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
    from pipeline.runner import run

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
    from jobs.peers import run_ray_data_recipe

    return run_ray_data_recipe(Path(photos), Path(output), "random:tiny", MIN_PIXELS, MAX_PIXELS)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "prepare": bench_prepare,
    "encoder": bench_encoder,
    "pack": bench_pack,
    "write": bench_write,
    "read": bench_read,
    "driver": bench_driver,
    "plan": bench_plan,
    "job": bench_job,
}


def main(arguments: argparse.Namespace) -> int:
    results: dict[str, dict[str, object]] = {}
    for name in [arguments.part] if arguments.part else list(PARTS):
        try:
            results[name] = PARTS[name](arguments)
        except ImportError as error:
            raise RequestError(f"bench {name}: {error}; install visionbake[bench]") from error
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
    sys.exit(run_command("bench"))
