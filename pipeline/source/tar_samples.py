"""Samples of tars, by one of two rules: all of a tar, or those in a range of it.

grouped  the members of one key form a sample, as WebDataset has it
each     every image is a sample, whatever its name
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import rejects
from ..errors import DamagedPart
from ..storage.names import left_alone_in
from .drawing import Drawing, Drawn
from .image_formats import EXTENSIONS, NOT_DECODED
from .sample import IndexedSample
from .tar import BLOCK, TarStream, walk

if TYPE_CHECKING:
    from .format import Facts

SYNC_BYTES = 1 << 20
GROUPED, EACH = "grouped", "each"


def split_key(name: str, rule: str = GROUPED) -> tuple[str, str]:
    """Divides a member's name into what the members of one sample share, and the rest.

    Args:
        rule: `grouped` divides at the first dot of the last path component, as WebDataset does; `each` at the last.
    """
    folder, slash, last = name.rpartition("/")
    if rule == EACH:
        key, dot, suffix = last.rpartition(".")
        return (folder + slash + key, suffix) if dot else (name, "")
    key, _, suffix = last.partition(".")
    return folder + slash + key, suffix


def is_named(suffix: str, image_column: str) -> bool:
    """Whether `image_column` (`png`, `left`, `left.png`) names the member of this suffix, in any case."""
    suffix = suffix.lower()
    return image_column.lower() in (suffix, suffix.rpartition(".")[0])


def wanted_suffixes(image_column: str) -> tuple[str, ...]:
    """The suffixes of members that may be images, in lower case."""
    return (*EXTENSIONS, "." + image_column.lower())


def is_image(name: str, image_column: str) -> bool:
    """Whether a member is an image by its name, and none that is left alone."""
    return name.lower().endswith(wanted_suffixes(image_column)) and not left_alone_in(name)


@dataclass(kw_only=True)
class _Group:
    """The members of a tar that share a key, gathered while walking. `first` is the first one's offset."""

    first: int
    names: set[str] = field(default_factory=set)
    images: list[IndexedSample] = field(default_factory=list)
    duplicates: list[IndexedSample] = field(default_factory=list)
    links: list[IndexedSample] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TarRule:
    """How a tar's members are taken.

    Attributes:
        source: the tar's path below the source's root.
        members: `grouped` or `each`.
    """

    source: str
    image_column: str
    members: str


def samples_of_tar(path: str, rule: TarRule, facts: Facts) -> Iterator[IndexedSample]:
    """Every sample of a tar, in the order of the images' bytes: a row or a reject for every image member.

    Members need not be adjacent to form a sample; a second member of the same name is a duplicate.

    Raises:
        DamagedPart: as `tar.walk`, when the samples that stand whole before the damage have been yielded.
        SourceError: as `tar.walk`.
    """
    groups: dict[str, _Group] = {}
    damage: DamagedPart | None = None
    with TarStream(path) as stream:
        try:
            _gather(stream, groups, rule, facts)
        except DamagedPart as error:
            damage = error
            _drop_broken(stream, groups, rule)
    samples: list[IndexedSample] = []
    for key, group in groups.items():
        samples += [replace(sample, members=group.others or None) for sample in _samples_of(key, group, rule, facts)]
        for duplicate in group.duplicates:
            message = f"member {duplicate.member} stands in the tar more than once"
            samples.append(duplicate.rejected(rejects.DUPLICATE_KEY, message))
    yield from sorted(samples, key=lambda sample: sample.offset)
    if damage is not None:
        raise damage


def _gather(stream: TarStream, groups: dict[str, _Group], rule: TarRule, facts: Facts) -> None:
    """Reads all members into their groups. Raises DamagedPart, SourceError: `groups` has what was read by then."""
    wanted = wanted_suffixes(rule.image_column)
    for member, data in walk(stream, wanted):
        key, suffix = split_key(member.name, rule.members)
        if not suffix or left_alone_in(member.name):  # WebDataset knows no member without an extension
            facts.leave(member.name)
            continue
        group = groups.setdefault(key, _Group(first=member.offset))
        name = member.name if rule.members == EACH else key
        sample = IndexedSample(
            key=name, source=rule.source, member=member.name, offset=member.offset, length=member.length
        )
        if member.link is not None:
            if member.name.lower().endswith(wanted):
                message = f"member {member.name} is a link to {member.link}, not an image"
                group.links.append(sample.rejected(rejects.MISSING_IMAGE, message))
        elif data is not None:
            (group.duplicates if member.name in group.names else group.images).append(facts(sample, data))
        elif member.name not in group.names:
            group.others.append({"suffix": suffix, "offset": member.offset, "length": member.length})
        group.names.add(member.name)


def _drop_broken(stream: TarStream, groups: dict[str, _Group], rule: TarRule) -> None:
    """Leaves the groups out that a damage has, or may have, taken members from."""
    if stream.within is not None:
        groups.pop(split_key(stream.within, rule.members)[0], None)
    elif groups and not stream.ended:
        # Its next member is not known: the last group is whole if it has what the one before it has.
        *before, last = groups
        if before and not _kinds(groups[last], rule) >= _kinds(groups[before[-1]], rule):
            del groups[last]


def _kinds(group: _Group, rule: TarRule) -> set[str]:
    """The suffixes of a group's members in lower case; one image format is as good as another."""
    kinds = (split_key(name, rule.members)[1].lower() for name in group.names)
    return {kind.rpartition(".")[0] + "." if f".{kind}".endswith(EXTENSIONS) else kind for kind in kinds}


def _samples_of(key: str, group: _Group, rule: TarRule, facts: Facts) -> list[IndexedSample]:
    """A group's samples: of `each` every image; else the chosen one, or a reject for every image that could be it."""
    if rule.members == EACH:
        if not group.images and not group.links:
            for name in group.names:
                facts.leave(name)
        return [*group.images, *group.links]
    images = group.images
    if len(images) > 1:
        images = [one for one in images if is_named(split_key(str(one.member))[1], rule.image_column)]
    if len(images) == 1:
        return images + [_by_member(link) for link in group.links]
    if group.images:
        names = ", ".join(split_key(str(one.member))[1] for one in group.images)
        message = (
            f"{len(group.images)} images of the key {key} ({names}): choose one with source.image_column, or take all "
            "with source.members: each"
        )
        unchosen = [replace(one, sha256=None).rejected(rejects.MISSING_IMAGE, message) for one in group.images]
        return [_by_member(one) for one in unchosen + group.links]
    if group.links:
        return [group.links[0], *map(_by_member, group.links[1:])]
    nothing = IndexedSample(key=key, source=rule.source, offset=group.first)
    message = f"no image among its members: {', '.join(sorted(group.names))}"
    return [nothing.rejected(_status_without_image(group.names), message)]


def _status_without_image(names: Iterable[str]) -> str:
    """The status of a sample of these members: text alone is no reject, an image of another format, or name, is."""
    endings = [os.path.splitext(name.lower())[1].strip() for name in names]
    return rejects.MISSING_IMAGE if any(one in (*EXTENSIONS, *NOT_DECODED) for one in endings) else rejects.NO_IMAGE


def _by_member(sample: IndexedSample) -> IndexedSample:
    """The same with its member's whole name as its key: the group's own is another's, or nobody's."""
    return replace(sample, key=str(sample.member))


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
                before, (key, suffix) = key, split_key(member.name, drawing.members)
                if not inside and key != before:
                    break
                if suffix and not left_alone_in(member.name):
                    image = None if data is None else drawing.headers.drawn(data)
                    if member.link is not None and member.name.lower().endswith(wanted):
                        image = Drawn(status=rejects.MISSING_IMAGE)
                    groups.setdefault(key, []).append(_Seen(suffix=suffix, inside=inside, image=image))
    if drawing.members == EACH:
        return [one.image for group in groups.values() for one in group if one.image is not None and one.inside]
    return list(_chosen(list(groups.values()), bool(first), drawing.image_column))


def _chosen(groups: Sequence[Sequence[_Seen]], cut: bool, image_column: str) -> Iterator[Drawn]:
    """Each sample's image, as the index chooses it. `cut`: the first one may have begun before what was seen."""
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
            yield Drawn(status=_status_without_image(f"_.{one.suffix}" for one in group))


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
