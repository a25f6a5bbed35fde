"""Sampling: what a whole source would give, from the headers of some samples, with its uncertainty. Writes nothing.

How samples are drawn is each format's own (`source/formats/`); what a drawn image's header says is found here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from .. import rejects
from ..errors import DamagedPart, RequestError, listing_error
from ..index.headers import read_header
from ..rejects import Reject
from ..source.drawing import DRAWS, Drawing, Drawn, Draws
from ..source.format import Columns, MembersRule
from ..source.formats import format_named
from ..source.listing import Listing
from ..source.named_image import NamedImage
from ..storage.files import READS_AT_ONCE, map_ahead


class Headers:
    """Reads the headers of images that were drawn, in this process."""

    def drawn(self, data: bytes | None) -> Drawn:
        if data is None:
            return Drawn(status=rejects.MISSING_IMAGE)
        try:
            header = read_header(data)
        except Reject as reject:
            return Drawn(status=reject.reason)
        return Drawn(status=rejects.OK, width=header.width, height=header.height)

    def drawn_of(self, images: Sequence[NamedImage]) -> list[Drawn]:
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            read = map_ahead(pool, self._drawn_image, images, READS_AT_ONCE)
            return list(read)

    def _drawn_image(self, image: NamedImage) -> Drawn:
        if image.problem:
            return Drawn(status=image.reason)
        try:
            data = image.read()
        except Reject as reject:
            return Drawn(status=reject.reason)
        assert isinstance(data, bytes)  # what is drawn is images
        return self.drawn(data)


def draw(listing: Listing, count: int, seed: int, image_column: str, members: str = "grouped") -> tuple[Draws, str]:
    """Draws about `count` samples, at least one a draw.

    Args:
        members: as of `source.members`.

    Returns:
        The draws, and what `members: auto` came to, in a line.

    Raises:
        RequestError: a file cannot be read, or no image was found.
    """
    source_format, rule = format_named(listing.place.format), MembersRule(members=members)
    if members == "auto":
        rule = source_format.members_rule(listing, Columns(image=image_column))
    drawing = Drawing(
        count=max(count, DRAWS),
        generator=random.Random(seed),
        headers=Headers(),
        image_column=image_column,
        members=rule.members,
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
