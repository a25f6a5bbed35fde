"""Windows: the samples in a range of a tar's bytes, for drawing."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .. import rejects
from ..errors import DamagedPart
from ..storage.names import left_alone_in
from .drawing import Drawing, Drawn
from .media import video_named
from .tar import BLOCK, TarStream, walk
from .tar_samples import EACH, is_named, split_key, status_without_image, wanted_suffixes

SYNC_BYTES = 1 << 20
FIRST = 256  # members, of which is learnt how large they are


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A member of a sample. `image`: of what is one by its name. `inside`: its header begins in the range."""

    suffix: str
    inside: bool
    image: Drawn | None = None


def samples_in_range(path: str, first: int, last: int, drawing: Drawing) -> list[Drawn]:
    """The samples whose image's header begins in this range, or, of those without one, the first member's.

    A link is the image that it leads to where that was seen before it; else it counts as a reject.
    """
    wanted = wanted_suffixes(drawing.image_column, drawing.media)
    groups: dict[str, list[_Seen]] = {}
    by_name: dict[str, Drawn] = {}  # of the images seen, for links to them
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
                before, (key, suffix) = key, split_key(member.name, drawing.members)
                if not inside and key != before:
                    break
                if suffix and not left_alone_in(member.name):
                    video = video_named(member.name, drawing.media)
                    image = None if data is None else drawing.headers.drawn(data, video)
                    if data is None and member.name.lower().endswith(wanted):
                        image = by_name.get(str(member.link), Drawn(status=rejects.MISSING_IMAGE))
                    if image is not None:
                        by_name[member.name] = image
                    groups.setdefault(key, []).append(_Seen(suffix=suffix, inside=inside, image=image))
    if drawing.members == EACH:
        return [one.image for group in groups.values() for one in group if one.image is not None and one.inside]
    return list(_chosen(list(groups.values()), bool(first), drawing))


def _chosen(groups: Sequence[Sequence[_Seen]], cut: bool, drawing: Drawing) -> Iterator[Drawn]:
    """Each sample's image, as the index chooses it. `cut`: the first one may have begun before what was seen."""
    image_column = drawing.image_column
    with_image = [[one for one in group if one.image is not None] for group in groups]
    several = any(len(found) > 1 for found in with_image)
    by_name = any(sum(is_named(one.suffix, image_column) for one in found) == 1 for found in with_image[cut:])
    for number, (group, found) in enumerate(zip(groups, with_image, strict=True)):
        begun_before = cut and not number
        named = [one for one in found if is_named(one.suffix, image_column)]
        if len(found) == 1 and not (begun_before and several):
            named = found
        if len(named) == 1:
            if named[0].inside and named[0].image is not None:
                yield named[0].image
        elif found and not (begun_before and by_name):
            yield from (Drawn(status=rejects.MISSING_IMAGE) for one in found if one.inside)
        elif not begun_before and group[0].inside:
            yield Drawn(status=status_without_image((f"_.{one.suffix}" for one in group), drawing.media))


def bytes_of_first(path: str, drawing: Drawing) -> float:
    """How many bytes of a tar there are for each of its first images and videos, without reading these."""
    wanted = wanted_suffixes(drawing.image_column, drawing.media)
    found = end = 0
    with TarStream(path) as stream, suppress(DamagedPart):  # for the index to report
        for member, _ in walk(stream, wanted=()):
            end = member.offset + member.length
            found += member.name.lower().endswith(wanted)
            if found == FIRST:
                break
    return end / max(1, found)


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
