"""Parquet: a part is a range of a file's row groups; a key is the key column's value, else `file:row`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...errors import DamagedPart, RequestError, is_of_the_file, listing_error, source_error
from ...storage.files import READS_AT_ONCE, map_ahead
from ...storage.large import Encoded
from ..carried_types import schema_of_tables
from ..carried_values import Carried, carried_of_table
from ..columns import holds_text
from ..drawing import Draw, Drawing, Drawn, Draws
from ..format import Columns, Facts, MediaRule, SourceFormat, UnitBytes, columns_drawn
from ..found_columns import ROWS_LOOKED_AT, FoundColumn, columns_of_rows
from ..listing import Listing
from ..media import IMAGE
from ..named_image import NamedImage, refuse_urls
from ..named_media import columns_read
from ..part import Part, SourceFile, SourcePlace
from ..planned import check_unchanged
from ..row_cursor import Batches, RowCursor, open_parquet
from ..row_keys import keys_of_rows, values_of
from ..row_samples import indexed, reread_cell, reread_image_file
from ..sample import IndexedSample
from ..table import NOWHERE, RowImages, check_columns, media_rule_of_tables, planning, spans_of, value_in, whole_files

ROWS_PER_PART = 65_536
FOOTERS_READ = 512  # of more files only those that are drawn are opened


class Parquet(SourceFormat):
    """See the module."""

    name = "parquet"
    suffixes = (".parquet", ".pq")
    has_columns = True

    def __init__(self, rows_per_part: int = ROWS_PER_PART, footers_read: int = FOOTERS_READ) -> None:
        self._rows_per_part, self._footers_read = rows_per_part, footers_read

    def leaves_alone(self, path: str) -> bool:
        """Whether it is a table's own, such as `_delta_log/…`: what engines that write tables leave out by its name."""
        return any(name.startswith("_") for name in path.split("/"))

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        if not listing.count:
            raise RequestError(f"source.uri: {uri} holds no parquet file")
        path, schema = check_columns(whole_files(listing, _schema_of), columns, uri)
        needed, _ = columns.needed
        if holds_text(schema.field(needed).type):
            images = (value for column in _column_of(path, needed) for value in values_of(column))
            refuse_urls(images, needed, path)

    def media_rule(self, listing: Listing, columns: Columns) -> MediaRule:
        return media_rule_of_tables(_schemas(listing), _column_of, columns)

    def spans(self, place: SourcePlace, file: SourceFile) -> list[SourceFile]:
        path = os.path.join(place.root, file.path)
        with planning(path, "parquet", "a Parquet file"):
            return spans_of(file, _rows_by_group(path), self._rows_per_part)

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        yield from indexed(_images_of_rows(path, file, columns), file.path, facts, file.repeated)

    def keys(self, place: SourcePlace, span: SourceFile, columns: Columns) -> Iterator[str]:
        path = os.path.join(place.root, span.path)
        try:
            if columns.media != IMAGE:
                yield from (one.key for one in _images_of_rows(path, span, columns))
                return
            with open_parquet(path) as parquet:
                yield from keys_of_rows(parquet, span, columns)
        except (OSError, pa.ArrowException, KeyError) as error:
            if is_of_the_file(error):
                return  # for the index to report: of what is damaged it has no sample
            raise listing_error(f"source: {path}: its keys cannot be read: {error}", error) from error

    def reader(self, columns: Columns) -> RowReader:
        return RowReader(columns)

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        """From the schema of every file that is whole."""
        paths = [os.path.join(listing.place.root, file.path) for file in listing]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            schemas = zip(paths, map_ahead(pool, _schema_if_whole, paths, READS_AT_ONCE), strict=True)
            whole = ((path, schema) for path, schema in schemas if schema is not None)
            return schema_of_tables(whole, names, _column_of, decided)

    def columns_found(self, listing: Listing) -> list[FoundColumn]:
        path, schema = next(whole_files(listing, _schema_of))
        with open_parquet(path) as parquet:
            first = next(parquet.iter_batches(batch_size=ROWS_LOOKED_AT), None)
            return columns_of_rows([] if first is None else first.to_pylist(), schema)

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """Some rows of a row group, drawn as often as it has rows; of very many files, as often as they are large."""
        return Draws(draws=tuple(_draws(listing, drawing, self._footers_read)), files=listing.count)


class RowReader:
    """Reads the images of rows, and the files that rows name; goes on where the unit before it ended."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._cursors: dict[tuple[str, ...], RowCursor] = {}
        self._path = ""

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        encoded: list[Encoded | None] = [None] * len(samples)
        inside: dict[str, list[int]] = {}  # by column
        for index, sample in enumerate(samples):
            if sample.sha256 is not None and sample.path is not None:
                encoded[index] = reread_image_file(sample)
            elif sample.sha256 is not None:
                inside.setdefault(self._columns.of(sample), []).append(index)
        for column, indices in inside.items():
            # A row once, however many images its list has.
            rows = {samples[index].offset: samples[index] for index in indices}
            cells = self._rows(part, list(rows.values()), [column]).column(0)
            value_of = dict(zip(rows, cells, strict=True))
            for index in indices:
                value = value_in(value_of[samples[index].offset], samples[index].item)
                encoded[index] = reread_cell(value, samples[index], path)
        return UnitBytes(encoded, [{} for _ in samples])

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> Carried:
        path = os.path.join(part.root, part.files[0].path)
        return carried_of_table(self._rows(part, samples, schema.names), len(samples), schema, path)

    def _rows(self, part: Part, samples: Sequence[IndexedSample], names: Sequence[str]) -> pa.Table:
        path = os.path.join(part.root, part.files[0].path)
        if path != self._path:
            self.close()
            self._path = path
        if (cursor := self._cursors.get(tuple(names))) is None:
            cursor = self._cursors[tuple(names)] = RowCursor(path, names)
        return cursor.take(samples)

    def close(self) -> None:
        """Lets the file go."""
        for cursor in self._cursors.values():
            cursor.close()
        self._cursors.clear()


def _schema_of(path: str) -> pa.Schema:
    with planning(path, "parquet", "a Parquet file"), open_parquet(path) as parquet:
        return parquet.schema_arrow


def _schema_if_whole(path: str) -> pa.Schema | None:
    try:
        return _schema_of(path)
    except DamagedPart:
        return None  # for the plan to report


def _schemas(listing: Listing) -> Iterator[tuple[str, pa.Schema]]:
    for file in listing:
        path = os.path.join(listing.place.root, file.path)
        if (schema := _schema_if_whole(path)) is not None:
            yield path, schema


def _column_of(path: str, name: str) -> Iterator[pa.Array]:
    """A column of a file, batch by batch, as far as it can be read."""
    with suppress(DamagedPart), planning(path, "parquet", "a Parquet file"):  # for the index to report
        for batch in Batches(path, None, [name]):
            yield batch.column(name)


def _images_of_rows(path: str, file: SourceFile, columns: Columns) -> Iterator[NamedImage]:
    names = columns_read(columns)
    names += [columns.key] if columns.key is not None and columns.key not in names else []
    row = file.row
    batches = Batches(path, range(file.first, file.last), names)
    rows: RowImages | None = None
    try:
        for batch in batches:
            rows = rows or RowImages(batches.schema, file, path, columns)
            yield from rows.of(batch, row=row, group=batches.group)
            row += len(batch)
    except (OSError, pa.ArrowException, KeyError) as error:
        if not is_of_the_file(error):
            raise source_error(f"{path}: cannot be read: {error}", error) from error
        what = f"row group {batches.group}" if batches.schema is not None else "its footer"
        raise DamagedPart(f"{path}: {what} cannot be read as Parquet: {error}", group=batches.group) from error


@dataclass(frozen=True, kw_only=True)
class _RowGroup:
    path: str
    number: int
    rows: int


def _rows_by_group(path: str) -> list[int]:
    with open_parquet(path) as parquet:
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]


def _footers(paths: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Each file and the rows of its groups."""
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        yield from zip(paths, map_ahead(pool, _rows_by_group, paths, READS_AT_ONCE), strict=True)


def _draws_of_many_files(paths: Sequence[str], sizes: Sequence[int], drawing: Drawing) -> Iterator[Draw]:
    """A drawn file's rows each stand for all of them, and the file for as many as it would take to be all bytes."""
    ends = np.cumsum(sizes, dtype=np.int64)
    chosen = [drawing.one_of(ends) for _ in drawing.sizes]
    by_group = dict(_footers([paths[number] for number in dict.fromkeys(chosen)]))
    for number, size in zip(chosen, drawing.sizes, strict=True):
        path, scale = paths[number], int(ends[-1]) / sizes[number]
        group_ends = np.cumsum(by_group[path], dtype=np.int64)
        if not len(group_ends) or not group_ends[-1]:
            yield Draw(weight=0.0, samples=())
            continue
        group = drawing.one_of(group_ends)
        rows, samples = _some_rows(_RowGroup(path=path, number=group, rows=by_group[path][group]), size, drawing)
        yield Draw(weight=scale * int(group_ends[-1]) / rows, samples=tuple(samples))


def _some_rows(group: _RowGroup, count: int, drawing: Drawing) -> tuple[int, list[Drawn]]:
    """How many rows were drawn from a group, `count` where it has so many, and their images' headers."""
    chosen = sorted(drawing.generator.sample(range(group.rows), min(group.rows, count)))
    images: list[NamedImage] = []
    first = 0
    columns = columns_drawn(drawing)
    batches = Batches(group.path, [group.number], columns_read(columns))
    for batch in batches:
        rows = RowImages(batches.schema, NOWHERE, group.path, columns)
        for row in chosen:
            if first <= row < first + len(batch):
                images += rows.of(batch.slice(row - first, 1), row=row, group=group.number)
        first += len(batch)
    return len(chosen), drawing.headers.drawn_of(images)


def _draws(listing: Listing, drawing: Drawing, footers_read: int) -> Iterator[Draw]:
    files = list(listing)
    paths = [os.path.join(listing.place.root, file.path) for file in files]
    if len(paths) > footers_read:
        yield from _draws_of_many_files(paths, [file.size for file in files], drawing)
        return
    groups = [
        _RowGroup(path=path, number=number, rows=rows)
        for path, by_group in _footers(paths)
        for number, rows in enumerate(by_group)
    ]
    ends = np.cumsum([group.rows for group in groups], dtype=np.int64)
    for size in drawing.sizes_of_groups([group.rows for group in groups]):
        rows, samples = _some_rows(groups[drawing.one_of(ends)], size, drawing)
        yield Draw(weight=int(ends[-1]) / rows, samples=tuple(samples))
