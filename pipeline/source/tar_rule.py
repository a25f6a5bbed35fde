"""Tar rule: whether the members of a tar form samples by WebDataset's rule, or each image is one; decided once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..errors import DamagedPart, SourceError
from .format import Columns, MediaRule, MembersRule
from .listing import FirstImages, Listing
from .media import BOTH, IMAGE, is_video
from .part import SourcePlace
from .tar import TarStream, walk
from .tar_samples import EACH, GROUPED, is_image, is_named, split_key

IMAGES_LOOKED_AT = 1000
BYTES_LOOKED_AT = 8 << 20  # no more than is fetched at once of an object
NAMES_SAID = 3


def first_images(listing: Listing, image_column: str, most: int = IMAGES_LOOKED_AT) -> FirstImages:
    """The first images of the first tar that has any. Damage, and what cannot be read, is for the index to report.

    Args:
        most: how many are asked for; where more were looked at before, those are given.
    """
    known = listing.first_images.get(image_column)
    if known is not None and (known.most >= most or not known.names):
        return known
    found = listing.first_images[image_column] = _look(listing, image_column, most)
    return found


def _look(listing: Listing, image_column: str, most: int) -> FirstImages:
    unsure = False
    for file in listing:
        names: list[str] = []
        try:
            names.extend(_image_names(listing.place, file.path, image_column, most))
        except (DamagedPart, SourceError):
            unsure = True
        if names:
            return FirstImages(tar=file.path, names=tuple(names), most=most, unsure=unsure)
    return FirstImages(most=most, unsure=unsure)


def members_rule(listing: Listing, columns: Columns) -> MembersRule:
    """Decides for a source of tars, by its first images."""
    found = first_images(listing, columns.image)
    if not found.names:
        return MembersRule(members=GROUPED, why="no image was seen")
    return rule_of(found.names, found.tar, columns.image)


def rule_of(names: Sequence[str], tar: str, image_column: str) -> MembersRule:
    """Decides by the names of some image members.

    WebDataset's rule is taken where it loses no image: no two of one key, or one of them chosen by `image_column`, or
    several under names that recur from key to key (`left.jpg` and `right.jpg`), which only WebDataset writes.
    """
    by_key: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        key, suffix = split_key(name)
        by_key.setdefault(key, []).append(suffix)
    seen = f"{len(names)} first images of {tar}"
    several = {key: suffixes for key, suffixes in by_key.items() if len(suffixes) > 1}
    if not several:
        return MembersRule(members=GROUPED, why=f"no two of the {seen} share a key")
    if all(sum(is_named(suffix, image_column) for suffix in suffixes) == 1 for suffixes in several.values()):
        return MembersRule(members=GROUPED, why=f"of each key's images in {tar} image_column {image_column} names one")
    suffixes = sorted({suffix for found in several.values() for suffix in found})
    some = ", ".join(suffixes[:NAMES_SAID]) + (", …" if len(suffixes) > NAMES_SAID else "")
    if len(suffixes) < len(several):
        return MembersRule(
            members=GROUPED,
            why=f"the keys of {tar} have the same images ({some}); choose one with source.image_column, or write each",
        )
    key, found = next(iter(several.items()))
    count = sum(map(len, several.values()))
    why = f"{count} of the {seen} share a key by WebDataset's rule ({key} has {len(found)}), as plain files do"
    return MembersRule(members=EACH, why=why)


def media_rule(listing: Listing, columns: Columns) -> MediaRule:
    """Decides what is looked for in tars, by the names in the first of them, in the last, and in one between.

    Clips that stand beside images, under their keys, are what they always were: members for carrying.
    """
    images: set[str] = set()
    videos: dict[str, str] = {}
    for path in _some_of([file.path for file in listing]):
        with suppress(DamagedPart, SourceError):  # for the index to report
            for name in _image_names(listing.place, path, columns.image, IMAGES_LOOKED_AT):
                key = f"{path}/{split_key(name)[0]}"
                if is_video(name, BOTH):
                    videos[key] = name
                else:
                    images.add(key)
    if beside := sorted(images & videos.keys()):
        name = videos[beside[0]]
        why = f"source.media: auto took image: {name} stands beside an image of its key; video takes the videos instead"
        return MediaRule(media=IMAGE, why=why)
    return MediaRule(media=BOTH if videos else IMAGE)


def _some_of(paths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(paths[number] for number in (0, len(paths) // 2, -1))) if paths else []


def _image_names(place: SourcePlace, path: str, image_column: str, most: int) -> Iterator[str]:
    """Raises DamagedPart, SourceError."""
    count = 0
    with TarStream(os.path.join(place.root, path)) as stream:
        for member, _ in walk(stream, wanted=()):
            if is_image(member.name, image_column, place.media):
                yield member.name
                count += 1
            if count == most or (count and stream.position > BYTES_LOOKED_AT):
                return
