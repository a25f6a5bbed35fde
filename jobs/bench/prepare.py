"""Preparing against Pillow and the reference processor, and how full and even packs are."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jobs.bench.mixes import GEOMETRY, MAX_PIXELS, MIN_PIXELS, interleaved, log_normal_grids, photos_of
from pipeline.encode.pack import Size, first_fit_decreasing, pack_images
from pipeline.grid import smart_resize
from pipeline.index.headers import read_header
from pipeline.tower.pack_plan import Grid

SEED = 7


def bench_prepare(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.media == "video":
        from jobs.bench.video import bench_video

        return bench_video(arguments)
    import io

    from PIL import Image

    from pipeline.prepare.guard import ImageReader
    from pipeline.prepare.unit import Preparation, prepare_into
    from pipeline.source.formats.folder import FolderReader
    from pipeline.source.sample import IndexedSample
    from pipeline.tower.random_tower import SIZES
    from pipeline.tower.reference import reference_processor

    torch.set_num_threads(1)
    photos = [path.read_bytes() for path in photos_of(arguments.photos)]
    processor = reference_processor(SIZES["7b"], MIN_PIXELS, MAX_PIXELS)

    def reference(data: bytes) -> object:
        return processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")

    preparation = Preparation(geometry=GEOMETRY, deduplicate=False, reader=FolderReader(), images=ImageReader())
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
            "ours": partial(prepare_into, unit_PC[:patches], data, facts, size, preparation),
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
