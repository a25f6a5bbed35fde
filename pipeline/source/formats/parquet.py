"""Parquet: a part is a range of a file's row groups; a key is the key column's value, else `file:row`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import DamagedPart, RequestError, SourceError, listing_error, source_error
from ...storage.files import READS_AT_ONCE, map_ahead, open_random
from ..drawing import DRAWS, Draw, Drawing, Drawn, Draws
from ..format import Columns, Facts, SourceFormat, UnitBytes
from ..listing import Listing
from ..named_image import NamedImage, indexed, inline_bytes, named_images, refuse_urls, reread_image_file
from ..part import Part, SourceFile, SourcePlace
from ..planned import check_unchanged
from ..row_keys import keys_of_rows, values_of
from ..sample import IndexedSample
from ..table import check_columns, holds_text, images_of_batch

ROWS_PER_PART = 65_536
BATCH_ROWS = 64
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
        path = os.path.join(listing.place.root, next(iter(listing)).path)
        schema = _schema_of(path)
        check_columns(schema, columns, path)
        if holds_text(schema.field(columns.image).type):
            refuse_urls(_first_images(path, columns.image), columns.image, path)

    def spans(self, place: SourcePlace, file: SourceFile) -> list[SourceFile]:
        path = os.path.join(place.root, file.path)
        try:
            rows_by_group = _rows_by_group(path)
        except (OSError, pa.ArrowException) as error:
            raise listing_error(f"source: {path}: cannot be read as parquet: {error}", error) from error
        spans: list[SourceFile] = []
        first = row = start = 0
        for group, rows in enumerate(rows_by_group):
            row += rows
            if row - start >= self._rows_per_part or group == len(rows_by_group) - 1:
                spans.append(replace(file, first=first, last=group + 1, row=start))
                first, start = group + 1, row
        return spans or [file]

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        yield from indexed(_images_of_rows(path, file, columns), file.path, facts, file.repeated)

    def keys(self, place: SourcePlace, span: SourceFile, columns: Columns) -> Iterator[str]:
        path = os.path.join(place.root, span.path)
        try:
            with open_parquet(path) as parquet:
                yield from keys_of_rows(parquet, span, columns)
        except (OSError, pa.ArrowException, KeyError) as error:
            if not isinstance(error, OSError) or error.errno is None:  # Arrow's own, of a bad file
                return  # for the index to report: of what is damaged it has no sample
            raise listing_error(f"source: {path}: its keys cannot be read: {error}", error) from error

    def reader(self, columns: Columns) -> RowReader:
        return RowReader(columns.image)

    def carried_schema(self, listing: Listing, names: Sequence[str]) -> pa.Schema:
        """From the first file."""
        path = os.path.join(listing.place.root, next(iter(listing)).path)
        schema = _schema_of(path)
        for name in names:
            if schema.get_field_index(name) < 0:
                raise RequestError(f"source.carry: {path} has no column {name!r}; it has {', '.join(schema.names)}")
        return pa.schema([pa.field(name, schema.field(name).type) for name in names])

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> pa.Table:
        table = read_columns(part, samples, schema.names)
        try:
            return table.select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            path = os.path.join(part.root, part.files[0].path)
            raise SourceError(f"{path}: its carried columns are not {schema}: {error}") from error

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """Some rows of a row group, drawn as often as it has rows; of very many files, as often as they are large."""
        return Draws(draws=tuple(_draws(listing, drawing, self._footers_read)), files=listing.count)


class RowReader:
    """Reads the images of rows, group by group, and the files that rows name."""

    def __init__(self, image_column: str) -> None:
        self._image_column = image_column

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        (file,) = part.files
        check_unchanged(part.root, file)
        encoded: list[bytes | None] = [None] * len(samples)
        inside: list[int] = []
        for index, sample in enumerate(samples):
            if sample.sha256 is not None and sample.path is not None:
                encoded[index] = reread_image_file(sample)
            elif sample.sha256 is not None:
                inside.append(index)
        if inside:
            # A row once, however many images its list has.
            rows = {samples[index].offset: samples[index] for index in inside}
            cells = read_columns(part, list(rows.values()), [self._image_column]).column(self._image_column)
            value_of = dict(zip(rows, cells, strict=True))
            for index in inside:
                value, item = value_of[samples[index].offset], samples[index].item
                encoded[index] = inline_bytes(value.as_py() if item is None else value[item].as_py())
        return UnitBytes(encoded, [{} for _ in samples])

    def close(self) -> None:
        """Nothing is held."""


def open_parquet(path: str) -> pq.ParquetFile:
    """An object's column chunks are fetched together, in few requests. Raises OSError, ArrowException."""
    file, pre_buffer = open_random(path)
    return pq.ParquetFile(file, pre_buffer=pre_buffer)


def read_columns(part: Part, samples: Sequence[IndexedSample], columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file, a row for each sample. Raises SourceError."""
    (file,) = part.files
    path = os.path.join(part.root, file.path)
    try:
        with open_parquet(path) as parquet:
            starts = [0]
            for group in range(parquet.metadata.num_row_groups):
                starts.append(starts[-1] + parquet.metadata.row_group(group).num_rows)
            pieces: list[pa.Table] = []
            first = 0
            while first < len(samples):
                group = samples[first].group
                last = first
                while last < len(samples) and samples[last].group == group:
                    last += 1
                table = parquet.read_row_group(group, columns=columns)
                pieces.append(table.take([sample.offset - starts[group] for sample in samples[first:last]]))
                first = last
            return pa.concat_tables(pieces)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise source_error(f"{path}: cannot be read: {error}", error) from error


def _schema_of(path: str) -> pa.Schema:
    try:
        with open_parquet(path) as parquet:
            return parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise listing_error(f"source: {path}: cannot be read as parquet: {error}", error) from error


def _first_images(path: str, image_column: str) -> Iterator[object]:
    """The first images of a file, as its rows have them."""
    with open_parquet(path) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=[image_column]):
            yield from values_of(batch.column(image_column))


def _images_of_rows(path: str, file: SourceFile, columns: Columns) -> Iterator[NamedImage]:
    names = [columns.image] if columns.key in (None, columns.image) else [columns.image, columns.key]
    row = file.row
    group = file.first
    try:
        with open_parquet(path) as parquet:
            for group in range(file.first, file.last):
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
                    yield from images_of_batch(batch, file, path, columns, row=row, group=group)
                    row += len(batch)
    except (OSError, pa.ArrowException, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the world's; Arrow's own of a bad file has none
            raise source_error(f"{path}: cannot be read: {error}", error) from error
        message = f"{path}: row group {group} cannot be read as Parquet with a column {columns.image}: {error}"
        raise DamagedPart(message, group=group) from error


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
    chosen = [drawing.one_of(ends) for _ in range(DRAWS)]
    by_group = dict(_footers([paths[number] for number in dict.fromkeys(chosen)]))
    for number in chosen:
        path, scale = paths[number], int(ends[-1]) / sizes[number]
        group_ends = np.cumsum(by_group[path], dtype=np.int64)
        if not len(group_ends) or not group_ends[-1]:
            yield Draw(weight=0.0, samples=())
            continue
        group = drawing.one_of(group_ends)
        rows, samples = _some_rows(_RowGroup(path=path, number=group, rows=by_group[path][group]), drawing)
        yield Draw(weight=scale * int(group_ends[-1]) / rows, samples=tuple(samples))


def _some_rows(group: _RowGroup, drawing: Drawing) -> tuple[int, list[Drawn]]:
    """How many rows were drawn from a group, and their images' headers."""
    chosen = sorted(drawing.generator.sample(range(group.rows), min(group.rows, drawing.per_draw)))
    with open_parquet(group.path) as parquet:
        table = parquet.read_row_group(group.number, columns=[drawing.image_column])
    cells = table.column(drawing.image_column).take(chosen)
    images = [one for cell in cells for one in named_images(cell.as_py(), group.path, "", "")]
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
    for _ in range(DRAWS if len(ends) and ends[-1] else 0):
        rows, samples = _some_rows(groups[drawing.one_of(ends)], drawing)
        yield Draw(weight=int(ends[-1]) / rows, samples=tuple(samples))
