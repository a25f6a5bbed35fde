"""WebDataset: tars, plain or gzipped, one a part, of samples by WebDataset's rule or of plain files (`tar_samples`)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa

from ...errors import RequestError, SourceError, source_error
from ...storage.large import Encoded
from ..carried_values import Carried, carried_of_rows
from ..drawing import Draw, Drawing, Draws, wrapped
from ..format import Columns, Facts, MediaRule, MembersRule, SourceFormat, UnitBytes
from ..found_columns import FoundColumn, held_by
from ..listing import Listing
from ..media import IMAGE, VIDEO, suffixes_of
from ..members import members_schema, refuse_absent, wanted_members
from ..part import Part, SourceFile
from ..planned import check_unchanged, read_planned
from ..sample import IndexedSample
from ..tar import COMPRESSED_ELSEWHERE, GZIP_SUFFIXES, TarStream, walk
from ..tar_rule import first_images, media_rule, members_rule
from ..tar_samples import TarRule, samples_of_tar, split_key
from ..tar_windows import bytes_of_first, samples_in_range

# How far from a unit's images a carried member may stand to be read in one range with them.
BESIDE_BYTES = 16 << 20
# Of tars that are looked at for a carried member that none of them may have.
MEMBERS_LOOKED_AT, BYTES_LOOKED_AT = 10_000, 1 << 30
MEMBERS_SHOWN = 100  # that are looked at for the kinds that there are
# The least that is read of a tar at a time; and how many times as many samples as are wanted lie there, as a rule.
MIN_WINDOW_BYTES, WIDER = 64 << 10, 1.5


class WebDataset(SourceFormat):
    """See the module."""

    name = "webdataset"
    suffixes = (".tar", *GZIP_SUFFIXES)
    takes_any_name = False

    def __init__(self, beside_bytes: int = BESIDE_BYTES) -> None:
        self._beside_bytes = beside_bytes

    def refuses(self, path: str) -> str:
        unreadable = path.lower().endswith(COMPRESSED_ELSEWHERE)
        return "of the compressed tars only .tar.gz and .tgz can be read" if unreadable else ""

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        found = first_images(listing, columns.image, most=1)
        if not found.names and not found.unsure:
            media = listing.place.media
            what = {IMAGE: "image", VIDEO: "video"}.get(media, "image or video")
            raise RequestError(f"source.uri: {uri} holds no {what} ({', '.join(suffixes_of(media))}) in any tar")

    def media_rule(self, listing: Listing, columns: Columns) -> MediaRule:
        return media_rule(listing, columns)

    def members_rule(self, listing: Listing, columns: Columns) -> MembersRule:
        return members_rule(listing, columns)

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        for file in part.files:
            check_unchanged(part.root, file)
            rule = TarRule(source=file.path, image_column=columns.image, members=part.members, media=columns.media)
            yield from samples_of_tar(os.path.join(part.root, file.path), rule, facts)

    def reader(self, columns: Columns) -> TarReader:
        return TarReader(self._beside_bytes)

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        if decided is None:
            _refuse_absent(names, [os.path.join(listing.place.root, file.path) for file in listing])
        return members_schema(names)

    def columns_found(self, listing: Listing) -> list[FoundColumn]:
        path = os.path.join(listing.place.root, next(iter(listing)).path)
        with TarStream(path) as stream:
            members = itertools.islice(walk(stream, wanted=()), MEMBERS_SHOWN)
            suffixes = dict.fromkeys(split_key(member.name)[1].lower() for member, _ in members)
        return [FoundColumn(name=name, kind="member", holds=held_by(f".{name}")) for name in suffixes if name]

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """The members whose headers begin in a window of bytes, anywhere in any of the tars; compressed, whole tars.

        Wherever a window starts, a byte of any file is in it with the same probability: it goes on at the start.
        """
        return Draws(draws=tuple(_draws(listing, drawing)), files=listing.count)


def _refuse_absent(names: Sequence[str], paths: Sequence[str]) -> None:
    """Raises RequestError: no member ends so, of all that there are; of very many one that is rare is believed."""
    endings: set[str] = set()
    count = 0
    for path in paths:
        with suppress(OSError, SourceError), TarStream(path) as stream:  # for the index to report
            for member, _ in walk(stream, wanted=()):
                endings.add(member.name.lower().rpartition(".")[2])
                count += 1
                if endings.issuperset(name.lower().rpartition(".")[2] for name in names):
                    return
                if count >= MEMBERS_LOOKED_AT or member.offset > BYTES_LOOKED_AT:
                    return
    refuse_absent(names, endings, "member")


def _window_bytes(path: str, drawing: Drawing) -> int:
    """How much is read at a time: it follows from how far apart the first images and videos are."""
    first = bytes_of_first(path, drawing)
    return max(MIN_WINDOW_BYTES, int(WIDER * max(drawing.sizes) * first))


class TarReader:
    """Reads one range of a tar per unit. Keeps a compressed tar open, so that the next unit reads on."""

    def __init__(self, beside_bytes: int) -> None:
        self._beside_bytes = beside_bytes
        self._tar: TarStream | None = None

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        (file,) = part.files
        members = [wanted_members(sample.members, suffixes) for sample in samples]
        images = [(sample.offset, sample.length) for sample in samples if sample.sha256 is not None]
        ranges = images + [(member["offset"], member["length"]) for some in members for member in some.values()]
        if not ranges:
            check_unchanged(part.root, file)
            return UnitBytes([None] * len(samples), [{} for _ in samples])
        start, end = self._range(images or ranges[:1], ranges)
        data = memoryview(self._read_range(part.root, file, start, end))

        def bytes_at(offset: int, length: int) -> bytes:
            if start <= offset and offset + length <= end:
                return bytes(data[offset - start :][:length])
            return self._read_range(part.root, file, offset, offset + length)  # a member far from its image

        found = [
            {name: bytes_at(member["offset"], member["length"]) for name, member in some.items()} for some in members
        ]
        encoded: list[Encoded | None] = [
            None if sample.sha256 is None else bytes_at(sample.offset, sample.length) for sample in samples
        ]
        return UnitBytes(encoded, found)

    def _range(self, images: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """From the first to the last byte of the images, and of what stands beside them."""
        start = min(offset for offset, _ in images)
        end = max(offset + length for offset, length in images)
        near = [
            (offset, offset + length)
            for offset, length in ranges
            if start - self._beside_bytes <= offset and offset + length <= end + self._beside_bytes
        ]
        return min(start, *(first for first, _ in near)), max(end, *(last for _, last in near))

    def _read_range(self, root: str, file: SourceFile, start: int, end: int) -> bytes:
        """Raises SourceError: the file has changed, cannot be read, or ends before."""
        path = os.path.join(root, file.path)
        if path.lower().endswith(GZIP_SUFFIXES):
            check_unchanged(root, file)
            try:
                tar = self._open(path, start)
                tar.seek(start)
                return tar.read_exactly(end - start, "a unit's range")
            except SourceError as error:
                self.close()  # where the stream stands is not known any more
                raise source_error(str(error), error) from error  # no DamagedPart: it was whole when it was indexed
        data = read_planned(root, file, start, end)
        if len(data) != end - start:
            raise SourceError(f"{path}: ends at byte {start + len(data)}, inside a unit's range")
        return data

    def _open(self, path: str, start: int) -> TarStream:
        if self._tar is not None and (self._tar.path != path or self._tar.position > start):
            self.close()
        if self._tar is None:
            self._tar = TarStream(path)
        return self._tar

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> Carried:
        return carried_of_rows(members, schema, os.path.join(part.root, part.files[0].path))

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def _draws(listing: Listing, drawing: Drawing) -> Iterator[Draw]:
    files = [file for file in listing if file.size]
    ends = np.cumsum([file.size for file in files], dtype=np.int64)
    window = 0
    for size in drawing.sizes if len(ends) else ():
        file = files[drawing.one_of(ends)]
        path = os.path.join(listing.place.root, file.path)
        if not window:
            window = _window_bytes(path, drawing)
        if path.lower().endswith(GZIP_SUFFIXES):
            found = samples_in_range(path, 0, 1 << 62, drawing)
            yield Draw(weight=int(ends[-1]) / file.size, samples=tuple(found))
            continue
        start, length = drawing.generator.randrange(file.size), min(window, file.size)
        samples = [
            one
            for first, last in wrapped(start, length, file.size)
            for one in samples_in_range(path, first, last, drawing)
        ]
        chosen = drawing.generator.sample(samples, min(len(samples), size))
        weight = int(ends[-1]) / length * len(samples) / max(1, len(chosen))
        yield Draw(weight=weight, samples=tuple(chosen))
