"""Samples of tars: the members of one key form one, as WebDataset has it; all of a tar, or those in a range of it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import rejects
from ..errors import DamagedPart, SourceError
from .drawing import Drawing, Drawn
from .image_formats import EXTENSIONS
from .sample import IndexedSample
from .tar import BLOCK, Member, TarStream, walk

if TYPE_CHECKING:
    from .format import Facts

SYNC_BYTES = 1 << 20


def split_key(name: str) -> tuple[str, str]:
    """A member's key and the rest: up to the first dot of its last path component, and what follows that dot."""
    folder, slash, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return folder + slash + key, suffix


def is_named(suffix: str, image_column: str) -> bool:
    """Whether `image_column` (`png`, `left`, `left.png`) names the member of this suffix."""
    return image_column in (suffix, suffix.rpartition(".")[0])


def wanted_suffixes(image_column: str) -> tuple[str, ...]:
    """The suffixes of members that may be images, in lower case."""
    return (*EXTENSIONS, "." + image_column.lower())


def may_hold_an_image(path: str, image_column: str) -> bool:
    """Whether a tar has an image; damage, and what cannot be read, is for the index to report."""
    suffixes = wanted_suffixes(image_column)
    try:
        with TarStream(path) as stream:
            return any(member.name.lower().endswith(suffixes) for member, _ in walk(stream, wanted=()))
    except (DamagedPart, SourceError):
        return True


@dataclass(kw_only=True)
class _Group:
    """The members of a tar that share a key, gathered while walking. `first` is the first one's offset."""

    first: int
    names: set[str] = field(default_factory=set)
    images: list[IndexedSample] = field(default_factory=list)
    duplicates: list[IndexedSample] = field(default_factory=list)
    links: list[IndexedSample] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)


def samples_of_tar(path: str, source: str, image_column: str, facts: Facts) -> Iterator[IndexedSample]:
    """Every sample of a tar, in the order of the images' bytes.

    Members need not be adjacent to form a sample; a second member of the same name is a duplicate.

    Raises:
        DamagedPart, SourceError: as `tar.walk`.
    """
    groups: dict[str, _Group] = {}
    wanted = wanted_suffixes(image_column)
    with TarStream(path) as stream:
        for member, data in walk(stream, wanted):
            key, suffix = split_key(member.name)
            if not suffix:
                continue  # webdataset knows no member without an extension
            group = groups.setdefault(key, _Group(first=member.offset))
            sample = _sample_of(member, key, source)
            if member.link is not None and member.name.lower().endswith(wanted):
                message = f"member {member.name} is a link to {member.link}, not an image"
                group.links.append(sample.rejected(rejects.MISSING_IMAGE, message))
            if data is not None:
                (group.duplicates if member.name in group.names else group.images).append(facts(sample, data))
            elif member.link is None and member.name not in group.names:
                group.others.append({"suffix": suffix, "offset": member.offset, "length": member.length})
            group.names.add(member.name)
    samples: list[IndexedSample] = []
    for key, group in groups.items():
        samples.append(replace(_choose(key, group, source, image_column), members=group.others or None))
        for duplicate in group.duplicates:
            message = f"member {duplicate.member} stands in the tar more than once"
            samples.append(duplicate.rejected(rejects.DUPLICATE_KEY, message))
    yield from sorted(samples, key=lambda sample: sample.offset)


def _sample_of(member: Member, key: str, source: str) -> IndexedSample:
    return IndexedSample(key=key, source=source, member=member.name, offset=member.offset, length=member.length)


def _choose(key: str, group: _Group, source: str, image_column: str) -> IndexedSample:
    """The image of a sample: the only one, or the one that `image_column` names (`png`, `left`, `left.png`)."""
    chosen = group.images
    if len(chosen) > 1:
        suffixes = [(split_key(str(sample.member))[1], sample) for sample in chosen]
        chosen = [sample for suffix, sample in suffixes if is_named(suffix, image_column)]
    if len(chosen) == 1:
        return chosen[0]
    if group.links and not group.images:
        return group.links[0]
    nothing = IndexedSample(key=key, source=source, offset=group.first)
    if group.images:
        names = ", ".join(split_key(str(sample.member))[1] for sample in group.images)
        message = f"{len(group.images)} images ({names}): choose one with source.image_column"
    else:
        message = f"no image among its members: {', '.join(sorted(group.names))}"
    return nothing.rejected(rejects.MISSING_IMAGE, message)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A member of a sample. `image`: of what is one by its name. `inside`: its header begins in the range."""

    suffix: str
    inside: bool
    image: Drawn | None = None


def samples_in_range(path: str, first: int, last: int, drawing: Drawing) -> list[Drawn]:
    """The samples whose image's header begins in this range, or, of those without one, the first member's."""
    wanted = wanted_suffixes(drawing.image_column)
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
                    image = None if data is None else drawing.headers.drawn(data)
                    if member.link is not None and member.name.lower().endswith(wanted):
                        image = Drawn(status=rejects.MISSING_IMAGE)
                    groups.setdefault(key, []).append(_Seen(suffix=suffix, inside=inside, image=image))
    return list(_chosen(list(groups.values()), bool(first), drawing.image_column))


def _chosen(groups: Sequence[Sequence[_Seen]], cut: bool, image_column: str) -> Iterator[Drawn]:
    """Each sample's image, as the index chooses it. `cut`: the first one may have begun before what was seen."""
    with_image = [[one for one in group if one.image is not None] for group in groups]
    several = any(len(found) > 1 for found in with_image)
    for number, (group, found) in enumerate(zip(groups, with_image, strict=True)):
        begun_before = cut and not number
        named = [one for one in found if is_named(one.suffix, image_column)]
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
