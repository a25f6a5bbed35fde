"""Manifests: files of records that name or hold images, whatever their syntax. A part is a range of records.

A record is found again by its first byte. A key is the key field's value, else `file:row`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa

from ..errors import DamagedPart, RequestError, SourceError, listing_error, reading
from .carried_types import check_records, schema_of_records
from .columns import NO_COLUMN, refuse_missing, shown
from .drawing import Drawing, Draws
from .file_kind import file_is
from .format import Columns, Facts, MediaRule, SourceFormat, columns_drawn
from .found_columns import ROWS_LOOKED_AT, FoundColumn, columns_of_rows
from .listing import Listing
from .manifest_file import ManifestFile, Record, RecordReader
from .media import BOTH, IMAGE
from .named_image import NamedImage, is_text, refuse_urls
from .named_media import BESIDE, Cells, columns_read, media_rule_of, named_media
from .part import Part, SourceFile, SourcePlace
from .planned import check_unchanged
from .row_samples import indexed
from .sample import IndexedSample
from .spread import draws_of

RECORDS_PER_PART = 8192
TEXT = ("text", "JSON")  # what it is no news that a manifest is


class Manifest(SourceFormat):
    """A format whose files are manifests.

    Attributes:
        opened: opens one of them.
    """

    has_columns = True
    opened: ClassVar[type[ManifestFile]]

    def columns(self, columns: Columns) -> Columns:
        """The fields of a record that are its image and its key."""
        return columns

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        """Reads on until a record has what is named: most often the first one."""
        if not listing.count:
            raise RequestError(f"source.uri: {uri} holds no {self.name} file")
        columns = self.columns(columns)
        needed, setting = columns.needed
        # Where both are looked for, a video has been seen.
        missing = ({} if columns.media == BOTH else {setting: needed}) | (
            {"key_column": columns.key} if columns.key else {}
        )
        seen: dict[str, None] = {}
        problems: list[str] = []
        damage: DamagedPart | None = None
        for file in listing:
            path = os.path.join(listing.place.root, file.path)
            try:
                with _planning(path, self.name), self.opened(path) as manifest:
                    refuse_urls(_named(manifest, needed, missing, seen, problems), needed, path)
            except DamagedPart as error:
                damage = damage or error
            if not missing:
                return
        if damage is not None:
            raise RequestError(f"source: {damage}") from damage
        path = os.path.join(listing.place.root, next(iter(listing)).path)
        what = file_is(path, *TEXT)
        if problems and not seen:
            raise RequestError(f"source.uri: no {self.opened.noun} of {uri} can be read: {problems[0]}{what}")
        if what:
            raise RequestError(f"source.uri: {path} cannot be read as {self.name}{what}")
        where = f"no {self.opened.noun} of {uri} has a field"
        for setting, name in missing.items():
            refuse_missing(f"source.{setting}", name, list(seen), where, "they have")

    def media_rule(self, listing: Listing, columns: Columns) -> MediaRule:
        columns = replace(self.columns(columns), media=BOTH)
        return media_rule_of(self._cells(listing, columns))

    def _cells(self, listing: Listing, columns: Columns) -> Iterator[Cells]:
        for file in listing:
            path = os.path.join(listing.place.root, file.path)
            with suppress(DamagedPart), _planning(path, self.name), self.opened(path) as manifest:  # for the plan
                if manifest.names is None or {columns.video, columns.image} & {*manifest.names}:
                    yield from (_cells_of(record, columns) for record in manifest.records())

    def spans(self, place: SourcePlace, file: SourceFile) -> list[SourceFile]:
        path = os.path.join(place.root, file.path)
        spans: list[SourceFile] = []
        first = start = 0
        with _planning(path, self.name), self.opened(path) as manifest:
            for offset, row in manifest.starts():
                if row - start >= RECORDS_PER_PART:
                    spans.append(replace(file, first=first, last=offset, row=start))
                    first, start = offset, row
        return [*spans, replace(file, first=first, last=file.size, row=start)]

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        yield from indexed(self._images(path, file, self.columns(columns)), file.path, facts, file.repeated)

    def keys(self, place: SourcePlace, span: SourceFile, columns: Columns) -> Iterator[str]:
        path = os.path.join(place.root, span.path)
        try:
            for image in self._images(path, span, self.columns(columns)):
                yield image.key
        except DamagedPart:
            return  # for the index to report
        except SourceError as error:
            raise listing_error(f"source: {path}: its keys cannot be read: {error}", error) from error

    def _images(self, path: str, file: SourceFile, columns: Columns) -> Iterator[NamedImage]:
        last = file.last or file.size  # of one that is damaged, and so a part as a whole, no end is planned
        try:
            with reading(path), self.opened(path) as manifest:
                for record in manifest.records(file.first, file.row):
                    if record.offset >= last:
                        break
                    yield from images_of(record, manifest, file.path, columns)
        except ValueError as error:
            raise DamagedPart(f"{path}: cannot be read as {self.name}: {error}") from error

    def reader(self, columns: Columns) -> RecordReader:
        return RecordReader(self.opened, self.columns(columns))

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        """From every record of every manifest; a field of nulls alone is a string."""
        if decided is None:
            return schema_of_records(self._all_fields(listing), names)
        records = self._all_fields(listing)
        while some := list(itertools.islice(records, RECORDS_PER_PART)):
            check_records(some, decided)
        return decided

    def _all_fields(self, listing: Listing) -> Iterator[tuple[Mapping[str, Any], Callable[[], str]]]:
        for file in listing:
            path = os.path.join(listing.place.root, file.path)
            # What is damaged is for the plan to report.
            with suppress(DamagedPart), _planning(path, self.name), self.opened(path) as manifest:
                for record in manifest.records():
                    yield record.fields, partial(_where, path, manifest.noun, record.row)

    def columns_found(self, listing: Listing) -> list[FoundColumn]:
        records = itertools.islice(self._all_fields(listing), ROWS_LOOKED_AT)
        return columns_of_rows(fields for fields, _ in records)

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """Records of the manifests that are drawn, as often as they are large; each of those is read whole."""
        columns = self.columns(columns_drawn(drawing))

        def images(path: str, offsets: Sequence[int]) -> list[NamedImage]:
            with self.opened(path) as manifest:
                return [one for record in manifest.at(offsets) for one in images_of(record, manifest, "", columns)]

        def starts(path: str) -> Iterator[int]:
            with self.opened(path) as manifest:
                yield from (offset for offset, _ in manifest.starts())

        return Draws(draws=tuple(draws_of(listing, drawing, starts, images)), files=listing.count)


def images_of(record: Record, manifest: ManifestFile, source: str, columns: Columns) -> Iterator[NamedImage]:
    """Every image that one record names or holds, or what is wrong with it.

    Args:
        source: the manifest, as keys name it.
    """
    name, where = f"{source}:{record.row}", f"{manifest.noun} {record.row + 1}"
    problem = record.problem
    there = manifest.names is None or not {*columns_read(columns)}.isdisjoint({*manifest.names} - {*BESIDE})
    if not problem and manifest.names is not None and not there:
        problem = f"names no image: {source} {NO_COLUMN} {columns.image!r}; it has {shown(manifest.names)}"
    if problem:
        yield NamedImage(key=name, offset=record.offset, problem=f"{where} {problem}")
        return
    cells = _cells_of(record, columns)
    if columns.key is not None:
        key = record.fields.get(columns.key)
        if key != "" and isinstance(key, str | int) and is_text(str(key)):
            name = str(key)
        elif cells.name_something:
            problem = "is empty" if key == "" else "is none that can be a key"
            yield NamedImage(key=name, offset=record.offset, problem=f"{where}: its {columns.key!r} {problem}")
            return
    for image in named_media(cells, columns.media, manifest.path, name, where):
        yield replace(image, offset=record.offset)


def _cells_of(record: Record, columns: Columns) -> Cells:
    if columns.media == IMAGE:
        return Cells(record.fields.get(columns.image))
    image, *video = (record.fields.get(name) for name in (columns.image, columns.video, *BESIDE))
    return Cells(image if columns.media == BOTH else None, *video)


def _named(
    manifest: ManifestFile, image_column: str, missing: dict[str, str], seen: dict[str, None], problems: list[str]
) -> Iterator[Any]:
    """Yields what the records have as images.

    Args:
        missing: the fields that no record has had so far, by their settings.
        seen: the fields that there are; `problems`: the first one, of a record that cannot be read.
    """
    for record in manifest.records():
        if record.problem and not problems:
            problems.append(f"{manifest.noun} {record.row + 1} {record.problem}")
        for setting in [setting for setting, name in missing.items() if name in record.fields]:
            del missing[setting]
        seen.update(dict.fromkeys(record.fields))
        yield record.fields.get(image_column) if not missing else None


def _where(path: str, noun: str, row: int) -> str:
    return f"{noun} {row + 1} of {path}"


@contextmanager
def _planning(path: str, name: str) -> Iterator[None]:
    """Names the file in what goes wrong before anything is written. Raises RequestError, SourceBusy, DamagedPart."""
    try:
        yield
    except OSError as error:
        raise listing_error(f"source: {path}: cannot be read as {name}: {error}", error) from error
    except ValueError as error:
        raise DamagedPart(f"{path}: cannot be read as {name}: {error}{file_is(path, *TEXT)}") from error
