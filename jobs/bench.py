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
from typing import Any

import numpy as np
import torch

from jobs.bench_encoder import bench_encoder, log_normal_grids
from jobs.cli import print_json, run_command, say
from pipeline.commit import Committed
from pipeline.driver import Driver, Event
from pipeline.encoder import Grid
from pipeline.errors import RequestError
from pipeline.grid import smart_resize
from pipeline.headers import EXTENSIONS, read_header
from pipeline.pack import Size, first_fit_decreasing, pack_images
from pipeline.units import Geometry, Unit

MAX_PIXELS = 1_003_520
MIN_PIXELS = 3136
GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS,
    max_image_pixels=178_956_970,
)  # fmt: skip
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
    columns |= {"key": names, "source": names, "sha256": ["0" * 64] * n, "width": sides[0], "height": sides[1]}
    columns |= {"offset": np.zeros(n, np.int64), "length": np.full(n, 100000), "status": ["ok"] * n}
    columns["group"] = np.full(n, -1, np.int32)
    pq.write_table(pa.table(columns, schema=schema), folder / f"part-{part:06d}.parquet")
"""
    subprocess.run([sys.executable, "-c", code, str(plan.index_folder), str(samples), str(plan.num_parts)], check=True)


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
