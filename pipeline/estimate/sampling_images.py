"""Sampled images: their headers, and the samples that a range of a tar holds, formed as the index forms them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from .. import rejects
from ..errors import DamagedPart
from ..index.write import is_named, split_key
from ..prepare.guard import ImageReader
from ..rejects import Reject
from ..source.image_formats import EXTENSIONS
from ..source.places import Place, read_place
from ..source.tar import BLOCK, TarStream, walk
from ..storage.files import READS_AT_ONCE, map_ahead

SYNC_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sample: `ok` with its size, or a reject's reason."""

    status: str
    width: int = 0
    height: int = 0


class DrawnImages(ImageReader):
    """Headers of images that were drawn."""

    def drawn(self, data: bytes | None) -> Drawn:
        if data is None:
            return Drawn(status=rejects.MISSING_IMAGE)
        try:
            header = self.header("", data)
        except Reject as reject:
            return Drawn(status=reject.reason)
        return Drawn(status=rejects.OK, width=header.width, height=header.height)

    def of_places(self, places: Sequence[Place]) -> list[Drawn]:
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            read = map_ahead(pool, lambda place: None if place.problem else read_place(place), places, READS_AT_ONCE)
            return [self.drawn(data) for data in read]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A member of a sample. `image`: of what is one by its name. `inside`: its header begins in the range."""

    suffix: str
    inside: bool
    image: Drawn | None = None


def samples_in_tar(path: str, first: int, last: int, images: DrawnImages, column: str) -> list[Drawn]:
    """The samples whose image's header begins in this range, or, of those without one, the first member's."""
    wanted = (*EXTENSIONS, "." + column.lower())
    groups: dict[str, list[_Seen]] = {}
    key = ""
    with TarStream(path) as stream:
        if first:
            start = _next_header(stream, first, last)
            if start is None:
                return []
            stream.seek(start)
        with suppress(DamagedPart):  # for the index to report
            for member, data in walk(stream, wanted):
                inside = member.offset - BLOCK < last
                before, (key, suffix) = key, split_key(member.name)
                if not inside and key != before:
                    break
                if suffix:
                    image = None if data is None else images.drawn(data)
                    if member.link is not None and member.name.lower().endswith(wanted):
                        image = Drawn(status=rejects.MISSING_IMAGE)
                    groups.setdefault(key, []).append(_Seen(suffix=suffix, inside=inside, image=image))
    return list(_chosen(list(groups.values()), bool(first), column))


def _chosen(groups: Sequence[Sequence[_Seen]], cut: bool, column: str) -> Iterator[Drawn]:
    """Each sample's image, as the index chooses it. `cut`: the first one may have begun before what was seen."""
    with_image = [[one for one in group if one.image is not None] for group in groups]
    several = any(len(found) > 1 for found in with_image)
    for number, (group, found) in enumerate(zip(groups, with_image, strict=True)):
        begun_before = cut and not number
        named = [one for one in found if is_named(one.suffix, column)]
        if len(found) == 1 and not (begun_before and several):
            named = found
        if len(named) == 1:
            if named[0].inside and named[0].image is not None:
                yield named[0].image
        elif not begun_before and group[0].inside:
            yield Drawn(status=rejects.MISSING_IMAGE)


def _next_header(stream: TarStream, first: int, last: int) -> int | None:
    """The first member's header that begins in this range, known by its checksum."""
    position = -(-first // BLOCK) * BLOCK
    stream.seek(position)
    while position < last and (data := stream.read(SYNC_BYTES)):
        for offset in range(0, len(data) - BLOCK + 1, BLOCK):
            if position + offset >= last:
                return None
            block = data[offset : offset + BLOCK]
            if block[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    continue
                return position + offset
        position += len(data)
    return None
