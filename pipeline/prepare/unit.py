"""Prepare a unit: its bytes to its patches, and what became of each of its samples."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from .. import rejects
from ..grid import Geometry
from ..index.units import Unit
from ..rejects import Reject
from ..source.carry import read_carried
from ..source.part import Part
from ..source.sample import IndexedSample
from .decode import CHANNELS, Uint8
from .guard import ImageReader
from .patches import check_size, cut_patches, resize, target_size
from .unit_reader import UnitReader


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """A sample and what its bytes gave. `image` is its place among the unit's distinct images; None for a reject."""

    facts: IndexedSample
    status: str
    error: str | None = None
    resized_width: int | None = None
    resized_height: int | None = None
    clamped: str | None = None
    image: int | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedUnit:
    """The hand-off from preparing to encoding.

    Attributes:
        samples: every sample of the unit, in order.
        grids: `(t, h, w)` in patches of each distinct image.
        patches_PC: uint8 [P, C], the distinct images' patches one after the other; C = 3·patch_size².
        seconds: by step (`read`, `decode`).
        carried: a row of carried columns for each sample, if any are carried.
    """

    unit: Unit
    samples: tuple[PreparedSample, ...]
    grids: tuple[tuple[int, int, int], ...]
    patches_PC: Uint8
    seconds: dict[str, float] = field(default_factory=dict)
    carried: pa.Table | None = None


def prepare_into(
    out_PC: Uint8, data: bytes, facts: IndexedSample, size: tuple[int, int], geometry: Geometry, images: ImageReader
) -> None:
    """Decodes, resizes and cuts one indexed image into its rows of the unit's patches.

    Args:
        out_PC: uint8 [P, C].
        size: resized height and width.

    Raises:
        Reject: the bytes cannot be decoded, or not to what their header says.
    """
    pixels = images.pixels(facts.key, data, facts.orientation or 1)
    if pixels.shape[:2] != (facts.height, facts.width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise Reject(rejects.CORRUPT, f"decodes to {found}, its header says {facts.width}x{facts.height}")
    cut_patches(resize(pixels, *size), geometry.patch_size, geometry.merge_size, out_PC)


def prepare_unit(
    unit: Unit, part: Part, samples: Sequence[IndexedSample], geometry: Geometry, deduplicate: bool,
    reader: UnitReader, carry: pa.Schema | None = None, images: ImageReader | None = None,
) -> PreparedUnit:  # fmt: skip
    """Prepares every sample of a unit; what cannot be prepared becomes a reject.

    Raises:
        SourceError: as `UnitReader.read`.
    """
    started = time.perf_counter()
    encoded, members = reader.read_with_members(part, samples, carry.names if carry else ())
    carried = read_carried(part, samples, carry, members) if carry else None
    changed: set[int] = set()
    for index, sample in enumerate(samples):
        if not _same(encoded[index], sample):
            reader.close()
            encoded[index] = reader.read(part, [sample])[0]  # one fresh read, before the bytes are blamed
            if not _same(encoded[index], sample):
                changed.add(index)
    seconds = {"read": time.perf_counter() - started}

    started = time.perf_counter()
    patches_PC = np.empty((unit.patches, CHANNELS * geometry.patch_size**2), np.uint8)
    images = images or ImageReader()
    cursor = 0
    grids: list[tuple[int, int, int]] = []
    known: dict[str, PreparedSample] = {}
    results: list[PreparedSample] = []
    for index, sample in enumerate(samples):
        data, encoded[index] = encoded[index], None
        if deduplicate and index not in changed and sample.status == rejects.OK and sample.sha256 in known:
            twin = known[sample.sha256]
            results.append(
                PreparedSample(
                    facts=sample, status=twin.status, error=twin.error, resized_width=twin.resized_width,
                    resized_height=twin.resized_height, clamped=twin.clamped, image=twin.image,
                )
            )  # fmt: skip
            continue
        try:
            height, width, clamped = _admit(sample, index in changed, geometry)
            grid = (1, height // geometry.patch_size, width // geometry.patch_size)
            rows = patches_PC[cursor : cursor + grid[1] * grid[2]]
            assert data is not None
            prepare_into(rows, data, sample, (height, width), geometry, images)
        except Reject as reject:
            result = PreparedSample(facts=sample, status=reject.reason, error=reject.message[:1000])
        else:
            cursor += len(rows)
            result = PreparedSample(
                facts=sample, status=rejects.OK, resized_width=width, resized_height=height, clamped=clamped,
                image=len(grids),
            )  # fmt: skip
            grids.append(grid)
        results.append(result)
        if sample.sha256 is not None and index not in changed and sample.status == rejects.OK:
            known[sample.sha256] = result
    seconds["decode"] = time.perf_counter() - started
    return PreparedUnit(
        unit=unit, samples=tuple(results), grids=tuple(grids), patches_PC=patches_PC[:cursor], seconds=seconds,
        carried=carried,
    )  # fmt: skip


def _same(data: bytes | None, sample: IndexedSample) -> bool:
    return data is None or hashlib.sha256(data).hexdigest() == sample.sha256


def _admit(sample: IndexedSample, changed: bool, geometry: Geometry) -> tuple[int, int, str]:
    """Everything that can be said before decoding. Raises Reject."""
    if sample.status != rejects.OK:
        raise Reject(sample.status, sample.error or sample.status)
    assert sample.width is not None and sample.height is not None
    if changed:
        raise Reject(rejects.CHECKSUM, "the bytes are no longer those that were indexed")
    check_size(sample.width, sample.height, geometry)
    return target_size(sample.width, sample.height, geometry)
