"""Prepare: a unit's bytes to uint8 patches, one frame each, in the reference's patch order.

    encoded bytes ─▶ RGB uint8 [H, W, 3] ─▶ resized uint8 [3, H', W'] ─▶ patches uint8 [P, 3·14·14]

Normalising happens on the device: what leaves here is an eighth of the bytes of the reference's `pixel_values`, and,
once normalised and repeated over the two frames, the same bits.

Source: transformers 5.23, `models/qwen2_vl/image_processing_qwen2_vl.py`, torchvision backend.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from pipeline import rejects
from pipeline.carry import read_carried
from pipeline.decode import CHANNELS, Decoder, Uint8
from pipeline.grid import smart_resize
from pipeline.guard import ImageReader
from pipeline.headers import header_of, open_image
from pipeline.index import IndexedSample
from pipeline.parts import Part
from pipeline.rejects import Reject
from pipeline.unit_reader import UnitReader
from pipeline.units import Geometry, Unit


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


def resize(pixels: Uint8, height: int, width: int) -> Uint8:
    """Bicubic with antialiasing, as torchvision does it on uint8.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        uint8 [3, height, width], contiguous.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a read-only array is only read here
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
    if planes.shape[1:] != (height, width):
        planes = functional.interpolate(planes[None], size=(height, width), mode="bicubic", antialias=True)[0]
    return planes.contiguous().numpy()


def cut_patches(planes: Uint8, patch_size: int, merge_size: int, out_PC: Uint8) -> None:
    """Cuts [3, H, W] into patches, the merge_size² patches of a merged token together, channel before row.

    Rows of a patch move as one item of `patch_size` bytes, which is several times faster than moving bytes.
    """
    height, width = planes.shape[1] // patch_size, planes.shape[2] // patch_size
    row = np.dtype(f"V{patch_size}")
    shape = (height // merge_size, merge_size, patch_size, width // merge_size, merge_size)
    source = planes.view(row).reshape(CHANNELS, *shape)
    target = out_PC.view(row).reshape(shape[0], shape[3], merge_size, merge_size, CHANNELS, patch_size)
    target[...] = source.transpose(1, 4, 2, 5, 0, 3)


def prepare_image(
    data: bytes, geometry: Geometry, decoder: Decoder | None = None
) -> tuple[Uint8, tuple[int, int, int]]:
    """Encoded bytes to patches, for one image on its own.

    Returns:
        uint8 [P, C] and the grid `(1, h, w)`.

    Raises:
        Reject: for any reason that one image's bytes can give.
    """
    with open_image(data) as image:
        header = header_of(image, data)
        check_size(header.width, header.height, geometry)
        pixels = (decoder or Decoder()).decode(image, data, header.orientation)
    return patches_of_pixels(pixels, geometry)


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


def patches_of_pixels(pixels: Uint8, geometry: Geometry) -> tuple[Uint8, tuple[int, int, int]]:
    """RGB uint8 [H, W, 3] to patches uint8 [P, C] and the grid. Raises Reject: `aspect_ratio`."""
    height, width, _ = _resized(pixels.shape[1], pixels.shape[0], geometry)
    grid = (1, height // geometry.patch_size, width // geometry.patch_size)
    patches_PC = np.empty((grid[1] * grid[2], CHANNELS * geometry.patch_size**2), np.uint8)
    cut_patches(resize(pixels, height, width), geometry.patch_size, geometry.merge_size, patches_PC)
    return patches_PC, grid


def check_size(width: int, height: int, geometry: Geometry) -> None:
    """Raises Reject `too_many_pixels`."""
    if width * height > geometry.max_image_pixels:
        limit = geometry.max_image_pixels
        raise Reject(rejects.TOO_MANY_PIXELS, f"{width}x{height} is over limits.max_image_pixels {limit}")


def _resized(width: int, height: int, geometry: Geometry) -> tuple[int, int, str]:
    try:
        return smart_resize(height, width, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    except ValueError as error:
        raise Reject(rejects.ASPECT_RATIO, str(error)) from error


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
    return _resized(sample.width, sample.height, geometry)
