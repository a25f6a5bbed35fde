"""JSONL: manifests, an object a line. A part is a range of lines; a key is the key field's value, else `file:row`."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import RequestError, SourceError, listing_error, reading
from ...storage.files import READS_AT_ONCE, map_ahead, open_input
from ..drawing import DRAWS, Draw, Drawing, Draws, wrapped
from ..format import Columns, Facts, SourceFormat, UnitBytes, table_of
from ..listing import Listing
from ..named_image import NamedImage, indexed, is_text, named_images, reread_image_file
from ..part import Part, SourceFile, SourcePlace
from ..planned import check_unchanged
from ..sample import IndexedSample

LINES_PER_PART = 8192
LINES_LOOKED_AT = 1000  # for the types of carried fields
PILOT_BYTES = 4 << 20


class Jsonl(SourceFormat):
    """See the module."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")
    has_columns = True

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        if not listing.count:
            raise RequestError(f"source.uri: {uri} holds no jsonl file")

    def spans(self, place: SourcePlace, file: SourceFile) -> list[SourceFile]:
        path = os.path.join(place.root, file.path)
        spans: list[SourceFile] = []
        first = row = start = position = 0
        try:
            with open_input(path) as stream:
                for line in stream:
                    position += len(line)
                    row += 1
                    if row - start == LINES_PER_PART:
                        spans.append(replace(file, first=first, last=position, row=start))
                        first, start = position, row
        except OSError as error:
            raise listing_error(f"source: {path}: cannot be read as jsonl: {error}", error) from error
        if position > first or not spans:
            spans.append(replace(file, first=first, last=position, row=start))
        return spans

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        (file,) = part.files
        check_unchanged(part.root, file)
        path = os.path.join(part.root, file.path)
        yield from indexed(_images_of_lines(path, file, columns), file.path, facts, file.repeated)

    def keys(self, place: SourcePlace, span: SourceFile, columns: Columns) -> Iterator[str]:
        path = os.path.join(place.root, span.path)
        try:
            for image in _images_of_lines(path, span, columns):
                yield image.key
        except SourceError as error:
            raise listing_error(f"source: {path}: its keys cannot be read: {error}", error) from error

    def reader(self, columns: Columns) -> LineReader:
        return LineReader()

    def carried_schema(self, listing: Listing, names: Sequence[str]) -> pa.Schema:
        """From the first lines of the first manifest; a field of nulls alone is a string."""
        path = os.path.join(listing.place.root, next(iter(listing)).path)
        values: dict[str, list[Any]] = {name: [] for name in names}
        try:
            with open_input(path) as stream:
                for line in islice(stream, LINES_LOOKED_AT):
                    try:
                        tree = parse_line(line)
                    except ValueError:
                        continue
                    for name in names:
                        values[name].append(tree.get(name))
        except OSError as error:
            raise listing_error(f"source: {path}: cannot be read as jsonl: {error}", error) from error
        return pa.schema([pa.field(name, _type_of(name, found, path)) for name, found in values.items()])

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> pa.Table:
        path = os.path.join(part.root, part.files[0].path)
        rows: list[dict[str, Any]] = []
        with reading(path), open_input(path) as stream:
            for sample in samples:
                stream.seek(sample.offset)
                try:
                    rows.append(parse_line(stream.readline()))
                except ValueError:  # a reject, which carries nothing
                    rows.append({})
        return table_of(rows, schema, path)

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """The lines that begin in a window of bytes, anywhere in any of the manifests."""
        return Draws(draws=tuple(_draws(listing, drawing)), files=listing.count)


class LineReader:
    """Reads the files that lines name."""

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        (file,) = part.files
        check_unchanged(part.root, file)
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            wanted = [sample for sample in samples if sample.sha256 is not None]
            data = map_ahead(pool, reread_image_file, wanted, 0)
            found = {id(sample): one for sample, one in zip(wanted, data, strict=True)}
        return UnitBytes([found.get(id(sample)) for sample in samples], [{} for _ in samples])

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Where a line of a manifest stands. `name` is its key where no field gives one."""

    path: str
    name: str
    row: int
    offset: int


def _images_of_lines(path: str, file: SourceFile, columns: Columns) -> Iterator[NamedImage]:
    row, position = file.row, file.first
    with reading(path), open_input(path) as stream:
        stream.seek(file.first)
        while position < file.last:
            text = stream.readline()
            if not text:
                raise SourceError(f"{path}: ends at byte {position}, before {file.last}")
            if text.strip():
                line = Line(path=path, name=f"{file.path}:{row}", row=row, offset=position)
                yield from images_of_line(text, line, columns)
            position += len(text)
            row += 1


def _images_in_range(path: str, first: int, last: int, image_column: str) -> list[NamedImage]:
    """Lists the images that the lines beginning in this range name."""
    images: list[NamedImage] = []
    with open_input(path) as stream:
        if first:
            stream.seek(first - 1)
            stream.readline()
        while (position := stream.tell()) < last and (text := stream.readline()):
            if text.strip():
                line = Line(path=path, name="", row=0, offset=position)
                images += images_of_line(text, line, Columns(image=image_column))
    return images


def images_of_line(text: bytes, line: Line, columns: Columns) -> Iterator[NamedImage]:
    """Every image that one line names, or what is wrong with the line."""
    where, name = f"line {line.row + 1}", line.name
    try:
        tree = parse_line(text)
    except ValueError as error:
        yield NamedImage(key=name, offset=line.offset, problem=f"{where} is not a JSON object: {error}")
        return
    if columns.key is not None:
        key = tree.get(columns.key)
        if key == "" or not (isinstance(key, str | int) and is_text(str(key))):
            problem = "is empty" if key == "" else "is none that can be a key"
            yield NamedImage(key=name, offset=line.offset, problem=f"{where}: its {columns.key!r} {problem}")
            return
        name = str(key)
    if columns.image not in tree:
        yield NamedImage(key=name, offset=line.offset, problem=f"{where} has no {columns.image!r}")
        return
    for image in named_images(tree[columns.image], line.path, name, where):
        yield replace(image, offset=line.offset)


def parse_line(text: bytes) -> dict[str, Any]:
    """One line of a manifest. Raises ValueError: not a JSON object."""
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it is a {type(tree).__name__}")
    return tree


def _type_of(name: str, values: list[Any], path: str) -> pa.DataType:
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"source.carry: {name} has values of several types in {path}: {error}") from error
    return pa.string() if pa.types.is_null(kind) else kind


def _draws(listing: Listing, drawing: Drawing) -> Iterator[Draw]:
    files = [file for file in listing if file.size]
    ends = np.cumsum([file.size for file in files], dtype=np.int64)
    window = 0
    for _ in range(DRAWS if len(ends) else 0):
        file = files[drawing.one_of(ends)]
        path = os.path.join(listing.place.root, file.path)
        if not window:  # how much is read at a time follows from how many images are in a first piece
            pilot = min(file.size, PILOT_BYTES)
            found = len(_images_in_range(path, 0, pilot, drawing.image_column))
            window = max(1, int(drawing.count / DRAWS * pilot / max(1, found)))
        start, length = drawing.generator.randrange(file.size), min(window, file.size)
        images = [
            one
            for first, last in wrapped(start, length, file.size)
            for one in _images_in_range(path, first, last, drawing.image_column)
        ]
        # An image of its own file each: no more of them are read than are wanted.
        chosen = drawing.generator.sample(images, min(len(images), 2 * drawing.per_draw))
        weight = int(ends[-1]) / length * len(images) / max(1, len(chosen))
        yield Draw(weight=weight, samples=tuple(drawing.headers.drawn_of(chosen)))
