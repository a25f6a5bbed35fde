"""Samples of tars, by one of two rules.

grouped  the members of one key form a sample, as WebDataset has it
each     every image is a sample, whatever its name
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import rejects
from ..errors import DamagedPart
from ..storage.names import left_alone_in
from .image_formats import NOT_DECODED
from .media import IMAGE, VIDEO, suffixes_of, video_named
from .sample import IndexedSample
from .tar import Member, TarStream, walk
from .tar_links import ends_of

if TYPE_CHECKING:
    from .format import Facts

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


def wanted_suffixes(image_column: str, media: str = IMAGE) -> tuple[str, ...]:
    """The suffixes of members that may be images, or what else is looked for, in lower case."""
    return (*suffixes_of(media), "." + image_column.lower())


def is_image(name: str, image_column: str, media: str = IMAGE) -> bool:
    """Whether a member is an image, or what else is looked for, by its name, and none that is left alone."""
    return name.lower().endswith(wanted_suffixes(image_column, media)) and not left_alone_in(name)


@dataclass(kw_only=True)
class _Group:
    """The members of a tar that share a key, gathered while walking.

    Attributes:
        first: the first one's offset.
        linked: images by way of links; their bytes stand elsewhere in the tar.
        lost: rejects: links that lead to no member, and sparse files.
    """

    first: int
    names: set[str] = field(default_factory=set)
    images: list[IndexedSample] = field(default_factory=list)
    duplicates: list[IndexedSample] = field(default_factory=list)
    linked: list[IndexedSample] = field(default_factory=list)
    lost: list[IndexedSample] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TarRule:
    """How a tar's members are taken.

    Attributes:
        source: the tar's path below the source's root.
        members: `grouped` or `each`.
        media: what is looked for.
    """

    source: str
    image_column: str
    members: str
    media: str = IMAGE

    @property
    def wanted(self) -> tuple[str, ...]:
        """The suffixes of what is looked for."""
        return wanted_suffixes(self.image_column, self.media)


def samples_of_tar(path: str, rule: TarRule, facts: Facts) -> Iterator[IndexedSample]:
    """Every sample of a tar, in the order of the images' bytes: a row or a reject for every image member.

    Members need not be adjacent to form a sample; a second member of the same name is a duplicate.

    Raises:
        DamagedPart: as `tar.walk`, when the samples that stand whole before the damage have been yielded.
        SourceError: as `tar.walk`.
    """
    groups: dict[str, _Group] = {}
    links: list[Member] = []
    damage: DamagedPart | None = None
    with TarStream(path) as stream:
        try:
            _gather(stream, groups, links, rule, facts)
        except DamagedPart as error:
            damage = error
            _drop_broken(stream, groups, rule)
        _follow(stream, groups, links, rule, facts)
    samples: list[IndexedSample] = []
    for key, group in groups.items():
        samples += [replace(sample, members=group.others or None) for sample in _samples_of(key, group, rule, facts)]
        for duplicate in group.duplicates:
            message = f"member {duplicate.member} stands in the tar more than once"
            samples.append(duplicate.rejected(rejects.DUPLICATE_KEY, message))
    yield from sorted(samples, key=lambda sample: sample.offset)
    if damage is not None:
        raise damage


def _gather(stream: TarStream, groups: dict[str, _Group], links: list[Member], rule: TarRule, facts: Facts) -> None:
    """Reads all members into their groups, but links. Raises DamagedPart, SourceError: `groups` has what was before."""
    wanted = rule.wanted
    for member, data in walk(stream, wanted):
        key, suffix = split_key(member.name, rule.members)
        if not suffix or left_alone_in(member.name):  # WebDataset knows no member without an extension
            facts.leave(member.name)
            continue
        group = groups.setdefault(key, _Group(first=member.offset))
        if member.link is not None:
            if member.name not in group.names:
                links.append(member)
            elif member.name.lower().endswith(wanted):
                group.duplicates.append(_sample_of(member, key, rule))
        elif data is not None:
            sample = _sample_of(member, key, rule)
            (group.duplicates if member.name in group.names else group.images).append(facts(sample, data))
        elif member.sparse:
            if member.name.lower().endswith(wanted):
                message = f"member {member.name} is a sparse file, whose bytes do not lie together in the tar"
                group.lost.append(_sample_of(member, key, rule).rejected(rejects.MISSING_IMAGE, message))
            else:
                facts.leave(member.name)
        elif member.name not in group.names:
            group.others.append({"suffix": suffix, "offset": member.offset, "length": member.length})
        group.names.add(member.name)


def _follow(stream: TarStream, groups: dict[str, _Group], links: Sequence[Member], rule: TarRule, facts: Facts) -> None:
    """Makes of each link what it leads to: an image, or what stands beside one. Raises DamagedPart, SourceError."""
    wanted = rule.wanted

    def known(name: str) -> Member | None:
        return _member_of(groups, name, rule)

    unread: list[tuple[Member, Member]] = []
    for link, target in ends_of(stream, links, known):
        key, suffix = split_key(link.name, rule.members)
        group = groups.get(key)
        if group is None:  # a damage has taken it
            continue
        sample = _sample_of(link, key, rule)
        if not link.name.lower().endswith(wanted):
            if target is not None:
                group.others.append({"suffix": suffix, "offset": target.offset, "length": target.length})
        elif target is None:
            message = f"member {link.name} is a link to {link.link}, which is no file of the tar"
            group.lost.append(sample.rejected(rejects.MISSING_IMAGE, message))
        elif image := _image_of(groups, target.name, rule):
            group.linked.append(replace(image, key=sample.key, member=sample.member))
        else:
            unread.append((link, target))
    for link, target in sorted(unread, key=lambda one: one[1].offset):  # a compressed tar is read forwards
        key = split_key(link.name, rule.members)[0]
        sample = replace(_sample_of(link, key, rule), offset=target.offset, length=target.length)
        stream.seek(target.offset)
        groups[key].linked.append(facts(sample, stream.read_exactly(target.length, f"member {target.name!r}")))


def _image_of(groups: dict[str, _Group], name: str, rule: TarRule) -> IndexedSample | None:
    group = groups.get(split_key(name, rule.members)[0])
    return next((image for image in group.images if image.member == name), None) if group else None


def _member_of(groups: dict[str, _Group], name: str, rule: TarRule) -> Member | None:
    """The first regular member of a name, of those that are in groups."""
    if image := _image_of(groups, name, rule):
        return Member(name=name, offset=image.offset, length=image.length)
    key, suffix = split_key(name, rule.members)
    for other in groups[key].others if key in groups else ():
        if other["suffix"] == suffix:
            return Member(name=name, offset=other["offset"], length=other["length"])
    return None


def _sample_of(member: Member, key: str, rule: TarRule) -> IndexedSample:
    """A member as a sample of which nothing but its place is known."""
    name = member.name if rule.members == EACH else key
    return IndexedSample(
        key=name,
        source=rule.source,
        member=member.name,
        offset=member.offset,
        length=member.length,
        video=video_named(member.name, rule.media),
    )


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
    return {kind.rpartition(".")[0] + "." if f".{kind}".endswith(suffixes_of(rule.media)) else kind for kind in kinds}


def _samples_of(key: str, group: _Group, rule: TarRule, facts: Facts) -> list[IndexedSample]:
    """A group's samples: of `each` every image; else the chosen one, or a reject for every image that could be it."""
    images = [*group.images, *group.linked]
    if rule.members == EACH:
        if not images and not group.lost:
            for name in group.names:
                facts.leave(name)
        return [*images, *group.lost]
    chosen = [one for one in images if len(images) == 1 or is_named(split_key(str(one.member))[1], rule.image_column)]
    if len(chosen) == 1:
        return chosen + [_by_member(one) for one in group.lost]
    if images:
        names = ", ".join(split_key(str(one.member))[1] for one in images)
        message = (
            f"{len(images)} images of the key {key} ({names}): choose one with source.image_column, or take all "
            "with source.members: each"
        )
        chosen = group.images if len(group.images) == 1 else []  # links beside an image are other names
        unchosen = [
            replace(one, sha256=None).rejected(rejects.MISSING_IMAGE, message) for one in images if one not in chosen
        ]
        return chosen + [_by_member(one) for one in unchosen + group.lost]
    if group.lost:
        return [group.lost[0], *map(_by_member, group.lost[1:])]
    nothing = IndexedSample(key=key, source=rule.source, offset=group.first)
    message = f"no image among its members: {', '.join(sorted(group.names))}"
    return [nothing.rejected(status_without_image(group.names, rule.media), message)]


def status_without_image(names: Iterable[str], media: str = IMAGE) -> str:
    """The status of a sample of these members: text alone is no reject, an image of another format, or name, is."""
    endings = [os.path.splitext(name.lower())[1].strip() for name in names]
    named = suffixes_of(media) if media == VIDEO else (*suffixes_of(media), *NOT_DECODED)
    return rejects.MISSING_IMAGE if any(one in named for one in endings) else rejects.NO_IMAGE


def _by_member(sample: IndexedSample) -> IndexedSample:
    """The same with its member's whole name as its key: the group's own is another's, or nobody's."""
    return replace(sample, key=str(sample.member))
