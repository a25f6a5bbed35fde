"""Preparing, measured: what one core of this machine takes to make patches of some of a source's images and clips.

It goes the way that a preparer goes: decode, resize, cut. Reading the bytes is left out: it waits, and takes no core.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import SourceError
from ..grid import Geometry
from ..index.read import read_index_rows
from ..index.video_facts import header_of, plan_of, seconds_of
from ..prepare.decode import CHANNELS, Uint8
from ..prepare.guard import ImageReader
from ..prepare.patches import cut_patches, resize, target_size
from ..prepare.video import write_frame
from ..rejects import OK, Reject
from ..sampling import TEMPORAL
from ..source.format import UnitReader
from ..source.formats import format_named
from ..source.frame_bytes import split_frames
from ..source.plan import Plan
from ..source.sample import IndexedSample
from ..storage.large import Encoded
from .sampling import Specimen, has_room

IMAGES, CLIPS = 32, 8  # specimens of a source
PARTS, ROWS_LOOKED_AT = 8, 2000
SECONDS = 10.0  # that measuring takes of each kind; of a clip that is longer than that, as far as one came


@dataclass(frozen=True, kw_only=True)
class PrepareRates:
    """Seconds of one core, for an image and for a second of film; None where the source has none that can be made.

    Attributes:
        images, clips: how many were measured.
    """

    image_seconds: float | None
    film_second_seconds: float | None
    images: int
    clips: int


class _Enough(Exception):
    """The time for one clip is over."""


def measured(specimens: Sequence[Specimen], geometry: Geometry, seconds: float = SECONDS) -> PrepareRates:
    """Prepares specimens, in their order, until so many seconds have passed for images, and again for clips."""
    import torch  # here: a plan without measuring has no use for it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reader = ImageReader()
    try:
        images = _spent([one for one in specimens if one.sample.video is None], geometry, reader, seconds)
        clips = _spent([one for one in specimens if one.sample.video is not None], geometry, reader, seconds)
    finally:
        torch.set_num_threads(threads)
    return PrepareRates(
        image_seconds=images.seconds / images.amount if images.amount else None,
        film_second_seconds=clips.seconds / clips.amount if clips.amount else None,
        images=images.count,
        clips=clips.count,
    )


@dataclass(kw_only=True)
class _Spent:
    """Seconds that so many specimens took. `amount`: images, or seconds of film."""

    count: int = 0
    amount: float = 0.0
    seconds: float = 0.0


def _spent(specimens: Sequence[Specimen], geometry: Geometry, reader: ImageReader, seconds: float) -> _Spent:
    spent = _Spent()
    for number, specimen in enumerate([*specimens[:1], *specimens]):  # the first one also loads libraries
        started = time.perf_counter()
        try:
            if specimen.sample.video is None:
                amount = _image(specimen, geometry, reader)
            else:
                amount = _clip(specimen, geometry, reader, started + seconds)
        except Reject:
            continue
        if not amount:
            continue  # frames of no known rate
        if number or time.perf_counter() - started > seconds:
            spent.seconds += time.perf_counter() - started
            spent.amount += amount
            spent.count += 1
        if spent.seconds > seconds:
            break
    return spent


def _image(specimen: Specimen, geometry: Geometry, reader: ImageReader) -> float:
    """Makes an image's patches. Returns 1: an image. Raises Reject."""
    sample, patch = specimen.sample, geometry.patch_size
    assert sample.width is not None and sample.height is not None
    height, width, _ = target_size(sample.width, sample.height, geometry)
    rows_PC = np.empty(((height // patch) * (width // patch), CHANNELS * patch**2), np.uint8)
    assert isinstance(specimen.data, bytes)
    pixels = reader.pixels(sample.key, specimen.data, sample.orientation or 1)
    cut_patches(resize(pixels, height, width), patch, geometry.merge_size, rows_PC)
    return 1.0


def _clip(specimen: Specimen, geometry: Geometry, reader: ImageReader, until: float) -> float:
    """Makes a clip's patches, pair after pair. Returns the seconds of film that they are of. Raises Reject."""
    sample, video, sampling = specimen.sample, specimen.sample.video, geometry.video
    assert video is not None and sampling is not None and sample.width is not None and sample.height is not None
    plan = plan_of(video, sample.width, sample.height, geometry)
    wanted = np.unique(plan.frames)
    rows_PC = np.empty((plan.grid[1] * plan.grid[2], sampling.row_bytes), np.uint8)
    done = 0

    def take(index: int, pixels: Uint8) -> None:
        nonlocal done
        write_frame(pixels, plan, sampling, rows_PC, [done % TEMPORAL])
        done += 1
        if time.perf_counter() > until:
            raise _Enough

    with suppress(_Enough):
        if sample.of_frames:
            assert isinstance(specimen.data, bytes)
            for position, frame in enumerate(split_frames(specimen.data)):
                take(position, reader.still(sample.key, frame))
        else:
            reader.frames(sample.key, specimen.data, header_of(sample), wanted, take)
    return seconds_of(video.start, video.end, video.fps, video.duration) * done / len(wanted)


def specimens_of(plan: Plan) -> list[Specimen]:
    """Some images and clips of a planned source with their bytes, spread over its parts."""
    planned = plan.planned
    assert planned is not None
    reader: UnitReader = format_named(planned.format).reader(planned.columns)
    parts = sorted({part * max(1, plan.num_parts - 1) // max(1, PARTS - 1) for part in range(PARTS)})
    parts = [part for part in parts if part < plan.num_parts]
    found: list[Specimen] = []
    try:
        for part in parts:
            rows = [row for row in read_index_rows(plan.index_path(part), 0, ROWS_LOOKED_AT) if row.status == OK]
            for media, most in (("image", IMAGES), ("video", CLIPS)):
                of_media = [row for row in rows if row.media == media]
                for sample in _spread(of_media, -(-most // len(parts))):
                    if has_room(found, media, sample.length, most):
                        data = _bytes_of(plan, part, sample, reader)
                        found += [] if data is None else [Specimen(sample=sample, data=data)]
    finally:
        reader.close()
    return found


def _bytes_of(plan: Plan, part: int, sample: IndexedSample, reader: UnitReader) -> Encoded | None:
    try:
        return reader.read(plan.part(part), [sample]).encoded[0]
    except SourceError:
        return None  # it is for a run to report


def _spread(samples: Sequence[IndexedSample], count: int) -> list[IndexedSample]:
    """So many of these, in even steps."""
    return [samples[number * len(samples) // count] for number in range(count)] if len(samples) > count else [*samples]
