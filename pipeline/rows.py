"""Rows: Parquet files and JSONL manifests as sources. A part is a range of row groups, or of lines.

An image is given as bytes, as `{bytes, path}` (Hugging Face's layout), as a path, or as a list of those. Paths are
relative to the file that names them, absolute, or URIs of object storage. Nothing is fetched from hosts.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DamagedPart, RequestError, SourceError
from pipeline.files import open_input, read_input
from pipeline.remote import beside, is_remote, problem_with
from pipeline.sources import SourceFile, SourcePlace, check_unchanged

if TYPE_CHECKING:
    from pipeline.index import IndexedSample
    from pipeline.parts import Part

PART_ROWS = 65_536
PART_LINES = 8192
BATCH_ROWS = 64
_NO_TEXT = object()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one image of a row is: `key` of the sample, `data` or `path`, or the `problem` with it.

    Attributes:
        offset: the row's number in a Parquet file, the line's first byte in a manifest.
        item: the image's number in the row's list, or None.
        group: the row group, -1 in a manifest.
    """

    key: str
    offset: int
    group: int = -1
    item: int | None = None
    data: bytes | None = None
    path: str | None = None
    problem: str = ""


def open_parquet(path: str) -> pq.ParquetFile:
    """An object's column chunks are fetched together, in few requests. Raises OSError, ArrowException."""
    if not is_remote(path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(open_input(path, forwards=False), pre_buffer=True)


def spans_of(place: SourcePlace, file: SourceFile) -> list[SourceFile]:
    """Cuts a file into parts; at least one. Raises RequestError if it cannot be read as what it is."""
    path = os.path.join(place.root, file.path)
    try:
        return _groups(path, file) if place.format == "parquet" else _lines(path, file)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"source: {path}: cannot be read as {place.format}: {error}") from error


def _groups(path: str, file: SourceFile) -> list[SourceFile]:
    with open_parquet(path) as parquet:
        metadata = parquet.metadata
    spans: list[SourceFile] = []
    first = row = start = 0
    for group in range(metadata.num_row_groups):
        row += metadata.row_group(group).num_rows
        if row - start >= PART_ROWS or group == metadata.num_row_groups - 1:
            spans.append(replace(file, first=first, last=group + 1, row=start))
            first, start = group + 1, row
    return spans or [file]


def _lines(path: str, file: SourceFile) -> list[SourceFile]:
    spans: list[SourceFile] = []
    first = row = start = position = 0
    with open_input(path) as stream:
        for line in stream:
            position += len(line)
            row += 1
            if row - start == PART_LINES:
                spans.append(replace(file, first=first, last=position, row=start))
                first, start = position, row
    if position > first or not spans:
        spans.append(replace(file, first=first, last=position, row=start))
    return spans


def check_columns(place: SourcePlace, file: SourceFile, image_column: str, key_column: str | None) -> None:
    """Raises RequestError if a Parquet file lacks a column, or its image column cannot hold images."""
    path = os.path.join(place.root, file.path)
    try:
        with open_parquet(path) as parquet:
            schema = parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"source: {path}: cannot be read as parquet: {error}") from error
    for setting, name in (("image_column", image_column), ("key_column", key_column)):
        if name is not None and schema.get_field_index(name) < 0:
            raise RequestError(f"source.{setting}: {path} has no column {name!r}; it has {', '.join(schema.names)}")
    kind = schema.field(image_column).type
    if not _holds_images(kind):
        raise RequestError(
            f"source.image_column: {image_column} of {path} is {kind}; needed are bytes, a struct of bytes and path, a "
            "path, or a list of those"
        )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.field(index).name in ("bytes", "path") for index in range(kind.num_fields))
    checks = (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string,
        pa.types.is_binary_view, pa.types.is_string_view,
    )  # fmt: skip
    return any(check(kind) for check in checks)


def places(part: Part, image_column: str, key_column: str | None) -> Iterator[Place]:
    """Every image of a part, in order. Raises SourceError and DamagedPart as `index_part` does."""
    (file,) = part.files
    check_unchanged(part.root, file)
    if part.format == "parquet":
        yield from _parquet_places(part, file, image_column, key_column)
    else:
        yield from _jsonl_places(part, file, image_column, key_column)


def _parquet_places(part: Part, file: SourceFile, image_column: str, key_column: str | None) -> Iterator[Place]:
    path = os.path.join(part.root, file.path)
    columns = [image_column] if key_column in (None, image_column) else [image_column, key_column]
    row = file.row
    try:
        with open_parquet(path) as parquet:
            for group in range(file.first, file.last):
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    images = _values(batch.column(image_column))
                    keys = _values(batch.column(key_column)) if key_column else [None] * len(images)
                    for image, key in zip(images, keys, strict=True):
                        name = f"{file.path}:{row}" if key is None else _key_text(key)
                        if image is _NO_TEXT or key is _NO_TEXT:
                            problem = f"row {row}: its {'key' if key is _NO_TEXT else 'image'} is not valid UTF-8"
                            yield Place(key=f"{file.path}:{row}", offset=row, group=group, problem=problem)
                        else:
                            for found in images_of(image, path, name, f"row {row}"):
                                yield replace(found, offset=row, group=group)
                        row += 1
    except (OSError, pa.ArrowException, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the world's; Arrow's own of a bad file has none
            raise SourceError(f"{path}: cannot be read: {error}") from error
        raise DamagedPart(f"{path}: cannot be read as Parquet with a column {image_column}: {error}") from error


def _key_text(key: Any) -> str:
    """Bytes as text where they are, else as hexadecimal digits."""
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            return key.hex()
    return str(key)


def _values(column: pa.Array) -> list[Any]:
    """As Python has them; text that is none as `_NO_TEXT`."""

    def value(cell: pa.Scalar) -> Any:
        try:
            return cell.as_py()
        except UnicodeDecodeError:
            return _NO_TEXT

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [value(cell) for cell in column]


def _jsonl_places(part: Part, file: SourceFile, image_column: str, key_column: str | None) -> Iterator[Place]:
    path = os.path.join(part.root, file.path)
    row, position = file.row, file.first
    try:
        with open_input(path) as stream:
            stream.seek(file.first)
            while position < file.last:
                line = stream.readline()
                if not line:
                    raise SourceError(f"{path}: ends at byte {position}, before {file.last}")
                if line.strip():
                    yield from line_places(line, path, f"{file.path}:{row}", row, position, image_column, key_column)
                position += len(line)
                row += 1
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def line_places(
    line: bytes, path: str, name: str, row: int, position: int, image_column: str, key_column: str | None
) -> Iterator[Place]:
    where = f"line {row + 1}"
    try:
        tree = parse_line(line)
    except ValueError as error:
        yield Place(key=name, offset=position, problem=f"{where} is not a JSON object: {error}"[:1000])
        return
    if key_column is not None:
        if isinstance(tree.get(key_column), str | int) and _is_text(str(tree[key_column])):
            name = str(tree[key_column])
        else:
            yield Place(key=name, offset=position, problem=f"{where} has no {key_column!r} that can be a key")
            return
    if image_column not in tree:
        yield Place(key=name, offset=position, problem=f"{where} has no {image_column!r}")
        return
    for found in images_of(tree[image_column], path, name, where):
        yield replace(found, offset=position)


def _is_text(value: str) -> bool:
    """Whether it can be stored: JSON can spell halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_line(line: bytes) -> dict[str, Any]:
    """One line of a manifest. Raises ValueError: not a JSON object."""
    try:
        tree = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it is a {type(tree).__name__}")
    return tree


def images_of(value: Any, path: str, name: str, where: str) -> Iterator[Place]:
    """The images that a cell names: one, or one for each item of a list."""
    if isinstance(value, list):
        if not value:
            yield Place(key=name, offset=0, problem=f"{where}: its list of images is empty")
        for number, item in enumerate(value):
            yield replace(_image(item, path, f"{name}/{number}", f"{where}, image {number}"), item=number)
    else:
        yield _image(value, path, name, where)


def _image(value: Any, path: str, name: str, where: str) -> Place:
    place = Place(key=name, offset=0)
    if isinstance(value, dict):
        data = value.get("bytes")
        value = data if isinstance(data, bytes) else value.get("path")
    if value is None or value == "":
        return replace(place, problem=f"{where} has no image")
    if isinstance(value, bytes):
        return replace(place, data=value)
    if isinstance(value, str) and not _is_text(value):
        return replace(place, problem=f"{where}: its image's path is not valid UTF-8")
    if not isinstance(value, str):
        return replace(place, problem=f"{where}: its image is a {type(value).__name__}, not a path")
    if is_remote(path) and not value.startswith(("/", "file://")) and not is_remote(value):
        value = beside(path, value)
    if is_remote(value):
        # By its looks alone: a client that cannot be had is no property of these bytes.
        problem = problem_with(value)
        return replace(place, problem=f"{where}: {problem}"[:1000]) if problem else replace(place, path=value)
    return replace(place, path=os.path.join(os.path.dirname(path), value.removeprefix("file://")))


def read_place(place: Place) -> bytes | None:
    """The image's bytes; None if its file is not there. Raises SourceError: it is there and cannot be read."""
    if place.data is not None or place.path is None:
        return place.data
    return read_image_file(place.path)


def read_image_file(path: str) -> bytes | None:
    try:
        return read_input(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise SourceError(f"{path[:200]}: cannot be read: {error.strerror or error}") from error


def read_rows(part: Part, samples: Sequence[IndexedSample], image_column: str) -> list[bytes | None]:
    """The encoded bytes of indexed samples, of a Parquet file group by group.

    Raises:
        SourceError: a file changed since it was planned, vanished, or cannot be read.
    """
    (file,) = part.files
    check_unchanged(part.root, file)
    inside = [index for index, sample in enumerate(samples) if sample.sha256 is not None and sample.path is None]
    found: list[bytes | None] = [None] * len(samples)
    for index, sample in enumerate(samples):
        if sample.sha256 is not None and sample.path is not None:
            found[index] = read_image_file(sample.path)
            if found[index] is None:
                raise SourceError(f"{sample.path}, named by {sample.source}, has vanished since it was indexed")
    if inside:
        # A row once, however many images its list has.
        rows = {samples[index].offset: samples[index] for index in inside}
        cells = read_columns(part, list(rows.values()), [image_column]).column(image_column)
        value_of = dict(zip(rows, cells, strict=True))
        for index in inside:
            value, item = value_of[samples[index].offset], samples[index].item
            value = value.as_py() if item is None else value[item].as_py()
            found[index] = value["bytes"] if isinstance(value, dict) else value
    return found


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
        raise SourceError(f"{path}: cannot be read: {error}") from error
