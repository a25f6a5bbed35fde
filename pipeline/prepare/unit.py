"""Prepare a unit: its bytes to its patches, and what became of each of its samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from .. import rejects
from ..errors import SourceError
from ..grid import Geometry
from ..index.units import Unit
from ..rejects import Reject
from ..source.carried_values import Carried
from ..source.format import UnitReader
from ..source.part import Part
from ..source.planned import lost_reject
from ..source.sample import LONGEST_ERROR, IndexedSample
from ..storage.large import Encoded, LargeFile, sha256_of
from .clips import UnitClips, read_once
from .decode import CHANNELS, Uint8
from .guard import ImageReader
from .patches import check_size, cut_patches, resize, target_size


@dataclass(frozen=True, kw_only=True)
class PreparedSample:
    """A sample and what its bytes gave.

    Attributes:
        image: its place among the unit's distinct images and clips; None for a reject.
        frames: of a clip, those that were taken.
    """

    facts: IndexedSample
    status: str
    error: str | None = None
    resized_width: int | None = None
    resized_height: int | None = None
    clamped: str | None = None
    image: int | None = None
    frames: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedUnit:
    """The hand-off from preparing to encoding.

    Attributes:
        samples: every sample of the unit, in order.
        grids: `(t, h, w)` in patches of each distinct image, and then of each distinct clip.
        patches_PC: uint8 [P, C], the distinct images' patches one after the other; C = 3·patch_size².
        clip_patches_PC: the same of distinct clips, of two frames each: [P, 2·C]. None where there are no clips.
        clips: how many of the grids are of clips: the last ones.
        seconds: by step (`read`, `decode`).
        carried: a row of carried columns for each sample, if any are carried.
        nulled: by carried column, values that are no text and became null.
        geometry: decided the grids; None where that is not known, as of patches that were made in code.
    """

    unit: Unit
    samples: tuple[PreparedSample, ...]
    grids: tuple[tuple[int, int, int], ...]
    patches_PC: Uint8
    seconds: dict[str, float] = field(default_factory=dict)
    carried: pa.Table | None = None
    nulled: dict[str, int] = field(default_factory=dict)
    geometry: Geometry | None = None
    clip_patches_PC: Uint8 | None = None
    clips: int = 0

    @property
    def may_have_clips(self) -> bool:
        """Whether its output has clips, be there some in this unit or not."""
        return self.geometry is not None and self.geometry.video is not None

    def rows_of(self, is_clip: bool, first: int, count: int) -> Uint8:
        """Some patches of images, or of clips."""
        patches_PC = self.clip_patches_PC if is_clip else self.patches_PC
        assert patches_PC is not None
        return patches_PC[first : first + count]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The means to prepare the units of one run in one process.

    Attributes:
        deduplicate: whether identical bytes within a unit are prepared once.
        reader: of the source's bytes.
        images: decodes them, here or in a child process.
        carry: the carried columns' types; None or empty where nothing is carried.
        on_changed: fail or reject: of an image's file that has vanished since it was indexed.
    """

    geometry: Geometry
    deduplicate: bool
    reader: UnitReader
    images: ImageReader
    carry: pa.Schema | None = None
    on_changed: str = "fail"


def prepare_unit(unit: Unit, part: Part, samples: Sequence[IndexedSample], preparation: Preparation) -> PreparedUnit:
    """Prepares every sample of a unit; what cannot be prepared becomes a reject.

    Raises:
        SourceError: as `UnitReader.read`, where a carried value is not of its column's type, and where an image's file
            has vanished, unless that makes a reject.
    """
    started = time.perf_counter()
    encoded, carried, lost = _read(part, samples, preparation)
    read_seconds = time.perf_counter() - started
    started = time.perf_counter()
    patches = _UnitPatches(unit, preparation)
    clips = UnitClips(unit.clip_patches, samples, lost, preparation.geometry, deduplicate=preparation.deduplicate)
    for index, sample in enumerate(samples):
        data, encoded[index] = encoded[index], None  # an image's bytes are let go when its patches are there
        if sample.video is None:
            assert not isinstance(data, LargeFile)
            patches.add(sample, data, lost.get(index))
        else:
            patches.samples.append(_prepared_clip(clips, index, sample, data, lost.get(index), preparation.images))
    return PreparedUnit(
        unit=unit,
        samples=tuple(_behind_images(sample, len(patches.grids)) for sample in patches.samples),
        grids=(*patches.grids, *clips.grids),
        patches_PC=patches.filled(),
        clip_patches_PC=clips.filled() if clips.grids else None,
        clips=len(clips.grids),
        seconds={"read": read_seconds, "decode": time.perf_counter() - started},
        carried=carried.table if carried else None,
        nulled=carried.nulled if carried else {},
        geometry=preparation.geometry,
    )


def _prepared_clip(
    clips: UnitClips, index: int, sample: IndexedSample, data: Encoded | None, lost: Reject | None, images: ImageReader
) -> PreparedSample:
    """A clip with its number among the clips; or why there is none of it."""
    try:
        _check_sound(sample, lost)
        assert data is not None
        clip = clips.prepare(index, data, images)
    except Reject as reject:
        return PreparedSample(facts=sample, status=reject.reason, error=reject.message[:LONGEST_ERROR])
    return PreparedSample(
        facts=sample,
        status=rejects.OK,
        resized_width=clip.plan.width,
        resized_height=clip.plan.height,
        clamped=clip.plan.clamped,
        image=clip.number,
        frames=tuple(clip.plan.frames.tolist()),
    )


def _behind_images(sample: PreparedSample, images: int) -> PreparedSample:
    """A clip's number counts from behind the unit's distinct images."""
    return sample if sample.frames is None else replace(sample, image=images + (sample.image or 0))


def _read(
    part: Part, samples: Sequence[IndexedSample], preparation: Preparation
) -> tuple[list[Encoded | None], Carried | None, dict[int, Reject]]:
    """Every sample's bytes and carried values, and the samples that are lost: of their files nothing is read."""
    carry, reader = preparation.carry, preparation.reader
    fates = {file.path: Reject(*lost_reject(file)) for file in part.files if file.fate}
    lost = {index: fates[sample.source] for index, sample in enumerate(samples) if sample.source in fates}
    there = [index for index in range(len(samples)) if index not in lost]
    kept = [samples[index] for index in there]
    read, members = read_once(part, kept, carry.names if carry else (), reader)
    carried = reader.carried(part, kept, carry, members) if carry and kept else None
    if carry and lost:
        row_of = {index: row for row, index in enumerate(there)}
        rows = pa.array([row_of.get(index) for index in range(len(samples))], pa.int64())
        nulls = pa.table([pa.nulls(len(samples), field.type) for field in carry], carry)
        table = nulls if carried is None else carried.table.take(rows)
        carried = Carried(table=table, nulled=carried.nulled if carried else {})
    encoded: list[Encoded | None] = [None] * len(samples)
    for index, data in zip(there, read, strict=True):
        encoded[index] = data
    for index, sample in zip(there, kept, strict=True):
        if sample.sha256 is not None and encoded[index] is None:
            lost[index] = _vanished(sample, preparation.on_changed)
    return encoded, carried, lost | _reread_changed(part, samples, encoded, reader)


def _vanished(sample: IndexedSample, on_changed: str) -> Reject:
    """Raises SourceError where that is a failure."""
    what = f"a frame of {sample.key}" if sample.of_frames else sample.path
    message = f"{what}, named by {sample.source}, has vanished since it was indexed"
    if on_changed == "fail":
        raise SourceError(f"{message}; put it back, or set source.on_changed: reject (the sample becomes a reject)")
    return Reject(rejects.MISSING_IMAGE, message)


def _reread_changed(
    part: Part, samples: Sequence[IndexedSample], encoded: list[Encoded | None], reader: UnitReader
) -> dict[int, Reject]:
    """The samples whose bytes are no longer those that were indexed; each was read afresh before it is blamed."""
    changed: dict[int, Reject] = {}
    for index, sample in enumerate(samples):
        if not _is_as_indexed(encoded[index], sample):
            reader.close()
            encoded[index] = reader.read(part, [sample]).encoded[0] or b""
            if not _is_as_indexed(encoded[index], sample):
                changed[index] = Reject(rejects.CHECKSUM, "the bytes are no longer those that were indexed")
    return changed


def _is_as_indexed(data: Encoded | None, sample: IndexedSample) -> bool:
    return data is None or sha256_of(data) == sample.sha256


class _UnitPatches:
    """The patches of a unit's distinct images while they are made, one after the other."""

    def __init__(self, unit: Unit, preparation: Preparation) -> None:
        self._preparation = preparation
        patches = unit.patches - unit.clip_patches
        self._patches_PC = np.empty((patches, CHANNELS * preparation.geometry.patch_size**2), np.uint8)
        self._count = 0
        self._known: dict[str, PreparedSample] = {}
        self.grids: list[tuple[int, int, int]] = []
        self.samples: list[PreparedSample] = []

    def filled(self) -> Uint8:
        """uint8 [P, C]"""
        return self._patches_PC[: self._count]

    def add(self, sample: IndexedSample, data: bytes | None, lost: Reject | None) -> None:
        """Prepares the next sample, or takes its twin's patches. `lost`: what makes a reject of it, unread."""
        sound = lost is None and sample.status == rejects.OK
        if self._preparation.deduplicate and sound and sample.sha256 in self._known:
            self.samples.append(replace(self._known[sample.sha256], facts=sample))
            return
        try:
            result = self._prepare(sample, data, lost)
        except Reject as reject:
            result = PreparedSample(facts=sample, status=reject.reason, error=reject.message[:LONGEST_ERROR])
        self.samples.append(result)
        if sound and sample.sha256 is not None:
            self._known[sample.sha256] = result

    def _prepare(self, sample: IndexedSample, data: bytes | None, lost: Reject | None) -> PreparedSample:
        """Raises Reject."""
        geometry = self._preparation.geometry
        height, width, clamped = _target_size(sample, lost, geometry)
        grid = (1, height // geometry.patch_size, width // geometry.patch_size)
        rows_PC = self._patches_PC[self._count : self._count + grid[1] * grid[2]]
        assert data is not None
        prepare_into(rows_PC, data, sample, (height, width), self._preparation)
        self._count += len(rows_PC)
        self.grids.append(grid)
        return PreparedSample(
            facts=sample,
            status=rejects.OK,
            resized_width=width,
            resized_height=height,
            clamped=clamped,
            image=len(self.grids) - 1,
        )


def prepare_into(
    out_PC: Uint8, data: bytes, facts: IndexedSample, size: tuple[int, int], preparation: Preparation
) -> None:
    """Decodes, resizes and cuts one indexed image into its rows of the unit's patches.

    Args:
        out_PC: uint8 [P, C].
        size: resized height and width.

    Raises:
        Reject: the bytes cannot be decoded, or not to what their header says.
    """
    geometry = preparation.geometry
    pixels = preparation.images.pixels(facts.key, data, facts.orientation or 1)
    if pixels.shape[:2] != (facts.height, facts.width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise Reject(rejects.CORRUPT, f"decodes to {found}, its header says {facts.width}x{facts.height}")
    cut_patches(resize(pixels, *size), geometry.patch_size, geometry.merge_size, out_PC)


def _check_sound(sample: IndexedSample, lost: Reject | None) -> None:
    """Raises Reject: what the index says is wrong with a sample, or that it is lost."""
    if sample.status != rejects.OK:
        raise Reject(sample.status, sample.error or sample.status)
    if lost is not None:
        raise lost


def _target_size(sample: IndexedSample, lost: Reject | None, geometry: Geometry) -> tuple[int, int, str]:
    """Everything that can be said before decoding. Raises Reject."""
    _check_sound(sample, lost)
    assert sample.width is not None and sample.height is not None
    check_size(sample.width, sample.height, geometry)
    return target_size(sample.width, sample.height, geometry)
