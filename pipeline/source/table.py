"""Tables: rows whose cells hold or name images, as Parquet and Arrow files have them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ..errors import DamagedPart, RequestError, is_of_the_file, listing_error
from .carried_values import plain_array
from .columns import NO_COLUMN, holds_text, image_problem, refuse_missing
from .file_kind import file_is
from .format import Columns, MediaRule
from .listing import Listing
from .media import BOTH, IMAGE
from .named_image import NamedImage, listed, named_images
from .named_media import BESIDE, NOTHING, Cells, media_rule_of, named_media
from .part import SourceFile
from .row_keys import NO_TEXT, name_of, values_of

NOWHERE = SourceFile(path="", size=0, mtime_ns=0)  # of rows whose keys nobody needs
_NONE_POSSIBLE = object()  # in a row whose image column is not there, or holds something else
FILES_LOOKED_AT = 64  # for a column that the first file lacks, before it is taken for one that there is not


def whole_files(listing: Listing, schema_of: Callable[[str], pa.Schema]) -> Iterator[tuple[str, pa.Schema]]:
    """The path and the columns of each file that is whole, as they are asked for. Raises RequestError: none is."""
    damage: DamagedPart | None = None
    some = False
    for file in listing:
        path = os.path.join(listing.place.root, file.path)
        try:
            schema = schema_of(path)
        except DamagedPart as error:
            damage = damage or error
        else:
            some = True
            yield path, schema
    if damage is not None and not some:
        raise RequestError(f"source: {damage}") from damage


def check_columns(files: Iterable[tuple[str, pa.Schema]], columns: Columns, uri: str) -> tuple[str, pa.Schema]:
    """Looks on until a file has what is named: most often the first one. The rows of those that lack it are rejects.

    Args:
        files: the path and the columns of each, read as they are asked for.

    Returns:
        The path and the columns of the first file whose image column can be one.

    Raises:
        RequestError: none has a column that is named, or the image column of each holds something else.
    """
    needed, needed_setting = columns.needed
    missing = {needed_setting: needed} | ({"key_column": columns.key} if columns.key else {})
    names: dict[str, None] = {}
    problems: dict[str, str] = {}  # of the image column, by the file
    found: tuple[str, pa.Schema] | None = None
    for path, schema in itertools.islice(files, FILES_LOOKED_AT):
        names |= dict.fromkeys(schema.names)
        problems[path] = image_problem(schema, needed, path, lists=columns.lists)
        if not problems[path]:
            found = found or (path, schema)
            missing.pop(needed_setting, None)
        if columns.key is not None and schema.get_field_index(columns.key) >= 0:
            missing.pop("key_column", None)
        if not missing:
            break
    if needed_setting in missing and needed in names:
        problem = next(problem for problem in problems.values() if NO_COLUMN not in problem)
        raise RequestError(f"source.{needed_setting}: {problem}")
    where, they = f"no file of {uri} has a column", "they have"
    if len(problems) == 1:
        where, they = f"{next(iter(problems))} has no column", "it has"
    for setting, name in missing.items():
        refuse_missing(f"source.{setting}", name, list(names), where, they)
    assert found is not None
    return found


def media_rule_of_tables(
    files: Iterable[tuple[str, pa.Schema]], column_of: Callable[[str, str], Iterator[pa.Array]], columns: Columns
) -> MediaRule:
    """Decides what is looked for, by the first files' columns.

    Args:
        column_of: reads a column of a file, batch by batch, as far as it can be read.
    """
    for path, schema in itertools.islice(files, FILES_LOOKED_AT):
        cells: list[Iterator[Cells]] = []
        if not image_problem(schema, columns.video, path, lists=2):
            cells.append(Cells(None, value) for batch in column_of(path, columns.video) for value in values_of(batch))
        if not image_problem(schema, columns.image, path) and holds_text(schema.field(columns.image).type):
            cells.append(Cells(value) for batch in column_of(path, columns.image) for value in values_of(batch))
        for rows in cells:
            if (rule := media_rule_of(rows)).media != IMAGE:
                return rule
    return MediaRule()


def spans_of(file: SourceFile, rows_by_group: Sequence[int], rows_per_part: int) -> list[SourceFile]:
    """Cuts a file at its row groups, or record batches, into ranges of so many rows, or a little more."""
    spans: list[SourceFile] = []
    first = row = start = 0
    for group, rows in enumerate(rows_by_group):
        row += rows
        if row - start >= rows_per_part or group == len(rows_by_group) - 1:
            spans.append(replace(file, first=first, last=group + 1, row=start))
            first, start = group + 1, row
    return spans or [file]


class RowImages:
    """The images of the rows of a file.

    Args:
        schema: all of its columns.
        file: the file, as keys name it; `path`: where it lies.
    """

    def __init__(self, schema: pa.Schema, file: SourceFile, path: str, columns: Columns) -> None:
        self._file, self._path, self._columns = file, path, columns
        self._problem = image_problem(schema, columns.image, file.path)
        self._has_videos = columns.media != IMAGE and not image_problem(schema, columns.video, file.path, lists=2)
        self._has_key = columns.key is not None and schema.get_field_index(columns.key) >= 0

    def of(self, batch: pa.RecordBatch, *, row: int, group: int) -> Iterator[NamedImage]:
        """Every image that the rows of a batch hold or name, or what is wrong with a row.

        Args:
            row: the first one's number in the file; `group`: theirs.
        """
        if self._columns.media != IMAGE:
            yield from self._media_of(batch, row, group)
            return
        images = self._images(batch)
        keys = values_of(batch.column(self._columns.key)) if self._has_key else [None] * len(images)
        for number, (image, key) in enumerate(zip(images, keys, strict=True), row):
            name, problem = name_of(key, self._file, number)
            if image is NO_TEXT:
                problem = problem or f"row {number}: its image is not valid UTF-8"
            if image is _NONE_POSSIBLE:
                problem = f"row {number}: {self._problem}"
            if problem and image not in NOTHING:
                yield NamedImage(key=name, offset=number, group=group, problem=problem)
                continue
            for found in named_images(image, self._path, name, f"row {number}"):
                yield replace(found, offset=number, group=group)

    def _media_of(self, batch: pa.RecordBatch, row: int, group: int) -> Iterator[NamedImage]:
        """`of`, where videos are looked for, too. A column that is not there, or can be none, names nothing."""
        columns, nothing = self._columns, [None] * len(batch)

        def values(name: str, *, there: bool) -> list[Any]:
            return values_of(plain_array(batch.column(name))) if there else nothing

        images = values(columns.image, there=columns.media == BOTH and not self._problem)
        videos = values(columns.video, there=self._has_videos)
        beside = (values(name, there=batch.schema.get_field_index(name) >= 0) for name in BESIDE)
        keys = values_of(batch.column(columns.key)) if columns.key is not None and self._has_key else nothing
        rows = zip(map(Cells, images, videos, *beside), keys, strict=True)
        for number, (cells, key) in enumerate(rows, row):
            name, problem = name_of(key, self._file, number)
            if NO_TEXT in (cells.image, cells.video):
                problem = problem or f"row {number}: its image or video is not valid UTF-8"
            if problem and cells.name_something:
                yield NamedImage(key=name, offset=number, group=group, problem=problem)
                continue
            for found in named_media(cells, columns.media, self._path, name, f"row {number}"):
                yield replace(found, offset=number, group=group)

    def _images(self, batch: pa.RecordBatch) -> list[Any]:
        """The cells; of a column that can hold none only whether they name anything."""
        there = batch.schema.get_field_index(self._columns.image) >= 0
        if not self._problem:
            return values_of(plain_array(batch.column(self._columns.image)))
        if not there:
            return [_NONE_POSSIBLE] * len(batch)
        return [_NONE_POSSIBLE if valid else None for valid in batch.column(self._columns.image).is_valid().to_pylist()]


def value_in(cell: pa.Scalar, item: int | None) -> Any:
    """A cell's value, or that one of its list, of which the others are not touched; text may be a list in JSON."""
    if item is None or isinstance(cell, pa.ListScalar):
        return (cell if item is None else cell[item]).as_py()
    return listed(cell.as_py())[item]


@contextmanager
def planning(path: str, name: str, kind: str) -> Iterator[None]:
    """Names the file in what goes wrong before anything is written.

    Args:
        name: of its format; `kind`: what it should be, `a Parquet file`.

    Raises:
        RequestError, SourceBusy: it cannot be read.
        DamagedPart: that is because of its bytes.
    """
    try:
        yield
    except (OSError, pa.ArrowException, KeyError) as error:
        said = f"{path}: cannot be read as {name}: {error}"
        if is_of_the_file(error):
            raise DamagedPart(said + file_is(path, kind)) from error
        raise listing_error(f"source: {said}", error) from error
