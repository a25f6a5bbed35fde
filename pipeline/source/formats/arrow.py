"""Arrow: data sets that Hugging Face's `save_to_disk` wrote, and Feather files. A part is a range of record batches; a
key is the key column's value, else `file:row`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa

from ...errors import DamagedPart, RequestError, SourceError, is_of_the_file, listing_error, source_error
from ...storage.files import READS_AT_ONCE, map_ahead, read_input
from ...storage.large import Encoded
from ..arrow_file import ArrowFile
from ..carried_types import schema_of_tables
from ..carried_values import Carried, carried_of_table, rows_of
from ..columns import holds_text
from ..drawing import Draw, Drawing, Draws
from ..format import Columns, Facts, MediaRule, SourceFormat, UnitBytes, columns_drawn
from ..found_columns import ROWS_LOOKED_AT, FoundColumn, columns_of_rows
from ..listing import Listing
from ..named_image import NamedImage, refuse_urls
from ..part import Part, SourceFile, SourcePlace
from ..planned import check_unchanged
from ..row_keys import values_of
from ..row_samples import indexed, reread_cell, reread_image_file
from ..sample import IndexedSample
from ..table import NOWHERE, RowImages, check_columns, media_rule_of_tables, planning, spans_of, value_in, whole_files

ROWS_PER_PART = 65_536
STATE = "state.json"  # of a saved data set: which files are its own, of all that lie there


class Arrow(SourceFormat):
    """See the module."""

    name = "arrow"
    suffixes = (".arrow", ".feather", ".ipc")
    has_columns = True

    def __init__(self, rows_per_part: int = ROWS_PER_PART) -> None:
        self._rows_per_part = rows_per_part

    def leaves_alone(self, path: str) -> bool:
        """Whether it is what `datasets` keeps beside a data set: results of `map` and tables of indices."""
        return os.path.basename(path).startswith(("cache-", "tmp", "_", "indices"))

    def left_alone_in(self, folder: str) -> Callable[[str], bool]:
        """A saved data set has files of its own, which its `state.json` names: others may be of an older one."""
        own: dict[str, set[str] | None] = {}

        def is_left_alone(path: str) -> bool:
            inner, name = os.path.split(path)
            if inner not in own:
                own[inner] = _files_of_state(os.path.join(folder, inner, STATE))
            named = own[inner]
            return self.leaves_alone(path) if named is None else name not in named

        return is_left_alone

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        if not listing.count:
            raise RequestError(f"source.uri: {uri} holds no arrow file")
        path, schema = check_columns(whole_files(listing, _schema_of), columns, uri)
        needed, _ = columns.needed
        if holds_text(schema.field(needed).type):
            images = (value for column in _column_of(path, needed) for value in values_of(column))
            refuse_urls(images, needed, path)

    def media_rule(self, listing: Listing, columns: Columns) -> MediaRule:
        return media_rule_of_tables(_schemas(listing), _column_of, columns)

    def spans(self, place: SourcePlace, file: SourceFile) -> list[SourceFile]:
        path = os.path.join(place.root, file.path)
        with planning(path, "arrow", "an Arrow file"), ArrowFile(path) as opened:
            if opened.damage:
                raise pa.ArrowInvalid(opened.damage)
            rows_by_batch = [batch.rows for batch in opened.batches]
        return spans_of(file, rows_by_batch, self._rows_per_part)

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        yield from indexed(_images_of_rows(path, file, columns), file.path, facts, file.repeated)

    def keys(self, place: SourcePlace, span: SourceFile, columns: Columns) -> Iterator[str]:
        path = os.path.join(place.root, span.path)
        try:
            for image in _images_of_rows(path, span, columns):
                yield image.key
        except DamagedPart:
            return  # for the index to report
        except SourceError as error:
            raise listing_error(f"source: {path}: its keys cannot be read: {error}", error) from error

    def reader(self, columns: Columns) -> BatchReader:
        return BatchReader(columns)

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        """From the schema of every file that has one."""
        return schema_of_tables(_schemas(listing), names, _column_of, decided)

    def columns_found(self, listing: Listing) -> list[FoundColumn]:
        path, schema = next(whole_files(listing, _schema_of))
        with ArrowFile(path) as opened:
            rows = opened.batch(0).slice(0, ROWS_LOOKED_AT).to_pylist() if opened.batches else []
            return columns_of_rows(rows, schema)

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """Some rows of a record batch, drawn as often as it has rows."""
        return Draws(draws=tuple(_draws(listing, drawing)), files=listing.count)


class BatchReader:
    """Reads the images of rows, batch by batch, and the files that rows name."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        wanted = [sample for sample in samples if sample.sha256 is not None]
        named = [sample for sample in wanted if sample.path is not None]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            data: Iterator[Encoded | None] = map_ahead(pool, reread_image_file, named, 0)
            found: dict[int, Encoded | None] = {id(sample): one for sample, one in zip(named, data, strict=True)}
        for column in dict.fromkeys(map(self._columns.of, wanted)):
            inside = [sample for sample in wanted if sample.path is None and self._columns.of(sample) == column]
            cells = _read_columns(part, inside, [column]).column(0) if inside else []
            for sample, cell in zip(inside, cells, strict=True):
                found[id(sample)] = reread_cell(value_in(cell, sample.item), sample, path)
        return UnitBytes([found.get(id(sample)) for sample in samples], [{} for _ in samples])

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> Carried:
        path = os.path.join(part.root, part.files[0].path)
        return carried_of_table(_read_columns(part, samples, schema.names), len(samples), schema, path)

    def close(self) -> None:
        """Nothing is held."""


def _files_of_state(path: str) -> set[str] | None:
    """The files that a saved data set names as its own; None where it names none. Raises OSError."""
    try:
        tree = json.loads(read_input(path))
        return {str(file["filename"]) for file in tree["_data_files"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _schema_of(path: str) -> pa.Schema:
    with planning(path, "arrow", "an Arrow file"), ArrowFile(path) as opened:
        return opened.schema


def _images_of_rows(path: str, file: SourceFile, columns: Columns) -> Iterator[NamedImage]:
    row, number = file.row, file.first
    try:
        with ArrowFile(path, file.state) as opened:
            rows = RowImages(opened.schema, file, path, columns)
            # One that is damaged is a part as a whole, whatever stands whole in it.
            for number in range(file.first, len(opened.batches) if opened.damage else file.last):
                batch = opened.batch(number)
                yield from rows.of(batch, row=row, group=number)
                row += len(batch)
            if opened.damage:
                number = len(opened.batches)
                raise pa.ArrowInvalid(opened.damage)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        if not is_of_the_file(error):
            raise source_error(f"{path}: cannot be read: {error}", error) from error
        raise DamagedPart(f"{path}: record batch {number} cannot be read as Arrow: {error}", group=number) from error


def _read_columns(part: Part, samples: Sequence[IndexedSample], names: Sequence[str]) -> pa.Table:
    """Some columns, a row for each sample. Raises SourceError."""
    (file,) = part.files
    path = os.path.join(part.root, file.path)
    pieces: list[pa.Table] = []
    try:
        with ArrowFile(path, file.state) as opened:
            starts = np.cumsum([0, *(batch.rows for batch in opened.batches)])
            first = 0
            while first < len(samples):
                group, last = samples[first].group, first
                while last < len(samples) and samples[last].group == group:
                    last += 1
                rows = [sample.offset - int(starts[group]) for sample in samples[first:last]]
                pieces.append(rows_of(opened.batch(group), names, rows))
                first = last
            return pa.concat_tables(pieces)
    except (OSError, pa.ArrowException, KeyError, IndexError) as error:
        raise source_error(f"{path}: cannot be read: {error}", error) from error


def _schemas(listing: Listing) -> Iterator[tuple[str, pa.Schema]]:
    for file in listing:
        path = os.path.join(listing.place.root, file.path)
        with suppress(DamagedPart):  # for the plan to report
            yield path, _schema_of(path)


def _column_of(path: str, name: str) -> Iterator[pa.Array]:
    with (
        suppress(DamagedPart),
        planning(path, "arrow", "an Arrow file"),
        ArrowFile(path) as opened,
    ):  # for the index to report
        for number in range(len(opened.batches)):
            yield opened.batch(number).column(name)


def _draws(listing: Listing, drawing: Drawing) -> Iterator[Draw]:
    batches: list[tuple[str, int, int]] = []
    for file in listing:
        path = os.path.join(listing.place.root, file.path)
        with ArrowFile(path) as opened:
            batches += [(path, number, batch.rows) for number, batch in enumerate(opened.batches)]
    ends = np.cumsum([rows for _, _, rows in batches], dtype=np.int64)
    for size in drawing.sizes_of_groups([rows for _, _, rows in batches]):
        path, number, rows = batches[drawing.one_of(ends)]
        chosen = sorted(drawing.generator.sample(range(rows), min(rows, size)))
        with ArrowFile(path) as opened:
            batch, found = opened.batch(number), RowImages(opened.schema, NOWHERE, path, columns_drawn(drawing))
            images = [one for row in chosen for one in found.of(batch.slice(row, 1), row=row, group=number)]
        yield Draw(weight=int(ends[-1]) / len(chosen), samples=tuple(drawing.headers.drawn_of(images)))
