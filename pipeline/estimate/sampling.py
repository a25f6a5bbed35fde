"""Sampling: what a whole source would give, from the headers of some samples, with its uncertainty. Writes nothing.

How samples are drawn is each format's own (`source/formats/`); what a drawn image's header says is found here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import pyarrow as pa

from .. import rejects
from ..errors import DamagedPart, RequestError, listing_error
from ..index.headers import read_header
from ..index.video_facts import completed, read_clip_header
from ..prepare.guard import GuardedReader
from ..rejects import Reject
from ..source.drawing import DRAWS, Drawing, Drawn, Draws
from ..source.format import Columns, MembersRule
from ..source.formats import format_named
from ..source.listing import Listing
from ..source.named_image import NamedImage
from ..source.sample import IndexedSample, VideoFacts
from ..storage.files import READS_AT_ONCE, map_ahead
from ..storage.large import Encoded

CLIPS_AT_ONCE = 4  # whole files in memory
SPECIMEN_BYTES = 1 << 30  # of all that are held, beyond the first of its kind
NOBODY = IndexedSample(key="a sample", source="")  # of whom nothing but the bytes matters


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A sample with its bytes, for measuring."""

    sample: IndexedSample
    data: Encoded


def has_room(specimens: Sequence[Specimen], media: str, length: int, most: int) -> bool:
    """Whether one more image, or clip, of so many bytes may be held: of `most` of its kind."""
    of_kind = sum(one.sample.media == media for one in specimens)
    held = sum(len(one.data) for one in specimens)
    return of_kind < most and (not of_kind or held + length <= SPECIMEN_BYTES)


class Headers:
    """Reads headers: of images in this process, of clips in a child process, which may die.

    Args:
        sample_seconds: the time that a clip's header may take; None: no limit.
        kept: how many images and how many clips are kept as specimens: the first ones.
    """

    def __init__(self, sample_seconds: float | None = None, kept: int = 0) -> None:
        self._guarded = GuardedReader(sample_seconds)
        self._lock = Lock()  # images of rows are read by several threads
        self._kept = kept
        self.specimens: list[Specimen] = []

    def close(self) -> None:
        """Ends the child process, if there is one."""
        self._guarded.close()

    def drawn(self, data: Encoded | None, video: VideoFacts | None = None) -> Drawn:
        if data is None:
            return Drawn(status=rejects.MISSING_IMAGE)
        try:
            sample = self._read(data) if video is None else self._read_clip(data, video)
        except Reject as reject:
            return Drawn(status=reject.reason)
        self._keep(sample, data)
        return Drawn(status=rejects.OK, width=sample.width or 0, height=sample.height or 0, video=sample.video)

    def drawn_of(self, images: Sequence[NamedImage]) -> list[Drawn]:
        at_once = CLIPS_AT_ONCE if any(image.video for image in images) else READS_AT_ONCE
        with ThreadPoolExecutor(at_once) as pool:
            return list(map_ahead(pool, self._drawn_image, images, at_once))

    def _drawn_image(self, image: NamedImage) -> Drawn:
        if image.problem:
            return Drawn(status=image.reason)
        try:
            return self.drawn(image.read(), image.video)
        except Reject as reject:
            return Drawn(status=reject.reason)

    def _read(self, data: Encoded) -> IndexedSample:
        assert isinstance(data, bytes)  # of an image
        header = read_header(data)
        return replace(NOBODY, width=header.width, height=header.height, orientation=header.orientation)

    def _read_clip(self, data: Encoded, video: VideoFacts) -> IndexedSample:
        sample = replace(NOBODY, video=video)
        with self._lock:
            return completed(sample, read_clip_header(sample, data, self._guarded))

    def _keep(self, sample: IndexedSample, data: Encoded) -> None:
        with self._lock:
            if has_room(self.specimens, sample.media, len(data), self._kept):
                self.specimens.append(Specimen(sample=sample, data=data))


def draw(
    listing: Listing, count: int, seed: int, columns: Columns, members: str = "grouped", headers: Headers | None = None
) -> tuple[Draws, str]:
    """Draws `count` samples, where the source has them so that they can be drawn one by one.

    Args:
        members: as of `source.members`.
        headers: reads them; the caller closes it.

    Returns:
        The draws, and what `members: auto` came to, in a line.

    Raises:
        RequestError: a file cannot be read, or no image was found.
    """
    source_format, rule = format_named(listing.place.format), MembersRule(members=members)
    if members == "auto":
        rule = source_format.members_rule(listing, columns)
    drawing = Drawing(
        count=count,
        generator=random.Random(seed),
        headers=headers or Headers(),
        image_column=columns.image,
        members=rule.members,
        media=columns.media,
        video_column=columns.video,
    )
    try:
        draws = source_format.draw(listing, drawing)
    except (OSError, DamagedPart, pa.ArrowException) as error:
        raise listing_error(f"source: cannot be sampled: {error}", error) from error
    except KeyError as error:
        raise RequestError(f"source: cannot be sampled: a file has no column {error}") from error
    if not draws.samples:
        raise RequestError(f"source: no image was found in {DRAWS} places of {listing.count} files")
    return draws, rule.said
