"""A unit's bytes to patches. Catches: a reject that shifts its neighbours, a twin lost or taken for a good one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoded, noise
from PIL import Image, ImageOps
from transformers import Qwen2VLImageProcessor

from pipeline import rejects
from pipeline.config import Source
from pipeline.grid import Geometry
from pipeline.index.header_reader import PlainReader
from pipeline.index.read import read_index_arrays, read_index_rows
from pipeline.index.units import Unit, cut_units
from pipeline.index.write import index_part
from pipeline.prepare.guard import ImageReader
from pipeline.prepare.unit import Preparation, PreparedUnit, prepare_unit
from pipeline.source.format import Columns, UnitBytes, UnitReader
from pipeline.source.formats import format_named
from pipeline.source.lister import list_source
from pipeline.source.part import Part
from pipeline.source.plan import Plan
from pipeline.source.resolve import resolve_source
from pipeline.source.sample import IndexedSample
from pipeline.storage.scratch import Scratch

GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=20_000, max_image_pixels=90_000
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def turned(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, "JPEG", exif=exif.tobytes())


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Two pairs of twins, a turned image, and three rejects between them: two that only decoding or a size finds."""
    good = encoded(noise(90, 130, 1))
    cut = encoded(noise(80, 80, 2), "JPEG")
    return {
        "0.png": good,
        "1.jpg": turned(noise(60, 150, 3), 6),
        "2.jpg": cut[: len(cut) * 2 // 3],
        "3.png": encoded(noise(20, 20, 4)),
        "4.png": good,
        "5.png": encoded(noise(300, 301, 5)),
        "6.jpg": cut[: len(cut) * 2 // 3],
        "7.png": encoded(noise(300, 300, 6)),
        "8.png": b"no image",
        "9.png": encoded(noise(70, 210, 7)),
    }


class Bench:
    """A folder's only unit, and what prepares it."""

    def __init__(self, files: dict[str, bytes], place: Path) -> None:
        for name, data in files.items():
            (place / "in").mkdir(exist_ok=True)
            (place / "in" / name).write_bytes(data)
        source, plan = Source(uri=str(place / "in")), Plan(place / "out")
        with Scratch(place / "out") as scratch:
            plan.update(source, list_source(resolve_source(source)), scratch)
            self.part = plan.part(0)
            index_part(self.part, Columns(), plan.index_path(0), scratch, PlainReader())
        (self.unit,) = cut_units(0, read_index_arrays(plan.index_path(0)), GEOMETRY, 100_000)
        self.samples = read_index_rows(plan.index_path(0), self.unit.first, self.unit.count)

    def prepare(
        self, samples: list[IndexedSample] | None = None, reader: UnitReader | None = None, deduplicate: bool = True
    ) -> PreparedUnit:
        preparation = Preparation(
            geometry=GEOMETRY,
            deduplicate=deduplicate,
            reader=reader or format_named("folder").reader(Columns()),
            images=ImageReader(),
        )
        unit: Unit = self.unit if deduplicate else replace(self.unit, patches=self.unit.patches * 2)
        return prepare_unit(unit, self.part, samples or self.samples, preparation)


@pytest.fixture(scope="module")
def bench(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(files, tmp_path_factory.mktemp("bench"))


def reference(data: bytes) -> tuple[torch.Tensor, list[int]]:
    """What transformers' processor makes of it: one frame's values [P, 588], and the grid."""
    processor = Qwen2VLImageProcessor(min_pixels=GEOMETRY.min_pixels, max_pixels=GEOMETRY.max_pixels)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    out = processor(images=[image], return_tensors="pt")
    return out["pixel_values"].view(-1, 3, 2, 196)[:, :, 0].flatten(1), out["image_grid_thw"][0].tolist()


def assert_whole(unit: PreparedUnit, files: dict[str, bytes]) -> None:
    """Every accepted sample's patches are the reference's of its own file."""
    starts = np.cumsum([0] + [t * h * w for t, h, w in unit.grids])
    assert len(unit.patches_PC) == starts[-1]
    mean, std = (torch.tensor(values)[:, None] for values in (MEAN, STD))
    for sample in unit.samples:
        if sample.image is None:
            assert sample.status != rejects.OK
            continue
        expected, grid = reference(files[sample.facts.key])
        assert list(unit.grids[sample.image]) == grid
        assert (sample.resized_height, sample.resized_width) == (grid[1] * 14, grid[2] * 14)
        patches_PC = torch.from_numpy(unit.patches_PC[starts[sample.image] : starts[sample.image + 1]].copy())
        ours = ((patches_PC.float().view(-1, 3, 196) / 255 - mean) / std).flatten(1)
        assert torch.allclose(ours, expected, atol=1e-5), sample.facts.key


def statuses(unit: PreparedUnit) -> list[str]:
    return [sample.status for sample in unit.samples]


def test_rejects_in_the_middle_leave_their_neighbours_as_they_are(bench: Bench, files: dict[str, bytes]) -> None:
    unit = bench.prepare()
    assert [sample.facts.key for sample in unit.samples] == list(files)
    ok, cut = rejects.OK, rejects.TRUNCATED
    large, none = rejects.TOO_MANY_PIXELS, rejects.UNIDENTIFIED
    assert statuses(unit) == [ok, ok, cut, ok, ok, large, cut, ok, none, ok]  # 300×300 is exactly the limit
    assert [sample.image for sample in unit.samples] == [0, 1, None, 2, 0, None, None, 3, None, 4]
    assert [unit.samples[index].clamped for index in (0, 3, 7)] == ["none", "min", "max"]
    assert unit.samples[6].error == unit.samples[2].error
    assert_whole(unit, files)


def test_without_deduplicating_every_sample_has_its_own_patches(bench: Bench, files: dict[str, bytes]) -> None:
    unit = bench.prepare(deduplicate=False)
    assert [sample.image for sample in unit.samples] == [0, 1, None, 2, 3, None, None, 4, None, 5]
    assert_whole(unit, files)


@pytest.mark.parametrize("twin", [0, 4])
def test_a_twin_with_a_used_key_is_a_reject_and_the_other_is_not(
    twin: int, bench: Bench, files: dict[str, Any]
) -> None:
    samples = list(bench.samples)
    samples[twin] = samples[twin].rejected(rejects.DUPLICATE_KEY, "stands there before")
    unit = bench.prepare(samples)
    assert (unit.samples[twin].status, unit.samples[twin].error) == (rejects.DUPLICATE_KEY, "stands there before")
    assert unit.samples[4 - twin].status == rejects.OK
    assert_whole(unit, files)


class Watched:
    """The folder's reader, whose bytes of the chosen samples are wrong until it was closed, or for ever."""

    def __init__(self, wrong: Callable[[int, bool], bool]) -> None:
        self._reader = format_named("folder").reader(Columns())
        self._wrong, self._closed = wrong, False
        self.read_again: list[str] = []

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Sequence[str] = ()) -> UnitBytes:
        found = self._reader.read(part, samples, suffixes)
        self.read_again += [sample.key for sample in samples] if len(samples) == 1 else []
        for index, sample in enumerate(samples):
            data = found.encoded[index]
            if data is not None and self._wrong(int(sample.key[0]), self._closed):
                found.encoded[index] = data[:-1] + bytes([data[-1] ^ 1])
        return found

    def close(self) -> None:
        self._closed = True
        self._reader.close()


def test_bytes_that_differ_once_are_read_again_from_a_fresh_file(bench: Bench, files: dict[str, bytes]) -> None:
    reader = Watched(lambda number, closed: number in (0, 9) and not closed)
    unit = bench.prepare(reader=reader)
    assert reader.read_again == ["0.png", "9.png"]
    assert statuses(unit) == statuses(bench.prepare())
    assert_whole(unit, files)


def test_bytes_that_stay_other_ones_are_a_checksum_and_not_their_twins(bench: Bench, files: dict[str, bytes]) -> None:
    for changed, twin in ((0, 4), (4, 0)):
        reader = Watched(lambda number, closed, changed=changed: number == changed)
        unit = bench.prepare(reader=reader)
        assert reader.read_again == [f"{changed}.png"]
        assert unit.samples[changed].status == rejects.CHECKSUM
        assert unit.samples[twin].status == rejects.OK
        assert_whole(unit, files)


def test_pixels_of_another_size_than_the_header_are_corrupt(bench: Bench, files: dict[str, bytes]) -> None:
    samples = list(bench.samples)
    samples[3] = replace(samples[3], width=21)
    unit = bench.prepare(samples)
    assert unit.samples[3].status == rejects.CORRUPT
    assert unit.samples[3].error == "decodes to 20x20, its header says 21x20"
    assert_whole(unit, files)
